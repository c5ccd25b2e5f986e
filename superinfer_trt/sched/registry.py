"""The policies by name. The one place that lists them; knows nothing of configuration files.

Thread promise: none needed, nothing here changes after import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, TypeAlias

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.sched.fcfs import Fcfs, FcfsParameters
from superinfer_trt.sched.rota_slack import RotaSlack, RotaSlackParameters
from superinfer_trt.sched.rotasched import RotaSched, RotaSchedParameters
from superinfer_trt.sched.swapped_first import SwappedFirst, SwappedFirstParameters
from superinfer_trt.sched.waiting_first import WaitingFirst, WaitingFirstParameters

AnyPolicy: TypeAlias = RotaSched | RotaSlack | Fcfs | WaitingFirst | SwappedFirst


@dataclass(frozen=True, slots=True)
class Entry:
    """A policy's class and the class of its parameters."""

    policy: type[Any]
    parameters: type[Any]


POLICIES: Mapping[str, Entry] = MappingProxyType(
    {
        RotaSched.name: Entry(RotaSched, RotaSchedParameters),
        RotaSlack.name: Entry(RotaSlack, RotaSlackParameters),
        Fcfs.name: Entry(Fcfs, FcfsParameters),
        WaitingFirst.name: Entry(WaitingFirst, WaitingFirstParameters),
        SwappedFirst.name: Entry(SwappedFirst, SwappedFirstParameters),
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
