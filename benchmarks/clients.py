"""Load generators of others beside `superinfer-trt bench`: do they see the same times?

One server with a modelled engine (a step takes --step-ms, whoever is in it, and a prompt nothing), and a
gateway in front of it for those that speak HTTP. Each client runs the same closed loop, one after the other.
What the gateway adds is measured by `http`, a plain reader of its events: generators behind it are compared
with that, ours with `bench`. --agree is the share by which figures may differ. With several callers
a first token is in this step or a later one by chance: only times between tokens are compared then.

genai-perf, which speaks to Triton, is in clients_triton.py. aiperf (0.13) and guidellm (0.8) come each in an
environment of its own:

    python -m venv A && A/bin/pip install aiperf==0.13.0
    python -m venv G && G/bin/pip install torch==2.13.0 guidellm==0.8.1
    python -m venv S && S/bin/pip install -r tests/gateway/requirements.txt
    python benchmarks/clients.py --gateway S --aiperf A --guidellm G [--json] [--agree 0.05]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.gateway import COMMAND, Gateway, gateway, replica

OUTPUT_TOKENS = 8
READERS = ("http", "triton")
BEHIND = {"aiperf": "http", "guidellm": "http", "genai-perf": "triton"}
"""What a generator is compared with: a plain reader of the same gateway or server. Others: with `bench`."""

FIGURES = ("ttft_ms_p50", "ttft_ms_p90", "itl_ms_p50", "itl_ms_p90")
PATIENCE_S = 300

Figures = dict[str, float]


def ours(target: str, api: str, callers: int, requests: int) -> Figures:
    done = subprocess.run(
        [*COMMAND, "bench", "--target", target, "--api", api, "--json", "--concurrency", str(callers),
         "--requests", str(requests), "--prompt-tokens", "64", "--output-tokens", str(OUTPUT_TOKENS)],
        capture_output=True, text=True, check=True, timeout=PATIENCE_S,
    )  # fmt: skip
    told = json.loads(done.stdout)
    return figures(told["ttft_ms"], told["tbt_ms"], told["completed"], told["output_tokens"])


def aiperf(venv: Path, port: int, tokenizer: Path, callers: int, requests: int, folder: Path) -> Figures:
    _run(
        folder, venv / "bin" / "aiperf", "profile", "-m", "sim", "--url", f"127.0.0.1:{port}",
        "--endpoint-type", "chat", "--streaming", "--tokenizer", str(tokenizer),
        "--synthetic-input-tokens-mean", "64", "--synthetic-input-tokens-stddev", "0",
        "--output-tokens-mean", str(OUTPUT_TOKENS), "--output-tokens-stddev", "0",
        "--extra-inputs", "ignore_eos:true", "--concurrency", str(callers), "--request-count", str(requests),
        "--random-seed", "7", "--use-server-token-count", "--ui-type", "none", "--no-gpu-telemetry",
        "--no-server-metrics", "--artifact-dir", str(folder),
    )  # fmt: skip
    told = json.loads((folder / "profile_export_aiperf.json").read_text())
    gaps = told["inter_chunk_latency"]
    return figures(told["time_to_first_token"], gaps, told["request_count"]["avg"], told["total_osl"]["avg"])


def guidellm(venv: Path, port: int, tokenizer: Path, callers: int, requests: int, folder: Path) -> Figures:
    file = folder / "guidellm.json"
    _run(
        folder, venv / "bin" / "guidellm", "run",
        "--backend", f"kind=openai_http,target=http://127.0.0.1:{port},model=sim",
        "--tokenizer", f"kind=huggingface_auto,model={tokenizer}",
        "--data", f"kind=synthetic_text,prompt_tokens=64,output_tokens={OUTPUT_TOKENS}",
        "--profile", f"kind=concurrent,streams={callers}",
        "--constraint", f"kind=max_requests,count={requests}",
        "--output", f"kind=json,path={file}", "--disable-progress",
    )  # fmt: skip
    told = json.loads(file.read_text())["benchmarks"][0]["metrics"]
    first = told["time_to_first_token_ms"]["successful"]
    gaps = told["inter_token_latency_ms"]["successful"]  # means of requests: guidellm keeps no single gaps
    tokens = told["output_token_count"]["successful"]["total_sum"]
    return figures(first["percentiles"], gaps["percentiles"], first["count"], tokens)


def http(front: Gateway, callers: int, requests: int) -> Figures:
    """A thread for each caller, and nothing between it and the events."""
    heard: list[list[float]] = []

    def caller() -> None:
        body = {"model": "sim", "max_tokens": OUTPUT_TOKENS, "ignore_eos": True}
        body["messages"] = [{"role": "user", "content": "one two three four " * 8}]
        for _ in range(requests // callers):
            times = [time.perf_counter()]
            for event in front.stream("/v1/chat/completions", body):
                if event["choices"] and event["choices"][0]["delta"].get("content"):
                    times.append(time.perf_counter())  # noqa: PERF401  # the moment is what counts
            heard.append(times)

    threads = [threading.Thread(target=caller) for _ in range(callers)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    gaps = sorted(after - before for times in heard for before, after in itertools.pairwise(times[1:]))
    first = sorted(times[1] - times[0] for times in heard)
    count = sum(len(times) - 1 for times in heard)
    return figures(percentiles(first), percentiles(gaps), len(heard), count)


def percentiles(ordered: list[float]) -> dict[str, float]:
    return {f"p{percent}": 1e3 * ordered[-(-percent * len(ordered) // 100) - 1] for percent in (50, 90)}


def figures(first: dict[str, float], gaps: dict[str, float], requests: float, tokens: float) -> Figures:
    return {
        "requests": requests,
        "tokens": tokens,
        "ttft_ms_p50": first["p50"],
        "ttft_ms_p90": first["p90"],
        "itl_ms_p50": gaps["p50"],
        "itl_ms_p90": gaps["p90"],
    }


def _run(folder: Path, *command: str | Path) -> None:
    """The tokenizer is a folder, so no hub is asked; what it said is shown when it fails."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"} if "guidellm" in str(command[0]) else None
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def disagreements(rows: list[dict[str, Any]], share: float) -> list[str]:
    """What differs by more than `share` from the row it is compared with, and tokens that are missing."""
    found = []
    for row in rows:
        who = f"{row['client']}, {row['callers']} callers"
        if row["client"] in READERS:
            continue
        judge = BEHIND.get(row["client"], "bench")
        other = next(one for one in rows if (one["client"], one["callers"]) == (judge, row["callers"]))
        names = FIGURES if row["callers"] == 1 else FIGURES[2:]
        found += [
            f"{who}: {name} {row[name]:.1f}, {judge} {other[name]:.1f}"
            for name in names
            if abs(row[name] - other[name]) > share * other[name]
        ]
        if row["tokens"] != row["requests"] * OUTPUT_TOKENS:
            found.append(f"{who}: {row['tokens']:g} tokens in {row['requests']:g} requests")
    return found


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    tokenizer = folder / "tokenizer"
    subprocess.run(
        [*COMMAND, "model", "tokenizer", options.model, str(tokenizer)], check=True, stdout=subprocess.DEVNULL
    )
    vocabulary = len(json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"])
    zero = ("row_ns", "prefill_token_ns", "context_token_ns")
    flags = [
        f"--set=engine.step_cost.base_ns={options.step_ms * 1e6}",
        f"--set=engine.vocabulary={vocabulary}",
    ]
    flags += [f"--set=engine.step_cost.{name}=0" for name in zero]
    rows: list[dict[str, Any]] = []
    with replica("--engine", "sim", "--policy", "fcfs", *flags) as server:
        program = options.gateway.absolute() / "bin" / "smg"
        with gateway(program, tokenizer, [server.target]) as front:
            clients: dict[str, Callable[[int, int], Figures]] = {
                "bench": lambda callers, requests: ours(server.target, "executor", callers, requests),
                "bench, facade": lambda callers, requests: ours(server.target, "facade", callers, requests),
            }
            clients["http"] = lambda callers, requests: http(front, callers, requests)
            for name, run in (("aiperf", aiperf), ("guidellm", guidellm)):
                venv = getattr(options, name)
                if venv is not None:
                    clients[name] = lambda callers, requests, run=run, venv=venv: run(
                        venv.absolute(), front.port, tokenizer, callers, requests, folder
                    )
            for callers in map(int, options.callers.split(",")):
                for name, client in clients.items():
                    rows.append(
                        {"client": name, "callers": callers, **client(callers, options.requests * callers)}
                    )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gateway", type=Path, required=True, help="environment with smg")
    parser.add_argument("--aiperf", type=Path, help="environment with aiperf")
    parser.add_argument("--guidellm", type=Path, help="environment with guidellm")
    parser.add_argument("--model", default="smollm2", help="whose tokenizer the gateway uses")
    parser.add_argument("--callers", default="1,4", help="numbers of callers")
    parser.add_argument("--requests", type=int, default=12, help="of each caller")
    parser.add_argument("--step-ms", type=float, default=200.0)
    parser.add_argument(
        "--agree", type=float, default=0.0, help="exit 1 when figures differ by more than this"
    )
    parser.add_argument("--tries", type=int, default=1, help="runs until the figures agree, at most")
    parser.add_argument("--json", action="store_true", help="one line")
    options = parser.parse_args()
    for _ in range(options.tries):  # a machine that does other things too spoils a run
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(options, Path(folder))
        differ = disagreements(rows, options.agree) if options.agree else []
        if not differ:
            break
    if options.json:
        print(
            json.dumps({"benchmark": "clients", "step_ms": options.step_ms, "rows": rows, "differ": differ})
        )
    else:
        for row in rows:
            print(
                "  ".join(
                    f"{name} {one:.1f}" if isinstance(one, float) else f"{name} {one}"
                    for name, one in row.items()
                )
            )
        print(*differ, sep="\n")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
