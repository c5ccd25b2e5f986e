"""genai-perf through a real tritonserver beside `superinfer-trt bench`: do they see the same times?

One server with a modelled engine, as in clients.py, and a tritonserver with the model `ensemble`, its proxy.
The engine's tokens are letters, one token each, so that text has as many tokens for genai-perf, which counts
them in the text, as the engine wrote. `triton` is a plain reader of the same model: what Triton adds is its
difference to `bench`, and genai-perf is compared with it, by --agree. One closed loop after the other.

    python -m venv N && N/bin/pip install genai-perf==0.0.16 perf-analyzer==2.60.0
    python benchmarks/clients_triton.py --tritonserver FOLDER --genai-perf N [--perf-analyzer PROGRAM]

in an environment as the stage `triton` of scripts/test makes one. The wheel of perf-analyzer wants glibc
2.38; where the system's is older, --perf-analyzer names a program that runs the real one nevertheless.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from clients import COMMAND, OUTPUT_TOKENS, PATIENCE_S, Figures, disagreements, figures, ours, percentiles

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "the quick brown fox jumps over the lazy dog and off it goes home"


def write_tokenizer(folder: Path) -> None:
    """A Hugging Face tokenizer of 26 tokens, the letters; whatever else is in a text is an `a` to it."""
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel
    from tokenizers.models import BPE

    letters = {letter: id for id, letter in enumerate(ascii_lowercase)}
    made = Tokenizer(BPE(vocab=letters, merges=[], unk_token="a"))
    made.decoder = ByteLevel()
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def serve_letters(tokenizer: Path, flags: list[str]) -> None:
    """`superinfer-trt serve` whose modelled engine, which knows no text by itself, has this tokenizer."""
    from superinfer_trt.build import service
    from superinfer_trt.cli.main import main as command_line
    from superinfer_trt.model.folder import folder_tokenizer

    open_world = service.open_world
    service.open_world = lambda *given: dataclasses.replace(
        open_world(*given), tokenizer=folder_tokenizer(tokenizer)
    )
    sys.argv[1:] = ["serve", *flags]
    command_line()


@contextlib.contextmanager
def server(tokenizer: Path, step_ms: float) -> Iterator[str]:
    """The target of a server whose steps take `step_ms`, whoever is in them, and its prompts nothing."""
    zero = ("row_ns", "prefill_token_ns", "context_token_ns")
    process = subprocess.Popen(
        [
            sys.executable, str(Path(__file__).resolve()), "serve-letters", str(tokenizer), "--port", "0",
            "--engine", "sim", "--policy", "fcfs", f"--set=engine.vocabulary={len(ascii_lowercase)}",
            f"--set=engine.step_cost.base_ns={step_ms * 1e6}",
            *(f"--set=engine.step_cost.{name}=0" for name in zero),
        ],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the server ended before it was ready"
        yield str(json.loads(line)["target"])
    finally:
        process.terminate()
        process.wait(30)


def genai_perf(
    venv: Path, analyzer: Path | None, address: str, tokenizer: Path, requests: int, folder: Path
) -> Figures:
    """One caller of `ensemble`; genai-perf takes the `perf_analyzer` that comes first on PATH."""
    first = folder / "first"
    first.mkdir()
    if analyzer is not None:
        (first / "perf_analyzer").symlink_to(analyzer.absolute())
    path = os.pathsep.join([str(first), str(venv / "bin"), os.environ.get("PATH", "")])
    done = subprocess.run(
        [
            str(venv / "bin" / "genai-perf"), "profile", "-m", "ensemble", "--endpoint-type", "kserve",
            "--backend", "tensorrtllm", "--tokenizer", str(tokenizer), "-u", address, "--streaming",
            "--synthetic-input-tokens-mean", str(len(PROMPT)), "--synthetic-input-tokens-stddev", "0",
            "--output-tokens-mean", str(OUTPUT_TOKENS), "--output-tokens-stddev", "0",
            "--output-tokens-mean-deterministic", "--concurrency", "1", "--request-count", str(requests),
            "--random-seed", "7", "--artifact-dir", str(folder / "artifacts"),
        ],
        cwd=folder, env={**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    found = sorted((folder / "artifacts").rglob("*genai_perf.json"))
    if done.returncode or not found:
        sys.exit(f"genai-perf failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    told = json.loads(found[0].read_text())
    gaps = told["inter_token_latency"]  # means of requests: genai-perf keeps no single gaps
    count = told["request_count"]["avg"]
    return figures(told["time_to_first_token"], gaps, count, told["output_sequence_length"]["avg"] * count)


def triton_reader(address: str, requests: int) -> Figures:
    """One caller of `ensemble`, and nothing between it and the answers."""
    from asking import text_inputs
    from tritonclient.grpc import aio

    inputs = text_inputs(PROMPT, OUTPUT_TOKENS, stream=True, exclude_input_in_output=True)

    async def ask(client: Any) -> list[float]:
        async def asked() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": "ensemble", "inputs": inputs}

        times = [time.perf_counter()]
        async for result, error in client.stream_infer(asked()):
            assert error is None, error
            if result.as_numpy("text_output").size:
                times.append(time.perf_counter())
        return times

    async def loop() -> list[list[float]]:
        async with aio.InferenceServerClient(address) as client:
            await ask(client)  # the first pays for the model's connection to the server
            return [await ask(client) for _ in range(requests)]

    heard = asyncio.run(loop())
    gaps = sorted(after - before for times in heard for before, after in itertools.pairwise(times[1:]))
    first = sorted(times[1] - times[0] for times in heard)
    return figures(percentiles(first), percentiles(gaps), len(heard), sum(len(times) - 1 for times in heard))


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    sys.path.insert(0, str(ROOT / "tests" / "tritonserver"))
    from processes import triton

    tokenizer, models = folder / "tokenizer", folder / "models"
    write_tokenizer(tokenizer)
    with server(tokenizer, options.step_ms) as target:
        repository = [*COMMAND, "triton", "repo", "--out", str(models), "--target", target]
        subprocess.run(repository, check=True, stdout=subprocess.DEVNULL)
        with triton(options.tritonserver.absolute(), models, ["ensemble"], folder) as running:
            clients: dict[str, Callable[[int], Figures]] = {
                "bench": lambda requests: ours(target, "executor", 1, requests),
                "triton": lambda requests: triton_reader(running.grpc, requests),
                "genai-perf": lambda requests: genai_perf(
                    options.genai_perf.absolute(), options.perf_analyzer, running.grpc, tokenizer, requests,
                    folder,
                ),
            }  # fmt: skip
            return [
                {"client": name, "callers": 1, **client(options.requests)} for name, client in clients.items()
            ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tritonserver", type=Path, required=True, help="unpacked nvidia-pytriton")
    parser.add_argument("--genai-perf", type=Path, required=True, help="environment with genai-perf")
    parser.add_argument("--perf-analyzer", type=Path, help="program to use for perf_analyzer")
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--step-ms", type=float, default=200.0)
    parser.add_argument("--agree", type=float, default=0.0, help="exit 1 when figures differ by more")
    parser.add_argument("--tries", type=int, default=1, help="runs until the figures agree, at most")
    parser.add_argument("--json", action="store_true", help="one line")
    options = parser.parse_args()
    for _ in range(options.tries):  # a machine that does other things too spoils a run
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(options, Path(folder))
        differ = disagreements(rows, options.agree) if options.agree else []
        if not differ:
            break
        print(*differ, sep="\n", file=sys.stderr)
    if options.json:
        told = {"benchmark": "clients_triton", "step_ms": options.step_ms, "rows": rows, "differ": differ}
        print(json.dumps(told))
    else:
        for row in rows:
            print("  ".join(f"{name} {one:.1f}" if isinstance(one, float) else f"{name} {one}"
                            for name, one in row.items()))  # fmt: skip
        print(*differ, sep="\n")
    return 1 if differ else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve-letters"]:
        serve_letters(Path(sys.argv[2]), sys.argv[3:])
    sys.exit(main())
