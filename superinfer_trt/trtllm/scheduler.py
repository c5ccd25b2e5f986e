"""RotaCapacityScheduler: what TensorRT-LLM's SimpleScheduler asks who may run.

The seam is the 3-tuple of upstream's capacity schedulers, the same in every release seen. Duck-typed: no
import of tensorrt_llm. One thread: the loop's.
"""

from __future__ import annotations

from collections.abc import Sequence

from superinfer_trt.trtllm.rotation import Rotation
from superinfer_trt.trtllm.upstream import UpstreamRequest

Requests = list[UpstreamRequest]


class RotaCapacityScheduler:
    """Stands where upstream's BindCapacityScheduler stood; its micro-batch scheduler stays."""

    def __init__(self, rotation: Rotation) -> None:
        self._rotation = rotation

    def schedule_request(
        self, active_requests: Sequence[UpstreamRequest]
    ) -> tuple[Requests, Requests, Requests]:
        """(fitting, disaggregated inits, paused). Nobody is ever paused: upstream would drop all its KV and
        compute it again. Who rotates is left out."""
        return self._rotation.schedule(active_requests), [], []
