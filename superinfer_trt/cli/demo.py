"""`superinfer-trt demo`: many clients, an HBM pool that holds a quarter of them, and what rotation gives.

Three servers, one after the other, get the same load: one whose HBM holds everybody, then `fcfs` and
`rotasched` with a quarter of it. Every output must be the same, token for token. Objectives follow from
this machine's own speed (the first run), so that the comparison means the same on any machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click

from superinfer_trt.cli.demo_view import Watcher, print_comparison
from superinfer_trt.cli.load import run_load
from superinfer_trt.cli.load_api import Answer
from superinfer_trt.cli.load_report import result, times_of
from superinfer_trt.cli.load_requests import Workload, due_times, schedule, synthetic_requests
from superinfer_trt.core.attainment import attainment
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceStub
from superinfer_trt.serve.security_client import open_channel
from superinfer_trt.sim.arrivals import Arrivals

SUBJECTS = (
    "why the sky is blue", "how bread rises", "the history of the bicycle", "how a lighthouse works",
    "why cats purr", "the rules of chess", "how rain forms", "what a compiler does", "how bees find home",
    "why ice floats", "the life of a star", "how to plant a tree", "what makes glass clear",
    "how a violin sounds", "why leaves turn red", "the first maps of the world", "how a bridge carries load",
    "what tides are", "how paper is made", "why we dream", "how a camera sees", "the story of tea",
    "how birds migrate", "what a battery does",
)  # fmt: skip

BRIEF = """You write for a small museum. Every exhibit has a card beside it, and the card for this one is
about {about}. Our visitors are families: children who ask three questions in one breath, parents who have
read a little, and grandparents who remember how it used to be. Begin with something that can be seen or
touched in the room. Then say what happens, step by step, in the order in which it happens, and name the one
thing that most people get wrong. Use short sentences. Do not use a word that a child of ten would have to
look up, unless you explain it at once. If there is a number that helps, give one number and no more, and
compare it with something from a kitchen, a street or a garden. Do not tell jokes, and do not say that a
thing is amazing: let the reader find that out. End with a question that the family can talk about on the way
home, and that has more than one good answer. Now write the card about {about}."""

ROTATIONS_MIN = 100
PARAMETERS = {"rotasched": ("alpha=0.5", "beta_ttft=0", "min_stint_tokens=8")}
"""The paper weighs the next token three times a first one, for pools of hundreds of requests. Here HBM
holds six, and a reader who waits for a first token is worse off than one who has read ahead."""
PROMPT_TOKENS_MAX = 288  # of BRIEF in chat form


@dataclass(frozen=True, slots=True)
class Run:
    """One server under the load."""

    name: str
    answers: list[Answer]
    figures: dict[str, Any]


@click.command("demo")
@click.option("--model", default="smollm2", show_default=True, help="Known model, file or folder.")
@click.option("--engine", default="native", show_default=True, help="native | pattern | sim.")
@click.option("--clients", type=click.IntRange(8, 1024), default=24, show_default=True, help="At once.")
@click.option("--tokens", type=click.IntRange(32, 2048), default=192, show_default=True, help="Of an answer.")
@click.option("--policy", default="rotasched", show_default=True, help="Compared with fcfs.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def demo(*, model: str, engine: str, clients: int, tokens: int, policy: str, as_json: bool) -> int:
    """Watch requests rotate: many clients, HBM for a quarter of them, three schedulers compared.

    Exit 1 when an output differs, when rotation did not happen, or when it did not help.
    """
    scene = _Scene(model, engine, clients, tokens, as_json)
    roomy = scene.run("HBM for all", "fcfs", scene.blocks_needed_max, slo_ms=None)
    slo_ms = objectives_ms(roomy.figures, tokens)
    needed = blocks_needed(roomy.answers, scene.block_tokens)
    quarter = max(needed // 4, scene.blocks_of_largest)
    roomy = Run(roomy.name, roomy.answers, scene.judged(roomy.answers, slo_ms, roomy.figures))
    fcfs = scene.run("fcfs, 1/4 HBM", "fcfs", quarter, slo_ms)
    rotating = scene.run(f"{policy}, 1/4 HBM", policy, quarter, slo_ms)
    report = compare(roomy, fcfs, rotating)
    report |= {"clients": clients, "blocks_needed": needed, "hbm_blocks": quarter}
    report |= {"ttft_slo_ms": slo_ms[0], "tbt_slo_ms": slo_ms[1]}
    if as_json:
        click.echo(json.dumps(report))
    else:
        print_comparison(report)
    return 0 if all(report["checks"].values()) else 1


def objectives_ms(figures: dict[str, Any], tokens: int) -> tuple[float, float]:
    """(TTFT, TBT) objectives from an unhindered run: a first token within 0.8 of its length, and a mean
    gap of at most six times its own."""
    wall_s = float(figures["wall_s"])
    return round(800 * wall_s, 1), round(6_000 * wall_s / tokens, 1)


def blocks_needed(answers: list[Answer], block_tokens: int) -> int:
    """HBM blocks that would hold everybody to the last token."""
    total = 0
    for answer in answers:
        assert answer.ending is not None
        usage = answer.ending.usage
        total += -(-(usage.prompt_tokens + usage.output_tokens) // block_tokens)
    return total


def compare(roomy: Run, fcfs: Run, rotating: Run) -> dict[str, Any]:
    """The three runs side by side, and what must hold."""
    expected = [answer.token_ids for answer in roomy.answers]

    def same(run: Run) -> bool:
        return all(a.completed for a in run.answers) and [a.token_ids for a in run.answers] == expected

    checks = {
        "unrotated run completed": all(answer.completed for answer in roomy.answers),
        "fcfs gave the same tokens": same(fcfs),
        "rotation gave the same tokens": same(rotating),
        f"at least {ROTATIONS_MIN} rotations": rotating.figures["rotations"] >= ROTATIONS_MIN,
        "TTFT attainment is higher": rotating.figures["ttft_attainment"] > fcfs.figures["ttft_attainment"],
        "joint attainment is higher": rotating.figures["joint_mean"] > fcfs.figures["joint_mean"],
    }
    return {"checks": checks, "runs": {run.name: run.figures for run in (roomy, fcfs, rotating)}}


class _Scene:
    """The load, and how a server is started for it."""

    def __init__(self, model: str, engine: str, clients: int, tokens: int, quiet: bool) -> None:
        self.block_tokens = 16
        self._model, self._engine, self._tokens, self._quiet = model, engine, tokens, quiet
        self._clients = clients
        self.blocks_of_largest = -(-(tokens + PROMPT_TOKENS_MAX) // self.block_tokens)
        self.blocks_needed_max = clients * self.blocks_of_largest

    def run(self, name: str, policy: str, hbm_blocks: int, slo_ms: tuple[float, float] | None) -> Run:
        """Starts a server, sends the load, stops the server."""
        arguments = ["--model", self._model, "--engine", self._engine, "--policy", policy]
        arguments += ["--hbm-blocks", str(hbm_blocks), "--dram-blocks", str(self.blocks_needed_max)]
        arguments += ["--block-tokens", str(self.block_tokens)]
        for parameter in PARAMETERS.get(policy, ()):
            arguments += ["--policy-param", parameter]
        with server(arguments) as target, Watcher(target, name, self._clients, quiet=self._quiet) as watcher:
            info, before = _ask(target)
            arrivals = Arrivals(4.0 * self._clients, seed=0)
            workload = Workload(requests=self._clients, arrivals=arrivals)
            jobs = schedule(self._requests(info, slo_ms), due_times(workload), workload)
            answers = asyncio.run(run_load(target, jobs, 240, watcher.ended)).answers
            _, after = _ask(target)
            return Run(name, answers, result(answers, info, before, after))

    def judged(
        self, answers: list[Answer], slo_ms: tuple[float, float], figures: dict[str, Any]
    ) -> dict[str, Any]:
        """The same run against objectives that were not known when it ran."""
        for answer in answers:
            answer.job.request.slo.ttft_ms, answer.job.request.slo.tbt_ms = slo_ms
        judged = attainment(times_of(a, pb.GetModelInfoResponse()) for a in answers).as_dict()
        return {**figures, **judged}

    def _requests(
        self, info: pb.GetModelInfoResponse, slo_ms: tuple[float, float] | None
    ) -> list[pb.GenerateRequest]:
        """Questions to a model, or random ids where there is none; half of them sampled, each by its seed."""
        base = pb.GenerateRequest()
        if slo_ms is not None:
            base.slo.ttft_ms, base.slo.tbt_ms = slo_ms
        if not info.has_tokenizer:
            return synthetic_requests(
                base,
                info,
                self._clients,
                (PROMPT_TOKENS_MAX - 64, PROMPT_TOKENS_MAX - 8),
                (self._tokens, self._tokens),
            )
        made = []
        for index in range(self._clients):
            request = pb.GenerateRequest()
            request.CopyFrom(base)
            about = SUBJECTS[index % len(SUBJECTS)]
            request.chat.messages.add(role="user", content=BRIEF.format(about=about))
            request.sampling.max_tokens = self._tokens
            request.sampling.ignore_eos = True
            request.sampling.seed = index
            request.sampling.temperature = 0.7 if index % 2 else 0.0
            made.append(request)
        return made


@contextlib.contextmanager
def server(arguments: list[str]) -> Iterator[str]:
    """A server of its own process on a free port; gives its target, and stops it at the end."""
    # The same package that runs here, also when the working directory is a source tree of another one.
    start = f"import sys; sys.path[:] = {sys.path!r}; from superinfer_trt.cli.main import main; main()"
    command = [sys.executable, "-c", start, "serve", "--port", "0", *arguments]
    process = subprocess.Popen(  # noqa: S603  # our own interpreter and arguments
        command, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise click.ClickException("the server did not start; its own message is above")
        yield str(json.loads(line)["target"])
    finally:
        process.terminate()
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ask(target: str) -> tuple[pb.GetModelInfoResponse, pb.Stats]:
    with open_channel(target) as channel:
        stub = ExecutorServiceStub(channel)  # type: ignore[no-untyped-call]
        info: pb.GetModelInfoResponse = stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=10)
        return info, stub.GetStats(pb.GetStatsRequest(), timeout=10).stats
