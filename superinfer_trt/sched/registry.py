"""The policies by name. The one place that lists them; knows nothing of configuration files.

Thread promise: none needed, nothing here changes after import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, TypeAlias

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.sched.artifact import Artifact, ArtifactParameters
from superinfer_trt.sched.fcfs import Fcfs, FcfsParameters
from superinfer_trt.sched.fcfs_async import FcfsAsync, FcfsAsyncParameters
from superinfer_trt.sched.fcfs_cap import FcfsCap, FcfsCapParameters
from superinfer_trt.sched.lightllm import LightLlm, LightLlmParameters
from superinfer_trt.sched.ltr import Ltr, LtrParameters
from superinfer_trt.sched.neo import Neo, NeoParameters
from superinfer_trt.sched.rota_slack import RotaSlack, RotaSlackParameters
from superinfer_trt.sched.rotasched import RotaSched, RotaSchedParameters
from superinfer_trt.sched.sarathi import Sarathi, SarathiParameters
from superinfer_trt.sched.swapped_first import SwappedFirst
from superinfer_trt.sched.trt_max_utilization import TrtMaxUtilization, TrtMaxUtilizationParameters
from superinfer_trt.sched.trt_no_evict import TrtNoEvict, TrtNoEvictParameters
from superinfer_trt.sched.waiting_first import WaitingFirst, WatermarkParameters

AnyPolicy: TypeAlias = (
    RotaSched
    | RotaSlack
    | Artifact
    | Fcfs
    | FcfsAsync
    | FcfsCap
    | Sarathi
    | WaitingFirst
    | SwappedFirst
    | LightLlm
    | TrtNoEvict
    | TrtMaxUtilization
    | Ltr
    | Neo
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A policy's class and the class of its parameters."""

    policy: type[Any]
    parameters: type[Any]


POLICIES: Mapping[str, Entry] = MappingProxyType(
    {
        RotaSched.name: Entry(RotaSched, RotaSchedParameters),
        RotaSlack.name: Entry(RotaSlack, RotaSlackParameters),
        Artifact.name: Entry(Artifact, ArtifactParameters),
        WaitingFirst.name: Entry(WaitingFirst, WatermarkParameters),
        SwappedFirst.name: Entry(SwappedFirst, WatermarkParameters),
        Ltr.name: Entry(Ltr, LtrParameters),
        Fcfs.name: Entry(Fcfs, FcfsParameters),
        FcfsAsync.name: Entry(FcfsAsync, FcfsAsyncParameters),
        FcfsCap.name: Entry(FcfsCap, FcfsCapParameters),
        Sarathi.name: Entry(Sarathi, SarathiParameters),
        LightLlm.name: Entry(LightLlm, LightLlmParameters),
        TrtNoEvict.name: Entry(TrtNoEvict, TrtNoEvictParameters),
        TrtMaxUtilization.name: Entry(TrtMaxUtilization, TrtMaxUtilizationParameters),
        Neo.name: Entry(Neo, NeoParameters),
    }
)


def make_policy(name: str, **parameters: object) -> AnyPolicy:
    """The policy called `name`, with its own defaults for parameters not given.

    Raises ConfigError for an unknown name or parameter (it lists the known ones) or a bad value.
    """
    entry = POLICIES.get(name)
    if entry is None:
        raise ConfigError(f"policy: {name!r} is unknown; known: {', '.join(POLICIES)}")
    known = [field.name for field in fields(entry.parameters)]
    for parameter in parameters:
        if parameter not in known:
            listed = ", ".join(known) or "none"
            raise ConfigError(f"policy {name}: parameter {parameter!r} is unknown; known: {listed}")
    policy: AnyPolicy = entry.policy(entry.parameters(**parameters))
    return policy
