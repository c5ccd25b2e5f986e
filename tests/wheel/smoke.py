"""What a wheel must do in an environment that has nothing but the wheel and what it asks for.

    python -I tests/wheel/smoke.py --kernels yes|no

Run by check.py: the versions agree, the native modules are those of the wheel, the
copy kernels are in it or not, and a server rotates requests whose every block it verifies.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

FATBIN = b"\x50\xed\x55\xba"  # how an image of device code begins; names of kernels are in the host code too
REQUESTS, TOKENS = 12, 96
COMMAND = str(Path(sys.executable).with_name("superinfer-trt"))
SERVE = ["serve", "--engine", "pattern", "--hbm-blocks", "24", "--dram-blocks", "256", "--port", "0"]
POLICY = ["--policy", "rotasched", "--policy-param", "min_stint_tokens=8", "--policy-param", "beta_ttft=0"]


def told(*arguments: str) -> str:
    """What the command says."""
    return subprocess.run(
        [COMMAND, *arguments], check=True, capture_output=True, text=True, timeout=60
    ).stdout.strip()


def check_files(*, kernels: bool) -> None:
    """The modules are those of this environment; libduplexkv holds the copy kernels, or does not."""
    import superinfer_trt
    from superinfer_trt import _cpu_engine, _duplexkv

    folder = Path(superinfer_trt.__file__).parent
    assert folder.parent == Path(sysconfig.get_path("platlib")), folder
    for module in (_cpu_engine, _duplexkv):
        assert module.__file__ is not None
        assert Path(module.__file__).parent == folder, module.__file__
    assert (folder / "py.typed").is_file()
    held = FATBIN in (folder / "libduplexkv.so").read_bytes()
    assert held == kernels, f"copy kernels in libduplexkv.so: {held}, expected: {kernels}"


async def load(target: str) -> int:
    """Streams all requests at once; returns how many rotations that took."""
    import grpc

    from superinfer_trt.serve.pb import executor_pb2 as pb
    from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceStub

    async with grpc.aio.insecure_channel(target) as channel:
        stub = ExecutorServiceStub(channel)

        async def one(index: int) -> None:
            received = 0
            request = pb.GenerateRequest(
                token_ids=pb.TokenIds(ids=range(1, 40 + index)), sampling=pb.Sampling(max_tokens=TOKENS)
            )
            async for response in stub.Generate(request):
                received += len(response.delta.token_ids)
            assert response.ending.finish_reason == pb.FINISH_REASON_LENGTH, response.ending
            assert received == TOKENS, received

        await asyncio.gather(*(one(index) for index in range(REQUESTS)))
        stats = (await stub.GetStats(pb.GetStatsRequest())).stats
        return int(stats.rotations_out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", choices=("yes", "no"), required=True, help="whether there was an nvcc")
    options = parser.parse_args()
    check_files(kernels=options.kernels == "yes")
    assert told("--version").endswith(version("superinfer-trt"))
    assert json.loads(told("config", "show", "--json"))["pools"]["block_tokens"] == 16
    with subprocess.Popen([COMMAND, *SERVE, *POLICY], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            rotations = asyncio.run(load(json.loads(server.stdout.readline())["target"]))
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=60) == 0
        finally:
            server.kill()
    assert rotations > 0, "nobody rotated"
    sys.stdout.write(f"{version('superinfer-trt')}, kernels: {options.kernels}, {rotations} rotations\n")


if __name__ == "__main__":
    main()
