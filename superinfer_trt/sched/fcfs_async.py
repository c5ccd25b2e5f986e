"""`fcfs-async`: `fcfs` in an engine that plans one step while another runs.

Decides exactly as `fcfs` does. Whether planning adds to a step is a property of the run (depth 1 or 2 of
the executor), not of a plan; the name is there so that the gain of a pipelined engine is reported as its
own baseline and not credited to rotation.

Source: vLLM V1's scheduler, as `fcfs`, with asynchronous scheduling. Stateless, any thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from superinfer_trt.sched.fcfs import Fcfs


@dataclass(frozen=True, slots=True)
class FcfsAsyncParameters:
    """It has none."""


class FcfsAsync(Fcfs):
    """The policy; see the module."""

    name = "fcfs-async"

    def __init__(self, parameters: FcfsAsyncParameters | None = None) -> None:
        super().__init__()
        self.parameters: FcfsAsyncParameters = parameters or FcfsAsyncParameters()  # type: ignore[assignment]
