"""How we come into a worker: a moment before its loop starts, in whatever process that is.

Workers are fresh processes, so nothing patched in their parent reaches them. What reaches them is an import:
`on_import` runs a function right after a module was executed, and `wrap_start_worker` runs one each time an
executor is about to start that is not the throw-away one which measures memory. Both change upstream's
objects and nothing else. Knows no policy, ledger or link. Imports nothing heavy.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

OnStart = Callable[[Any], None]
_WRAPPED = "__superinfer_wrapped__"


class _AfterExecution(Loader):
    """Another loader, and a function to call when it is done."""

    def __init__(self, loader: Loader, then: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._then = then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._then(module)

    def __getattr__(self, name: str) -> Any:  # resources, source: whatever the real one has
        return getattr(self._loader, name)


class _Watch(MetaPathFinder):
    """Finds one module the way all others are found, and wraps its loader."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._then = then
        self._busy = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if fullname != self._name or self._busy:
            return None
        self._busy = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._busy = False
        if spec is not None and spec.loader is not None:
            spec.loader = _AfterExecution(spec.loader, self._then)
        return spec


def on_import(name: str, then: Callable[[ModuleType], None]) -> None:
    """Calls `then(module)` once `name` is imported: now, if it is already."""
    module = sys.modules.get(name)
    if module is not None:
        then(module)
    else:
        sys.meta_path.insert(0, _Watch(name, then))


def wrap_start_worker(executor_class: Any, on_start: OnStart) -> None:
    """`on_start(executor)` before each start of a loop that is not a warm-up; what it raises ends the start.
    A class is wrapped once."""
    original = executor_class.start_worker
    if getattr(original, _WRAPPED, False):
        return

    @functools.wraps(original)
    def start_worker(self: Any, *arguments: Any, **options: Any) -> Any:
        if not getattr(self, "is_warmup", False):
            on_start(self)
        return original(self, *arguments, **options)

    setattr(start_worker, _WRAPPED, True)
    executor_class.start_worker = start_worker


def keep_scheduling_parameters(conversion: Any, modules: Sequence[ModuleType]) -> None:
    """Upstream's conversion of a client's request forgets its scheduling parameters; wherever `modules` have
    it, it is replaced by one that hands them on, to the children of the request too."""
    if getattr(conversion, _WRAPPED, False):
        return

    @functools.wraps(conversion)
    def converted(*arguments: Any, **options: Any) -> Any:
        request = conversion(*arguments, **options)
        asked = options.get("executor_request", arguments[1] if len(arguments) > 1 else None)
        parameters = getattr(asked, "py_scheduling_params", None)
        if parameters is not None:
            for one in (request, *(getattr(request, "child_requests", None) or ())):
                one.py_scheduling_params = parameters
        return request

    setattr(converted, _WRAPPED, True)
    for module in modules:
        for name, value in list(vars(module).items()):
            if value is conversion:
                setattr(module, name, converted)
