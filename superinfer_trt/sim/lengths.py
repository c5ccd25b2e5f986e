"""Lengths of requests out of a file: CSV or JSONL, plain or gzip, in the formats of public traces.

Columns are known by name (`_PROMPT`, `_OUTPUT`, `_ARRIVAL`): this project's own, Azure's, Mooncake's,
BurstGPT's, Vidur's. A refusal is one line: file, line number, what was found and what is expected.
Knows no model and no arrival process. Any thread.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.units import MILLISECOND, SECOND, Nanos

TOKENS_MAX = 100_000_000
"""No request is longer: a larger number is a mistake of units."""

_PROMPT = (
    "prompt_tokens",
    "prompt_tokens_llama3",
    "ContextTokens",
    "Request tokens",
    "input_length",
    "num_prefill_tokens",
)
_OUTPUT = (
    "output_tokens",
    "output_tokens_llama3",
    "GeneratedTokens",
    "Response tokens",
    "output_length",
    "num_decode_tokens",
)
# Column -> nanoseconds of its unit; TIMESTAMP is a date.
_ARRIVAL = {"arrival_s": SECOND, "Timestamp": SECOND, "timestamp": MILLISECOND, "TIMESTAMP": 0}


@dataclass(frozen=True, slots=True)
class Lengths:
    """One request of a trace. `arrival`: since the first one of the file; None where it says nothing.
    `line`: where it stands in its file; 0 for none."""

    prompt_tokens: int
    output_tokens: int
    arrival: Nanos | None = None
    tenant: str = ""
    line: int = 0


def read_lengths(path: Path) -> list[Lengths]:
    """All rows, in file order. Raises ConfigError."""
    try:
        with _open(path) as file:
            names, rows = _rows(path, file)
            lengths = _parsed(path, names, rows)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    except csv.Error as error:
        raise ConfigError(f"{path}: not CSV ({error})") from None
    if not lengths:
        raise ConfigError(f"{path}: holds no request; expected one a line")
    return lengths


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _rows(path: Path, file: TextIO) -> tuple[Sequence[str], Iterator[tuple[int, Mapping[str, Any]]]]:
    """The columns, and (line, row) of each row."""
    if ".jsonl" in path.suffixes or ".json" in path.suffixes:
        rows = _json_rows(path, file)
        first = next(rows, None)
        if first is None:
            return (*_PROMPT[:1], *_OUTPUT[:1]), iter(())
        return list(first[1]), _chain(first, rows)
    reader = csv.DictReader(file, strict=True)
    return reader.fieldnames or (), ((reader.line_num, row) for row in reader)


def _chain(
    first: tuple[int, Mapping[str, Any]], rest: Iterator[tuple[int, Mapping[str, Any]]]
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    yield first
    yield from rest


def _json_rows(path: Path, file: TextIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise ConfigError(f"{path}:{line}: expected a JSON object a line")
        yield line, row


def _parsed(path: Path, names: Sequence[str], rows: Iterator[tuple[int, Mapping[str, Any]]]) -> list[Lengths]:
    prompt, output = (
        _column(path, names, known, what) for known, what in ((_PROMPT, "prompt"), (_OUTPUT, "output"))
    )
    arrival = next((name for name in _ARRIVAL if name in names), None)
    tenant = "tenant" if "tenant" in names else None
    lengths: list[Lengths] = []
    origin: Nanos | None = None
    before: Nanos = 0
    for line, row in rows:
        at = f"{path}:{line}"
        when: Nanos | None = None
        if arrival is not None:
            moment = _moment(at, arrival, row.get(arrival))
            origin = moment if origin is None else origin
            when = moment - origin
            if when < before:
                raise ConfigError(f"{at}: {arrival} goes back; expected ascending times")
            before = when
        lengths.append(
            Lengths(
                _tokens(at, prompt, row.get(prompt)),
                _tokens(at, output, row.get(output)),
                when,
                str(row.get(tenant) or "") if tenant else "",
                line,
            )
        )
    return lengths


def _column(path: Path, names: Sequence[str], known: Sequence[str], what: str) -> str:
    found = next((name for name in known if name in names), None)
    if found is None:
        listed = ", ".join(names)[:120] or "none"
        raise ConfigError(
            f"{path}:1: no column of {what} lengths among {listed}; expected one of {', '.join(known)}"
        )
    return found


def _tokens(at: str, name: str, value: object) -> int:
    number = _number(value)
    tokens = int(number) if abs(number) <= TOKENS_MAX else 0
    if tokens != number or tokens < 1:
        shown = repr(value)[:40]
        raise ConfigError(f"{at}: {name} is {shown}; expected a whole number from 1 to {TOKENS_MAX}")
    return tokens


def _number(value: object) -> float:
    """NaN for what is none."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def _moment(at: str, name: str, value: object) -> Nanos:
    unit = _ARRIVAL[name]
    if unit == 0:
        found, expected = _date(str(value)), "a date as 2023-11-16 18:17:03"
    else:
        number, expected = _number(value), "a number of less than 1e15"
        found = round(number * unit) if abs(number) < 1e15 else None
    if found is None:
        raise ConfigError(f"{at}: {name} is {str(value)[:40]!r}; expected {expected}")
    return found


def _date(text: str) -> Nanos | None:
    """Since 1970 without a zone of its own; None for what is no date."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    try:
        seconds = (datetime.fromisoformat(whole) - datetime(1970, 1, 1)).total_seconds()
        return int(seconds) * SECOND + (int(fraction[:9].ljust(9, "0")) if fraction else 0)
    except (ValueError, TypeError):
        return None
