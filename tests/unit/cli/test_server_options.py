"""From the configuration to what the server wants: classes of objectives, and the name that gateways show."""

from __future__ import annotations

import pytest

from superinfer_trt import config
from superinfer_trt.build.service import server_options
from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND


def test_a_class_takes_from_everybody_what_it_leaves_out() -> None:
    classes = {"gold": {"ttft_ms": 500, "tbt_ms": 50}, "batch": {"tbt_ms": 1000}}
    made = server_options(config.load(None, {"service.slo_classes": classes, "scheduling.ttft_slo_ms": 4000}))
    assert made.default_slo == Slo(4000 * MILLISECOND, 100 * MILLISECOND)
    assert made.slo_classes == {
        "gold": Slo(500 * MILLISECOND, 50 * MILLISECOND),
        "batch": Slo(4000 * MILLISECOND, 1000 * MILLISECOND),
    }


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        ({"Gold": {}}, "slo_classes.Gold"),
        ({"a.b": {}}, "slo_classes.a.b"),
        ({"gold": {"ttft_ms": 0}}, "slo_classes.gold.ttft_ms"),
        ({"gold": {"ttft": 5}}, "slo_classes.gold.ttft"),
    ],
)
def test_a_class_that_cannot_be_is_refused(classes: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        config.load(None, {"service.slo_classes": classes})


def test_gateways_show_what_serve_was_told() -> None:
    assert server_options(config.load(None, {"model.name": "smollm2"})).model_name == "smollm2"
    assert server_options(config.load(None, {"engine.name": "sim"})).model_name == ""
    assert not server_options(config.load(None, {"service.facade": False})).facade
