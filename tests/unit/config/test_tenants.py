"""The section of tenants, and what the composition root makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from superinfer_trt import config
from superinfer_trt.build.service import policy_of, quotas_of
from superinfer_trt.config import load
from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.request import Request, Sampling
from superinfer_trt.core.units import RequestId
from superinfer_trt.sched.rota_slack import RotaSlack

YAML = """
tenants:
  default: {weight: 2, requests_max: 5}
  named:
    acme/prod: {weight: 4, tokens_max: 1000, blocks_max: 60}
    guest: {requests_max: 1}
"""


def test_it_is_read_and_written_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(YAML)
    made = load(path, {"tenants.named.guest.tokens_max": 64})
    assert (made.tenants.default.weight, made.tenants.default.requests_max) == (2.0, 5)
    assert made.tenants.named["guest"].tokens_max == 64
    assert made.tenants.named["acme/prod"].requests_max is None  # nothing is taken from the default
    path.write_text(config.dump(made))
    assert load(path) == made


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"tenants.named.a.weight": 0}, ["tenants.named.a.weight", "0.001"]),
        ({"tenants.default.requests_max": 0}, ["tenants.default.requests_max", "1"]),
        ({"tenants.named.a.tokens": 1}, ["unknown field", "tokens_max", "requests_max", "weight"]),
        ({"tenants.acme": 1}, ["tenants.acme", "unknown field", "default, named"]),
        ({"tenants.named": {"a b": {}}}, ["tenants.named", "pattern"]),
        ({"engine.name": "trtllm", "service.shed": "certain"}, ["service.shed: certain", "not trtllm"]),
        (
            {"engine.name": "trtllm", "tenants.named": {"a": {"weight": 2}}},
            ["tenants: weights", "not trtllm"],
        ),
        ({"service.shed": "maybe"}, ["service.shed", "'off' or 'certain'"]),
    ],
)
def test_refusals_name_field_and_limit(flags: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, flags)
    for word in words:
        assert word in str(caught.value)


def test_weights_go_to_the_policy_as_shares_of_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(YAML)
    policy = policy_of(load(path))
    assert isinstance(policy, RotaSlack)
    assert policy.parameters.weights == {"acme/prod": 2.0, "guest": 0.5}
    equal = load(None, {"tenants.named": {"a": {"weight": 3}}, "tenants.default.weight": 3})
    assert policy_of(equal).parameters == RotaSlack().parameters


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"scheduling.policy": "fcfs"}, "weights are unknown to fcfs"),
        ({"scheduling.parameters": {}, "scheduling.policy": "rotasched"}, "unknown to rotasched"),
    ],
)
def test_weights_need_a_policy_that_knows_them(flags: dict[str, object], words: str) -> None:
    made = load(None, {"tenants.named": {"a": {"weight": 3}}, **flags})
    with pytest.raises(ConfigError, match=words):
        policy_of(made)
    assert policy_of(load(None, flags)).name == flags["scheduling.policy"]


def test_quotas_are_those_of_the_section(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(YAML)
    quotas = quotas_of(load(path), 16)

    def refusal(tenant: str, tokens: int) -> str:
        request = Request(RequestId(0), (1,), Sampling(max_tokens=tokens), tenant=tenant)
        return str(quotas.refusal(request))

    assert refusal("acme/prod", 900) == "None"
    assert "blocks_max of tenants.named.acme/prod is 60" in refusal("acme/prod", 970)  # 16 tokens a block
    assert "tokens_max of tenants.named.acme/prod is 1000" in refusal("acme/prod", 1000)
    for id in range(5):
        quotas.take(Request(RequestId(id), (1,), tenant="else"))
    assert "requests_max of tenants.default is 5" in refusal("else", 1)
    assert refusal("another", 1) == "None"
