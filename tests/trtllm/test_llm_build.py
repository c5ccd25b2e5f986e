"""From flags and a file of options to an LLM whose workers rotate; and each way in which that is refused."""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from superinfer_trt.build.llm import build_any_service, open_llm, service_maker, settings_of
from superinfer_trt.build.service import build_service
from superinfer_trt.build.trtllm import RotationSettings, read_settings
from superinfer_trt.cli import main as command
from superinfer_trt.config import Config, load
from superinfer_trt.core.errors import ConfigError, EngineFailed, ModelError
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND, SECOND
from superinfer_trt.trtllm.compat import PACKAGE
from superinfer_trt.trtllm.llm_compat import open_llm_names
from superinfer_trt.trtllm.llm_options import (
    base_arguments,
    check_options,
    complete_options,
    supported_sampling,
)
from superinfer_trt.trtllm.llm_request import NATIVE_SAMPLER
from superinfer_trt.trtllm.slo import ServiceTerms
from superinfer_trt.trtllm_startup import SINGLE_PROCESS_VARIABLE, VARIABLE
from support.trtllm import llm as fake
from support.trtllm.llm_worker import Heard, fake_llm_modules, install_modules

MODEL_FILE = {
    "model_type": "fake",
    "vocab_size": 256,
    "max_position_embeddings": 2048,
    "num_attention_heads": 4,
    "hidden_size": 64,
    "eos_token_id": 7,
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment without our startup file or variables, and a model in it."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(MODEL_FILE))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    for name in (VARIABLE, SINGLE_PROCESS_VARIABLE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def upstream(place: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The fake package, installed."""
    modules = fake_llm_modules()
    install_modules(monkeypatch, modules)
    return modules


def configured(place: Path, options: str | None = None, **flags: Any) -> Config:
    given = {name.replace("__", "."): value for name, value in flags.items()}
    if options is not None:
        (place / "options.yaml").write_text(options)
        given["trtllm.options"] = str(place / "options.yaml")
    return load(None, {"engine.name": "trtllm", "model.name": str(place / "model"), **given})


def refusal(config: Config, error: type[Exception] = ConfigError) -> str:
    with pytest.raises(error) as caught:
        open_llm(config)
    assert os.environ.get(VARIABLE) is None, "what failed leaves nothing switched on"
    return str(caught.value)


# -- options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"kv_cache_config": {"enable_block_reuse": True}},
            "kv_cache_config.enable_block_reuse: true (false",
        ),
        ({"kv_cache_config": {"max_attention_window": [512, 4096]}}, "[512, 4096] (one attention window"),
        ({"kv_cache_config": {"use_kv_cache_manager_v2": True}}, "use_kv_cache_manager_v2: true (false"),
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size: 2 (1;"),
        ({"context_parallel_size": 2}, "context_parallel_size: 2 (1;"),
        ({"enable_attention_dp": True}, "enable_attention_dp: true (false;"),
        ({"max_beam_width": 4}, "max_beam_width: 4 (1)"),
        (
            {"speculative_config": {"decoding_type": "Eagle"}},
            "speculative_config: {'decoding_type': 'Eagle'}",
        ),
        ({"kv_connector_config": {}}, "kv_connector_config: {} (leave it out)"),
        ({"cache_transceiver_config": {}}, "cache_transceiver_config: {} (leave it out"),
        ({"backend": "tensorrt"}, "backend: 'tensorrt' (pytorch)"),
        ({"num_postprocess_workers": 2}, "num_postprocess_workers: 2 (0:"),
        ({"scheduler_config": {"use_python_scheduler": True}}, "scheduler_config.use_python_scheduler"),
        ({"enable_chunked_prefill": False}, "enable_chunked_prefill: false (true, or max_num_tokens >="),
    ],
)
def test_what_rotation_cannot_have_is_refused_with_its_remedy(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_options(options, "file.yaml")
    assert str(caught.value).startswith("file.yaml: rotation cannot be turned on: ")
    assert words in str(caught.value)


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check_options({"max_beam_width": 2, "pipeline_parallel_size": 4}, "f")
    assert "max_beam_width" in str(caught.value)
    assert "pipeline_parallel_size" in str(caught.value)


def test_what_an_option_may_be() -> None:
    check_options({}, "f")
    sizes = {"max_num_tokens": 600, "max_seq_len": 512, "max_batch_size": 64}
    check_options({"enable_chunked_prefill": False, **sizes}, "f")
    with pytest.raises(ConfigError):
        check_options({"enable_chunked_prefill": False, **sizes, "max_seq_len": 537}, "f")
    check_options(
        {
            "backend": "pytorch",
            "pipeline_parallel_size": 1,
            "kv_cache_config": {"enable_block_reuse": False, "max_attention_window": [4096, 4096]},
            "scheduler_config": {"capacity_scheduler_policy": "MAX_UTILIZATION"},
            "enable_attention_dp": None,
        },
        "f",
    )


def test_what_rotation_needs_is_added_where_nothing_is_said() -> None:
    given = {"kv_cache_config": {"dtype": "fp8"}}
    assert complete_options(given, statistics=True) == {
        "kv_cache_config": {"enable_block_reuse": False, "dtype": "fp8"},
        "enable_chunked_prefill": True,
        "enable_iter_perf_stats": True,
    }
    assert given == {"kv_cache_config": {"dtype": "fp8"}}
    assert "backend" not in complete_options({"backend": "pytorch"}, statistics=True)
    mine = {"enable_iter_perf_stats": False, "enable_chunked_prefill": True}
    assert complete_options(mine, statistics=True)["enable_iter_perf_stats"] is False
    assert "enable_iter_perf_stats" not in complete_options({}, statistics=False)


def test_only_what_the_sampler_does_is_offered() -> None:
    assert supported_sampling({}) == supported_sampling({"sampler_type": "TorchSampler"}) == frozenset()
    assert supported_sampling({"sampler_type": "TRTLLMSampler"}) == NATIVE_SAMPLER
    assert supported_sampling({"enable_trtllm_sampler": True}) == NATIVE_SAMPLER
    assert "min_tokens" not in NATIVE_SAMPLER


def test_flags_and_file_may_not_contradict() -> None:
    def base(**options: Any) -> dict[str, Any]:
        return base_arguments(options, model="m", tensor_parallel=2, source="f")

    assert base() == base(model="m", tensor_parallel_size=2) == {"model": "m", "tensor_parallel_size": 2}
    with pytest.raises(ConfigError, match="f: tensor_parallel_size is 4, --tp says 2"):
        base(tensor_parallel_size=4)
    with pytest.raises(ConfigError, match="f: model is 'other', --model says 'm'"):
        base(model="other")
    file_only = base_arguments({"tensor_parallel_size": 4}, model="m", tensor_parallel=1, source="f")
    assert file_only == {"model": "m"}


# -- putting it together -----------------------------------------------------------------------------


def test_an_llm_is_made_with_rotation_asked_for(place: Path, upstream: dict[str, ModuleType]) -> None:
    config = configured(
        place,
        "max_seq_len: 1024\nmax_batch_size: 48\nkv_cache_config: {dtype: fp8}\n",
        scheduling__policy="rotasched",
        scheduling__parameters={"alpha": 2},
        scheduling__ttft_slo_ms=1500,
        trtllm__dram_gib=0.5,
        trtllm__spare_blocks=3,
    )
    opened = open_llm(config)
    try:
        (llm,) = fake.LLM.made
        assert llm.args.kv_cache_config == {"enable_block_reuse": False, "dtype": "fp8"}
        assert (llm.args.model, llm.args.enable_chunked_prefill) == (str(place / "model"), True)
        settings = read_settings(Path(os.environ[VARIABLE]))
        terms = ServiceTerms(Slo(1500 * MILLISECOND, 100 * MILLISECOND))
        assert settings == RotationSettings("rotasched", {"alpha": 2}, 1 << 29, 0, 3, terms)
        assert settings == settings_of(config)
        assert os.environ[SINGLE_PROCESS_VARIABLE] == "1", "nothing would reach a worker elsewhere"
        served = opened.served
        assert (served.vocabulary, served.context_tokens_max, served.policy) == (256, 1024, "rotasched")
        assert served.model is not None
        assert (served.model.name, served.model.architecture) == ("model", "fake")
        assert served.model.stop_ids == {7}
        assert served.tokenizer is None
        assert (served.limits.seats, served.limits.device_blocks) == (48, 32)
    finally:
        opened.close()
    assert VARIABLE not in os.environ
    assert fake.LLM.made[0]._executor is None
    opened.close()


def test_workers_elsewhere_are_used_once_something_reaches_them(
    place: Path, upstream: dict[str, ModuleType]
) -> None:
    (place / "superinfer_trt_startup.pth").write_text("import superinfer_trt.trtllm_startup\n")
    opened = open_llm(configured(place, engine__tp=2, scheduling__seats=16))
    try:
        (llm,) = fake.LLM.made
        assert (llm.args.tensor_parallel_size, llm.args.enable_iter_perf_stats) == (2, True)
        assert SINGLE_PROCESS_VARIABLE not in os.environ
        assert read_settings(Path(os.environ[VARIABLE])).seats == 16
    finally:
        opened.close()


def test_a_service_is_made_and_closed(place: Path, upstream: dict[str, ModuleType]) -> None:
    heard = Heard()
    with ExitStack() as stack:
        service = service_maker(configured(place), stack)(heard)
        assert (service.engine, service.policy) == ("trtllm", "rota-slack")
        assert service.driver.alive
        service.close()
        assert not service.driver.alive
    assert fake.LLM.made[0]._executor is None


def test_any_engine_is_built_by_one_call(place: Path, upstream: dict[str, ModuleType]) -> None:
    for config in (configured(place), load(None, {"engine.name": "sim"})):
        service = build_any_service(config, Heard())
        assert service.engine == config.engine.name
        assert service.driver.alive
        service.close()
        service.close()
        assert not service.driver.alive
    with pytest.raises(ConfigError, match="trtllm is not embedded"):
        build_service(configured(place), Heard())


def test_what_means_nothing_here_is_said(
    place: Path, upstream: dict[str, ModuleType], caplog: pytest.LogCaptureFixture
) -> None:
    open_llm(configured(place, pools__hbm_blocks=64, scheduling__depth=1, scheduling__seats=4)).close()
    assert "the engine trtllm has its own: pools.hbm_blocks, scheduling.depth (see" in caplog.text


def test_stop_ids_are_those_of_generation(place: Path, upstream: dict[str, ModuleType]) -> None:
    (place / "model" / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    (place / "model" / "config.json").write_text(json.dumps({"text_config": MODEL_FILE}))
    opened = open_llm(configured(place))
    opened.close()
    assert opened.served.model is not None
    assert opened.served.model.stop_ids == {7, 9}
    assert opened.served.vocabulary == 256


# -- refusals ----------------------------------------------------------------------------------------


def test_no_tensorrt_llm(place: Path) -> None:
    told = refusal(configured(place))
    assert "tensorrt_llm is not installed" in told
    assert "pip install 'superinfer-trt[trtllm]'" in told


def test_another_release(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_modules(monkeypatch, fake_llm_modules("1.3.0"))
    told = refusal(configured(place))
    assert "version: 1.3.0, expected 1.2.x (install tensorrt_llm>=1.2,<1.3" in told
    assert fake.LLM.made == []


def test_an_llm_without_scheduling_parameters(
    place: Path, upstream: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Narrow(fake.LLM):
        def generate_async(self, inputs: Any, sampling_params: Any = None) -> Any: ...  # type: ignore[override]

    monkeypatch.setattr(upstream[PACKAGE], "LLM", Narrow)
    told = refusal(configured(place))
    assert "LLM.generate_async: parameters: missing: streaming, scheduling_params" in told


def test_the_real_names_are_all_looked_for(upstream: dict[str, ModuleType]) -> None:
    names = open_llm_names()
    assert [finding.line() for finding in names.findings if finding.ok is not True] == []
    assert names.merge({"a": 1}, {"a": 2, "b": 3}) == {"a": 2, "b": 3}
    bare = open_llm_names(lambda name: ModuleType(name))
    assert [finding.what for finding in bare.findings if finding.ok is False] == [
        "LLM",
        "sampling parameters",
    ]
    assert bare.merge({"a": 1}, {"a": 2}) == {"a": 2}


def test_options_are_refused_before_a_model_is_loaded(place: Path, upstream: dict[str, ModuleType]) -> None:
    assert "max_beam_width: 2 (1)" in refusal(configured(place, "max_beam_width: 2"))
    assert "recomputes instead of rotating" in refusal(configured(place, scheduling__policy="fcfs"))
    told = refusal(configured(place, engine__tp=2))
    assert told.startswith("engine.tp: 2 ranks are processes of their own")
    assert "superinfer-trt trtllm enable" in told
    assert fake.LLM.made == []


def test_an_argument_that_upstream_does_not_know(place: Path, upstream: dict[str, ModuleType]) -> None:
    told = refusal(configured(place, "max_sequence: 5"))
    assert told.startswith(f"{place / 'options.yaml'}: TensorRT-LLM refuses its arguments: ")
    assert "max_sequence" in told


@pytest.mark.parametrize("text", ["- 1", "a: [", "1: 2", "\x00"])
def test_a_file_that_is_none(place: Path, text: str) -> None:
    assert refusal(configured(place, text)).startswith(f"trtllm.options: {place / 'options.yaml'} ")
    (place / "options.yaml").unlink()
    missing = load(None, {"engine.name": "trtllm", "trtllm.options": str(place / "options.yaml")})
    assert "cannot be read" in refusal(missing)


def test_what_a_worker_refuses_is_the_users_to_mend(
    place: Path, upstream: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(arguments: Any) -> Any:
        raise RuntimeError("Executor worker returned error") from ConfigError("trtllm: dram_bytes 1 is less")

    monkeypatch.setattr(fake.LLM, "backend_of", staticmethod(dies))
    assert refusal(configured(place)) == "trtllm: dram_bytes 1 is less"

    def breaks(arguments: Any) -> Any:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(fake.LLM, "backend_of", staticmethod(breaks))
    assert refusal(configured(place), EngineFailed) == "TensorRT-LLM did not come up: CUDA out of memory"


def test_a_model_that_is_not_there(place: Path, upstream: dict[str, ModuleType]) -> None:
    (place / "model" / "config.json").unlink()
    assert "no folder with its config.json" in refusal(configured(place), ModelError)
    (place / "model" / "config.json").write_text("{}")
    assert "no vocab_size" in refusal(configured(place), ModelError)
    assert [llm._executor for llm in fake.LLM.made] == [None, None], "what was made has been ended"


def test_another_settings_file_in_the_environment(
    place: Path, upstream: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "/etc/mine.yaml")
    with pytest.raises(ConfigError, match=r"SUPERINFER_TRTLLM names /etc/mine\.yaml"):
        open_llm(configured(place))
    assert os.environ[VARIABLE] == "/etc/mine.yaml"


def test_the_command_says_it_in_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["serve", "--engine", "trtllm", "--model", str(place / "model"), "--port", "0"]
    assert command.run(arguments) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("error: trtllm: tensorrt_llm is not installed")
    assert "\n" not in told
    options = place / "options.yaml"
    options.write_text("max_beam_width: 4\n")
    assert command.run([*arguments, "--trtllm-options", str(options)]) == 2
    assert "max_beam_width: 4 (1)" in capsys.readouterr().err
    assert command.run([*arguments, "--tp", "2"]) == 2
    assert "superinfer-trt trtllm enable" in capsys.readouterr().err


def test_objectives_default_to_the_configurations() -> None:
    assert settings_of(load(None, {"engine.name": "trtllm"})).terms.slo == Slo(5 * SECOND, 100 * MILLISECOND)
