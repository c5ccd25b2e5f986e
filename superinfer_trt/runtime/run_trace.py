"""A run as a Chrome trace (ui.perfetto.dev opens it): turns, requests by phase, both lanes, the engine.

Phases are noted after each turn, so a change shows when the executor learned of it. Slices are named by
phase, which is what the viewer colours by. Times are shown from `origin` on. Memory grows with the run, up to
`slices_max`; what comes later is counted and not kept. One thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from superinfer_trt.core.phase import Phase
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.ports import Clock
from superinfer_trt.core.step import Batch, Copy, Direction, Row
from superinfer_trt.core.units import Nanos, RequestId, Ticket
from superinfer_trt.core.view import Candidate

SCHEDULER, ENGINE, LANES, REQUESTS = 1, 2, 3, 4
"""The viewer's processes: one group of tracks each."""

_LANE = {Direction.D2H: 1, Direction.H2D: 2}


class RunTrace:
    """Takes notes while an executor or a world runs; `write` at its end."""

    def __init__(self, clock: Clock, origin: Nanos = 0, slices_max: int | None = None) -> None:
        self._clock = clock
        self._origin = origin
        self._slices_max = slices_max
        self._slices: list[dict[str, Any]] = []
        self._phases: dict[RequestId, tuple[Phase, Nanos]] = {}
        self._requests: set[RequestId] = set()
        self._flying: dict[Ticket, tuple[Direction, int, Nanos]] = {}
        self._lane_free: dict[Direction, Nanos] = dict.fromkeys(Direction, 0)
        self.dropped = 0

    def plan(self, plan: Plan, start: Nanos, planned: Nanos, applied: Nanos) -> None:
        """A turn was decided and applied."""
        args = {
            "turn": plan.turn,
            "decode": len(plan.decode),
            "prefill": len(plan.prefill),
            "admit": len(plan.admit),
            "rotate_out": len(plan.rotate_out),
            "rotate_in": len(plan.rotate_in),
            "evict": len(plan.evict),
        }
        self._slice(SCHEDULER, 1, "plan", start, planned, args)
        self._slice(SCHEDULER, 1, "apply", planned, applied, {"turn": plan.turn})

    def batch(self, batch: Batch, start: Nanos, end: Nanos) -> None:
        """The engine runs `batch` from `start` to `end`."""
        self.step(batch.turn, batch.rows, start, end)

    def step(self, turn: int, rows: Iterable[Row], start: Nanos, end: Nanos) -> None:
        """The same, row by row."""
        known = list(rows)
        prefill = [len(row.tokens) for row in known if len(row.tokens) > 1 or not row.start]
        args = {"turn": turn, "decodes": len(known) - len(prefill), "prefill_tokens": sum(prefill)}
        self._slice(ENGINE, 1, "prefill" if prefill else "decode", start, end, args)

    def submitted(self, ticket: Ticket, direction: Direction, copy: Copy) -> None:
        """A copy was handed to the link."""
        self._flying[ticket] = (direction, len(copy.source), self._clock.now())

    def landed(self, tickets: Iterable[Ticket]) -> None:
        """Copies have landed by now: one slice a lane, from its first start to now."""
        now = self._clock.now()
        found: dict[Direction, list[tuple[int, Nanos]]] = {}
        for ticket in tickets:
            flight = self._flying.pop(ticket, None)
            if flight is not None:  # else it was submitted before anybody took notes
                direction, blocks, since = flight
                found.setdefault(direction, []).append((blocks, since))
        for direction, groups in found.items():
            start = max(self._lane_free[direction], min(since for _, since in groups))
            args = {"groups": len(groups), "blocks": sum(blocks for blocks, _ in groups)}
            self._slice(LANES, _LANE[direction], direction.value, start, now, args)
            self._lane_free[direction] = now

    def begin(self, live: Iterable[Candidate]) -> None:
        """Notes the phases of those who live already; their slices start now."""
        now = self._clock.now()
        self._phases = {one.id: (one.phase, now) for one in live}

    def look(self, live: Iterable[Candidate]) -> None:
        """Notes every request whose phase has changed. O(live)."""
        now = self._clock.now()
        here: set[RequestId] = set()
        for one in live:
            here.add(one.id)
            phase, since = self._phases.get(one.id, (None, one.arrival))
            if phase is not one.phase:
                if phase is not None:
                    self._phase(one.id, phase, since, now)
                elif one.phase is not Phase.WAITING:
                    self._phase(one.id, Phase.WAITING, one.arrival, now)
                    since = now
                self._phases[one.id] = (one.phase, since if phase is None else now)
        for id in [id for id in self._phases if id not in here]:
            phase_then, since = self._phases.pop(id)
            self._phase(id, phase_then, since, now)

    def finish(self) -> None:
        """Ends the slices of those who still live."""
        now = self._clock.now()
        for id, (phase, since) in self._phases.items():
            self._phase(id, phase, since, now)
        self._phases.clear()

    def pieces(self) -> Iterator[str]:
        """The trace as JSON, a line at a time."""
        yield '{"displayTimeUnit":"ms","traceEvents":[\n'
        between = ""
        for event in (*self._names(), *self._slices):
            yield f"{between}{json.dumps(event)}"
            between = ",\n"
        yield f'\n],"otherData":{{"dropped_slices":{self.dropped}}}}}\n'

    def write(self, file: TextIO) -> None:
        """The trace as JSON."""
        file.writelines(self.pieces())

    def _phase(self, id: RequestId, phase: Phase, since: Nanos, now: Nanos) -> None:
        self._requests.add(id)
        self._slice(REQUESTS, id + 1, phase.value, since, now, {"request": id})

    def _slice(
        self, group: int, track: int, name: str, start: Nanos, end: Nanos, args: dict[str, Any]
    ) -> None:
        if self._slices_max is not None and len(self._slices) >= self._slices_max:
            self.dropped += 1
            return
        start = max(start, self._origin)
        times = {"ts": (start - self._origin) / 1000, "dur": (end - start) / 1000}
        self._slices.append({"ph": "X", "pid": group, "tid": track, "name": name, **times, "args": args})

    def _names(self) -> Iterable[dict[str, Any]]:
        groups = ((SCHEDULER, "scheduler"), (ENGINE, "engine"), (LANES, "link"), (REQUESTS, "requests"))
        for group, name in groups:
            yield {"ph": "M", "pid": group, "name": "process_name", "args": {"name": name}}
        tracks = [(SCHEDULER, 1, "turns"), (ENGINE, 1, "steps")]
        tracks += [(LANES, at, direction.value) for direction, at in _LANE.items()]
        tracks += [(REQUESTS, id + 1, f"request {id}") for id in sorted(self._requests)]
        for group, track, name in tracks:
            yield {"ph": "M", "pid": group, "tid": track, "name": "thread_name", "args": {"name": name}}
