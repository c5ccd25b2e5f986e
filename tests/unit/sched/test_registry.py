from __future__ import annotations

import pytest

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.sched.registry import POLICIES, make_policy
from superinfer_trt.sched.rotasched import RotaSchedParameters

ROTATING = ("rotasched", "rota-slack", "artifact", "waiting-first", "swapped-first", "ltr")
STAYING = ("fcfs", "fcfs-async", "fcfs-cap", "sarathi", "lightllm", "trt-no-evict", "trt-max-util", "neo")


def test_names() -> None:
    assert list(POLICIES) == [*ROTATING, *STAYING]
    for name in POLICIES:
        assert make_policy(name).name == name
        assert make_policy(name).rotates == (name in ROTATING)


def test_defaults_are_the_papers() -> None:
    parameters = make_policy("rotasched").parameters
    assert parameters == RotaSchedParameters(alpha=3, beta_ttft=0.5, beta_tbt=0, transfer_blocks=None)
    assert make_policy("rotasched", alpha=1).parameters == RotaSchedParameters(alpha=1)


def test_an_unknown_policy_is_told_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'lvf' is unknown; known: rotasched, rota-slack, artifact, wait"):
        make_policy("lvf")


def test_an_unknown_parameter_is_told_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'beta' is unknown; known: alpha, beta_ttft"):
        make_policy("rotasched", beta=1)
    with pytest.raises(ConfigError, match="'alpha' is unknown; known: none"):
        make_policy("fcfs", alpha=1)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("rotasched", "alpha", 0),
        ("rotasched", "alpha", float("nan")),
        ("rotasched", "beta_ttft", float("inf")),
        ("rotasched", "transfer_blocks", 0),
        ("rotasched", "transfer_blocks", "many"),
        ("rotasched", "min_stint_tokens", 0),
        ("rotasched", "eager_sync", "yes"),
        ("rota-slack", "step_share", 0),
        ("rota-slack", "step_share", 1.0),
        ("rota-slack", "guard_s", 4.0),
        ("rota-slack", "lost_s", -1),
        ("rota-slack", "late_share", 1),
        ("rota-slack", "patience", float("nan")),
        ("rota-slack", "length_weight_ms", -1),
        ("rota-slack", "prefill_tokens_min", 0),
        ("rota-slack", "min_stint_tokens", 1.5),
        ("rota-slack", "transfer_blocks", 0),
        ("rota-slack", "eager_sync", 1),
        ("rota-slack", "weights", ["a"]),
        ("rota-slack", "weights", {"a": 0}),
        ("artifact", "transfer_blocks", 0),
        ("fcfs-cap", "step_share", 0.0),
        ("fcfs-cap", "prefill_tokens_min", 0),
        ("sarathi", "chunk_tokens", 0),
        ("lightllm", "history", 5),
        ("lightllm", "history", [0]),
        ("lightllm", "draws", 0),
        ("lightllm", "reserve", 1),
        ("ltr", "noise", -1),
        ("ltr", "watermark", 1),
        ("ltr", "seed", 0.5),
        ("waiting-first", "watermark", -0.1),
        ("swapped-first", "watermark", 1.0),
    ],
)
def test_a_bad_value_names_its_field(name: str, field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        make_policy(name, **{field: value})
