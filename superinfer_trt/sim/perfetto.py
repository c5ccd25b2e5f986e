"""A run as a Chrome trace (ui.perfetto.dev opens it): requests by phase, both lanes, the engine.

Phases are noted after each turn, so a change shows when the executor learned of it. Slices are named by
phase, which is what the viewer colours by. Memory grows with the run. One thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, TextIO

from superinfer_trt.core.phase import Phase
from superinfer_trt.core.step import Batch, Copy, Direction
from superinfer_trt.core.units import Nanos, RequestId, Ticket
from superinfer_trt.core.view import Candidate
from superinfer_trt.sim.clock import SimClock

ENGINE, LANES, REQUESTS = 1, 2, 3
"""The viewer's processes: one group of tracks each."""

_LANE = {Direction.D2H: 1, Direction.H2D: 2}


class RunTrace:
    """Takes notes while a world runs; `write` at its end."""

    def __init__(self, clock: SimClock) -> None:
        self._clock = clock
        self._slices: list[dict[str, Any]] = []
        self._phases: dict[RequestId, tuple[Phase, Nanos]] = {}
        self._requests: set[RequestId] = set()
        self._flying: dict[Ticket, tuple[Direction, int, Nanos]] = {}
        self._lane_free: dict[Direction, Nanos] = dict.fromkeys(Direction, 0)

    def batch(self, batch: Batch, start: Nanos, end: Nanos) -> None:
        """The engine runs `batch` from `start` to `end`."""
        prefill = [len(row.tokens) for row in batch.rows if len(row.tokens) > 1 or not row.start]
        args = {"turn": batch.turn, "decodes": len(batch.rows) - len(prefill), "prefill_tokens": sum(prefill)}
        self._slice(ENGINE, 1, "prefill" if prefill else "decode", start, end, args)

    def submitted(self, ticket: Ticket, direction: Direction, copy: Copy) -> None:
        """A copy was handed to the link."""
        self._flying[ticket] = (direction, len(copy.source), self._clock.now())

    def landed(self, tickets: Iterable[Ticket]) -> None:
        """Copies have landed by now: one slice a lane, from its first start to now."""
        now = self._clock.now()
        found: dict[Direction, list[tuple[int, Nanos]]] = {}
        for ticket in tickets:
            direction, blocks, since = self._flying.pop(ticket)
            found.setdefault(direction, []).append((blocks, since))
        for direction, groups in found.items():
            start = max(self._lane_free[direction], min(since for _, since in groups))
            args = {"groups": len(groups), "blocks": sum(blocks for blocks, _ in groups)}
            self._slice(LANES, _LANE[direction], direction.value, start, now, args)
            self._lane_free[direction] = now

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

    def write(self, file: TextIO) -> None:
        """The trace as JSON."""
        file.write('{"displayTimeUnit":"ms","traceEvents":[\n')
        for event in self._names():
            file.write(json.dumps(event) + ",\n")
        lines = (json.dumps(event) for event in self._slices)
        file.write(",\n".join(lines))
        file.write("\n]}\n")

    def _phase(self, id: RequestId, phase: Phase, since: Nanos, now: Nanos) -> None:
        self._requests.add(id)
        self._slice(REQUESTS, id + 1, phase.value, since, now, {"request": id})

    def _slice(
        self, group: int, track: int, name: str, start: Nanos, end: Nanos, args: dict[str, Any]
    ) -> None:
        times = {"ts": start / 1000, "dur": (end - start) / 1000}
        self._slices.append({"ph": "X", "pid": group, "tid": track, "name": name, **times, "args": args})

    def _names(self) -> Iterable[dict[str, Any]]:
        for group, name in ((ENGINE, "engine"), (LANES, "link"), (REQUESTS, "requests")):
            yield {"ph": "M", "pid": group, "name": "process_name", "args": {"name": name}}
        tracks = [(ENGINE, 1, "steps"), *((LANES, at, d.value) for d, at in _LANE.items())]
        tracks += [(REQUESTS, id + 1, f"request {id}") for id in sorted(self._requests)]
        for group, track, name in tracks:
            yield {"ph": "M", "pid": group, "tid": track, "name": "thread_name", "args": {"name": name}}
