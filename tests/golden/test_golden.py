"""Golden scripts: a small scene in plain text, and one line a turn of what the executor made of it.

`pytest --rewrite` writes the lines anew; the review reads the difference. The grammar is in scene().
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from superinfer_trt.core.geometry import Geometry
from superinfer_trt.core.phase import Phase
from superinfer_trt.core.plan import parse_line
from superinfer_trt.core.request import FinishReason, Request, Sampling
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND, RequestId
from superinfer_trt.core.view import Limits
from superinfer_trt.engine.modelled import ModelledEngine, StepCost
from superinfer_trt.sched.registry import make_policy
from support.links import PollLink
from support.world import Box, BoxClock

SCRIPTS = sorted(Path(__file__).parent.glob("*.txt"))
RULE = "----\n"


@dataclass
class Scene:
    """What a script sets up."""

    policy: str = "rotasched"
    depth: int = 1
    device: int = 8
    host: int = 16
    block: int = 4
    seats: int = 4
    tokens: int = 32
    step_ms: int = 10
    land: int = 1
    stint: int = 0  # min_stint_tokens of rotasched
    requests: list[Request] = field(default_factory=list)
    cancels: list[tuple[int, RequestId]] = field(default_factory=list)


def scene(text: str) -> Scene:
    """Lines of `word number` settings; `request NAME prompt P limit L [at T] [ttft T] [tbt T]` (a, b, c, ...
    in order; times in ms); `cancel NAME at T`. A line that starts with # says why."""
    made = Scene()
    for line in text.splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] == "request":
            given = dict(zip(words[2::2], words[3::2], strict=True))
            slo = Slo(
                int(given.get("ttft", "5000")) * MILLISECOND, int(given.get("tbt", "100")) * MILLISECOND
            )
            made.requests.append(
                Request(
                    RequestId(ord(words[1]) - ord("a")),
                    tuple(range(int(given["prompt"]))),
                    Sampling(max_tokens=int(given["limit"])),
                    slo,
                    arrival=int(given.get("at", "0")) * MILLISECOND,
                )
            )
        elif words[0] == "cancel":
            made.cancels.append((int(words[3]) * MILLISECOND, RequestId(ord(words[1]) - ord("a"))))
        elif words[0] == "policy":
            made.policy = words[1]
        else:
            for name, value in zip(words[::2], words[1::2], strict=True):
                assert hasattr(made, name), f"unknown setting {name}"
                setattr(made, name, int(value))
    return made


def play(made: Scene) -> str:
    """Runs the scene on the production executor; one line a turn, then one line a request."""
    parameters = {"min_stint_tokens": made.stint} if made.stint else {}
    policy = make_policy(made.policy, **parameters)
    limits = Limits(made.tokens, made.seats, made.block, made.device, made.host if policy.rotates else 0)
    clock = BoxClock()
    geometry = Geometry(layers=1, kv_heads=1, head_dim=8, element_bytes=2, block_tokens=made.block)
    cost = StepCost(made.step_ms * MILLISECOND, 0, 0, 0)
    engine = ModelledEngine(clock, geometry, cost, vocabulary=1_000)
    box = Box(policy, engine, PollLink(made.land), limits, depth=made.depth, clock=clock)
    lines: list[str] = []

    def each_turn(box: Box) -> None:
        while made.cancels and made.cancels[0][0] <= box.clock.time:
            box.inbox.cancel(made.cancels.pop(0)[1], FinishReason.CANCELLED)
        for line in box.lines[len(lines) :]:
            lines.append(readable(line, box, made))

    made.cancels.sort()
    result = box.run(made.requests, turns_max=2_000, each_turn=each_turn)
    for id, ending in sorted(result.endings.items()):
        times = f"first {ms(ending.first_token)} last {ms(ending.last_token)}"
        lines.append(
            f"{letter(id)} {ending.reason.value} {ending.output_tokens} tokens, {times}, "
            f"{ending.rotations} rotations, {ending.evictions} evictions"
            + (f": {ending.message}" if ending.message else "")
        )
    return "\n".join(lines) + "\n"


def readable(line: str, box: Box, made: Scene) -> str:
    """A plan line with letters for ids, and the pools after the turn."""
    plan = parse_line(line)
    assert plan.line() == line
    parts = [
        ("admit", " ".join(letter(id) for id in plan.admit)),
        ("prefill", " ".join(f"{letter(c.id)}:{c.start}+{c.length}" for c in plan.prefill)),
        ("decode", " ".join(letter(id) for id in plan.decode)),
        ("out", " ".join(letter(id) for id in plan.rotate_out)),
        ("in", " ".join(letter(id) for id in plan.rotate_in)),
        ("sync", " ".join(f"{letter(s.id)}:{s.first}+{s.count}" for s in plan.sync)),
        ("evict", " ".join(letter(id) for id in plan.evict)),
        ("reject", " ".join(letter(r.id) for r in plan.reject)),
    ]
    told = "  ".join(f"{name} {text}" for name, text in parts if text)
    device = made.device - box.ledger.device_free
    rotary = [letter(s.id) for s in box.executor.live if s.phase is Phase.ROTARY]
    away = f" rotary {' '.join(rotary)}" if rotary else ""
    return f"{plan.turn:>3} {ms(plan.now):>6}  {told:<44} | hbm {device}/{made.device}{away}"


def letter(id: int) -> str:
    return chr(ord("a") + id)


def ms(now: int) -> str:
    return f"{now // MILLISECOND}ms" if now >= 0 else "never"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script(path: Path, golden) -> None:
    text = path.read_text().split(RULE)[0]
    golden(path, text + RULE + play(scene(text)))


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) >= 6
