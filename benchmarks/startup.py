"""From nothing to the first token: `import superinfer_trt`, and a server until it has answered, in one run.

Each is a fresh process. A server's times are from its exec to its ready line, and to the first token of a
request sent as soon as that is read. With --model, what opening the model's files takes by itself (weights
and tokenizer) is told beside: it is the part of the start that the model decides. The best of the rounds
counts; starts take turns.

    python benchmarks/startup.py [--json] [--rounds 5] [--model smollm2]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

import grpc

from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceStub

COMMAND = [sys.executable, "-c", "from superinfer_trt.cli.main import main; main()", "serve", "--port", "0"]
OPENING = """
import sys, time
from superinfer_trt.engine.native import NativeEngine
from superinfer_trt.model.open import open_model
from superinfer_trt.transfer.pools import allocate_pool
began = time.perf_counter()
opened = open_model(sys.argv[1])
pool = allocate_pool(8, opened.weights.config.geometry(16, 2).block_bytes)
NativeEngine(opened.weights, pool, block_tokens=16).close()
print(time.perf_counter() - began)
"""


def import_ms() -> float:
    """Of the package, as the interpreter itself tells it."""
    command = [sys.executable, "-X", "importtime", "-c", "import superinfer_trt"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    line = next(line for line in told.splitlines() if line.endswith("| superinfer_trt"))
    return int(line.split("|")[1]) / 1e3


def served(flags: list[str]) -> tuple[float, float]:
    """Seconds from exec until (the server says that it is ready, the first token is here)."""
    began = time.perf_counter()
    with subprocess.Popen(
        [*COMMAND, *flags], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            target = json.loads(server.stdout.readline())["target"]
            ready_s = time.perf_counter() - began
            request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1]), sampling=pb.Sampling(max_tokens=1))
            with grpc.insecure_channel(target) as channel:
                next(iter(ExecutorServiceStub(channel).Generate(request)))
                return ready_s, time.perf_counter() - began
        finally:
            server.terminate()


def opening_s(model: str) -> float:
    """Seconds to read the model and hand its weights to the engine, imports not counted."""
    told = subprocess.run([sys.executable, "-c", OPENING, model], capture_output=True, text=True, check=True)
    return float(told.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one line")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="", help="also the embedded engine with it")
    options = parser.parse_args()
    package, sim, native, opening = [], [], [], []
    for _ in range(options.rounds):
        package.append(import_ms())
        sim.append(served(["--engine", "sim"]))
        if options.model:
            native.append(served(["--engine", "native", "--model", options.model]))
            opening.append(opening_s(options.model))
    figures: dict[str, object] = {"benchmark": "startup", "load": os.getloadavg()}
    figures["import_ms"] = min(package)
    figures |= {"sim_ready_s": round(min(sim)[0], 2), "sim_first_token_s": round(min(s[1] for s in sim), 2)}
    if native:
        first, model = min(s[1] for s in native), min(opening)
        figures |= {"native_first_token_s": round(first, 2), "opening_the_model_s": round(model, 2)}
        figures["native_first_token_without_the_model_s"] = round(first - model, 2)
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:<44} {value}")


if __name__ == "__main__":
    main()
