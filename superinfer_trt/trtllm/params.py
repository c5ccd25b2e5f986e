"""`SloSchedulingParams`: a request's objectives on their way through TensorRT-LLM.

    llm.generate_async(prompt, scheduling_params=SloSchedulingParams(ttft_slo_s=1.0, tbt_slo_s=0.05))

A subclass of upstream's SchedulingParams, made when it is first asked for, so that this module can be
imported without tensorrt_llm; it pickles by its name here. Upstream broadcasts the object to every rank.
"""

from __future__ import annotations

import math
from dataclasses import make_dataclass
from typing import Any

from superinfer_trt.core.errors import ConfigError, RefusalCode, Refused
from superinfer_trt.trtllm.compat import open_package

NAME = "SloSchedulingParams"
OBJECTIVES = ("ttft_slo_s", "tbt_slo_s")


def scheduling_params_class(base: Any) -> type:
    """The subclass of `base`. Its fields, all keywords: `ttft_slo_s`, `tbt_slo_s` (seconds > 0 or None, the
    server's default) and `tenant`. It raises Refused for an objective that is none."""

    def check(self: Any) -> None:
        inherited = getattr(base, "__post_init__", None)
        if inherited is not None:
            inherited(self)
        for field_name in OBJECTIVES:
            seconds = getattr(self, field_name)
            valid = isinstance(seconds, (int, float)) and math.isfinite(seconds) and seconds > 0
            if seconds is not None and not valid:
                raise Refused(RefusalCode.INVALID, field_name, f"{seconds!r} is not a time > 0 s")

    fields: list[tuple[str, Any, Any]] = [(name, float | None, None) for name in OBJECTIVES]
    fields.append(("tenant", str | None, None))
    made = make_dataclass(
        NAME, fields, bases=(base,), namespace={"__post_init__": check, "__module__": __name__}, kw_only=True
    )
    made.__module__ = __name__
    return made


def __getattr__(name: str) -> Any:
    if name != NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    base = open_package().names.get("scheduling parameters")
    if base is None:
        raise ConfigError("trtllm: this tensorrt_llm has no SchedulingParams")
    globals()[NAME] = made = scheduling_params_class(base)
    return made
