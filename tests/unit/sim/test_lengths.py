"""Traces: every format that is read, and one line for each thing that can be wrong."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.units import SECOND
from superinfer_trt.sim.lengths import Lengths, read_lengths

FORMATS = {
    "own.csv": "prompt_tokens,output_tokens,tenant\n3,4,a\n5,6,\n",
    "vidur.csv": "num_prefill_tokens,num_decode_tokens\n3,4\n5,6\n",
    "azure.csv": "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 23:59:59.5000000,3,4\n2023-11-17 00:00:01.0000000,5,6\n",
    "burst.csv": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,3,4,7,Conversation log\n6.5,ChatGPT,5,6,11,Conversation log\n",
    "mooncake.jsonl": '{"timestamp": 3000, "input_length": 3, "output_length": 4, "hash_ids": [1]}\n\n'
    '{"timestamp": 4500, "input_length": 5, "output_length": 6, "hash_ids": []}\n',
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("packed", [False, True])
def test_known_formats_are_read(name: str, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(FORMATS[name].encode()) if packed else FORMATS[name].encode())
    rows = read_lengths(path)
    assert [(row.prompt_tokens, row.output_tokens) for row in rows] == [(3, 4), (5, 6)]
    timed = name in {"azure.csv", "burst.csv", "mooncake.jsonl"}
    assert [row.arrival for row in rows] == ([0, 3 * SECOND // 2] if timed else [None, None])
    assert [row.tenant for row in rows] == (["a", ""] if name == "own.csv" else ["", ""])


def test_a_byte_order_mark_is_no_column(tmp_path: Path) -> None:
    path = tmp_path / "bom.csv"
    path.write_bytes(b"\xef\xbb\xbfprompt_tokens,output_tokens\r\n3,4\r\n")
    assert read_lengths(path) == [Lengths(3, 4, line=2)]


HEAD = "prompt_tokens,output_tokens\n"
WRONG = {
    "no column": ("a.csv", "prompt_tokens,replies\n3,4\n", "a.csv:1: no column of output"),
    "empty": ("a.csv", "", "a.csv:1: no column"),
    "no row": ("a.csv", HEAD, "holds no request"),
    "no json row": ("a.jsonl", "\n", "holds no request"),
    "negative": ("a.csv", HEAD + "3,4\n-3,4\n", "a.csv:3: prompt_tokens is '-3'"),
    "zero": ("a.csv", HEAD + "3,0\n", "a.csv:2: output_tokens is '0'"),
    "fraction": ("a.csv", HEAD + "3.5,4\n", "a.csv:2: prompt_tokens is '3.5'"),
    "word": ("a.csv", HEAD + "three,4\n", "a.csv:2: prompt_tokens is 'three'"),
    "nan": ("a.csv", HEAD + "nan,4\n", "a.csv:2: prompt_tokens is 'nan'"),
    "huge": ("a.csv", HEAD + "1e300,4\n", "a.csv:2: prompt_tokens is '1e300'"),
    "short row": ("a.csv", HEAD + "3\n", "a.csv:2: output_tokens is None"),
    "true": (
        "a.jsonl",
        '{"input_length": true, "output_length": 3}\n',
        "a.jsonl:1: input_length is True",
    ),
    "no json": ("a.jsonl", "{}x\n", "a.jsonl:1: expected a JSON object"),
    "list": ("a.jsonl", "[1]\n", "a.jsonl:1: expected a JSON object"),
    "deep": ("a.jsonl", "[" * 100_000 + "\n", "a.jsonl:1: expected a JSON object"),
    "absent later": (
        "a.jsonl",
        '{"input_length": 1, "output_length": 3}\n{"input_length": 1}\n',
        "a.jsonl:2: output_length is None",
    ),
    "backwards": (
        "a.csv",
        "arrival_s,prompt_tokens,output_tokens\n3,1,1\n2,1,1\n",
        "a.csv:3: arrival_s goes back",
    ),
    "no time": ("a.csv", "arrival_s,prompt_tokens,output_tokens\n,1,1\n", "a.csv:2: arrival_s is ''"),
    "no date": (
        "a.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1\n",
        "a.csv:2: TIMESTAMP is 'yesterday'; expected a date",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_files_are_refused_in_one_line(what: str, tmp_path: Path) -> None:
    name, text, said = WRONG[what]
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_lengths(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("what", ["stub", "cut", "plain"])
def test_broken_gzip_is_refused(what: str, tmp_path: Path) -> None:
    whole = gzip.compress((HEAD + "3,4\n" * 999).encode())
    path = tmp_path / "a.csv.gz"
    path.write_bytes({"stub": b"\x1f\x8b123", "cut": whole[:-9], "plain": HEAD.encode()}[what])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_lengths(path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_lengths(path)
