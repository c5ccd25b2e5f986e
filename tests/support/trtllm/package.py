"""The fake as a package: modules under TensorRT-LLM's names, for whoever looks names up there."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from superinfer_trt.trtllm.compat import PACKAGE, PYEXECUTOR, Package, open_package
from support.trtllm import executor, request, resources, scheduling


@dataclass(kw_only=True, slots=True)
class SchedulingParams:
    attention_dp_rank: int | None = None
    attention_dp_relax: bool | None = None


def executor_request_to_llm_request(req_id: int, executor_request: object) -> request.LlmRequest:
    """Upstream's conversion; it forgets the scheduling parameters."""
    return request.LlmRequest(req_id, [1, 2, 3], 4)


def fake_modules(version: str = "1.2.1") -> dict[str, ModuleType]:
    """Module name -> module, as an import would find them."""
    contents: dict[str, dict[str, object]] = {
        PACKAGE: {"__version__": version},
        f"{PACKAGE}.scheduling_params": {"SchedulingParams": SchedulingParams},
        f"{PYEXECUTOR}.scheduler": {
            name: getattr(scheduling, name)
            for name in ("SchedulerOutput", "RequestScheduler", "CapacityScheduler", "SimpleScheduler")
        },
        f"{PYEXECUTOR}.resource_manager": {
            "BaseResourceManager": resources.ResourceBase,
            "ResourceManager": resources.ResourceChain,
            "ResourceManagerType": resources.Types,
            "KVCacheManager": resources.KvCacheOwner,
        },
        f"{PYEXECUTOR}.llm_request": {"LlmRequestState": request.LlmRequestState},
        f"{PYEXECUTOR}.py_executor": {"PyExecutor": executor.PyExecutor},
        f"{PYEXECUTOR}.executor_request_queue": {
            "executor_request_to_llm_request": executor_request_to_llm_request
        },
    }
    made = {}
    for name, attributes in contents.items():
        made[name] = ModuleType(name)
        vars(made[name]).update(attributes)
    return made


def open_fake_package(modules: dict[str, ModuleType] | None = None) -> Package:
    """What `open_package` says of the fake."""
    found = fake_modules() if modules is None else modules

    def importer(name: str) -> ModuleType:
        if name not in found:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return found[name]

    return open_package(importer)
