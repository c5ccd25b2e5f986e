"""The sandbox that chat templates run in: Jinja2's immutable one, with its work bounded.

Jinja2's sandbox keeps a template from reaching Python, not from running for ever or from filling the
memory. Here every loop turn and macro call costs a step, and whatever makes a string (output, `~`, `+`,
`*`, `replace`, `join`, any filter) is charged by its length before it is made. Knows no model. The budget
belongs to the thread that renders, so one environment serves many threads.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

STEPS_MAX = 100_000
CHARACTERS_MAX = 16_000_000
INTEGER_BITS_MAX = 256

_FILTERS = frozenset(
    """abs attr batch capitalize count d default dictsort e escape first float groupby int items join last
    length list lower map max min reject rejectattr replace reverse round safe select selectattr slice sort
    string sum title tojson trim unique upper""".split()  # noqa: SIM905 - a list of words reads better
)
"""Filters that make nothing much larger than what they are given; the others can and are refused."""

_TEXT_METHODS = frozenset(
    """capitalize casefold count endswith find index isalnum isalpha isdecimal isdigit islower isnumeric
    isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex
    rpartition rsplit rstrip split splitlines startswith strip swapcase title upper""".split()  # noqa: SIM905
)


class Budget:
    """What one rendering may still use."""

    def __init__(self) -> None:
        self._steps = STEPS_MAX
        self._characters = CHARACTERS_MAX

    def step(self) -> None:
        self._steps -= 1
        if self._steps < 0:
            raise SecurityError(f"it takes more than {STEPS_MAX} steps")

    def charge(self, characters: int) -> None:
        self._characters -= characters
        if self._characters < 0:
            raise SecurityError(f"it makes more than {CHARACTERS_MAX} characters")


_budget: ContextVar[Budget] = ContextVar("_budget")


@contextmanager
def metered() -> Iterator[None]:
    """A fresh budget for what is compiled or rendered inside, on this thread."""
    token = _budget.set(Budget())
    try:
        yield
    finally:
        _budget.reset(token)


def _charge(*values: Any) -> None:
    """Charges the lengths of those `values` that have one."""
    budget = _budget.get()
    for value in values:
        if isinstance(value, (str, list, tuple, dict, range)):
            budget.charge(len(value))


class _Meter(Extension):
    """What the rewritten template calls; named by no template, so none can replace it."""

    def step(self, characters: int) -> str:
        _budget.get().step()
        _budget.get().charge(characters)
        return ""

    def concat(self, *values: Any) -> str:
        texts = [str(value) for value in values]
        _charge(*texts)
        return "".join(texts)


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's words for training; here it is only its body."""

    tags = {"generation"}  # noqa: RUF012 - declared a plain set by the base class

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Rewriter(NodeTransformer):
    """Puts a step at the head of each loop and macro, and counts what `~` joins."""

    def _stepped(self, node: Any) -> nodes.Node:
        node = self.generic_visit(node)
        constants = (*node.find_all(nodes.TemplateData), *node.find_all(nodes.Const))
        characters = sum(
            len(c.data if isinstance(c, nodes.TemplateData) else str(c.value)) for c in constants
        )
        call = _meter("step", [nodes.Const(characters)])
        node.body.insert(0, nodes.ExprStmt(call))
        assert isinstance(node, nodes.Node)
        return node

    visit_For = visit_Macro = visit_CallBlock = _stepped  # noqa: N815 - the visitor's own names

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        return _meter("concat", [self.visit(child) for child in node.nodes])


def _meter(method: str, arguments: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.ExtensionAttribute(_Meter.identifier, method), arguments, [], None, None)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Compiles and runs chat templates; use inside `metered()`."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[LoopControlExtension, _GenerationBlock, _Meter],
            finalize=_counted,
            cache_size=0,
        )
        self.globals.pop("lipsum", None)
        self.globals["raise_exception"] = _raise_exception
        self.filters["tojson"] = _tojson
        for name, function in list(self.filters.items()):
            self.filters[name] = _guarded(function) if name in _FILTERS else _refuser(name)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = _Rewriter().visit(super()._parse(source, name, filename))
        assert isinstance(tree, nodes.Template)
        tree.set_lineno(1)
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr not in _TEXT_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is not None:
            raise SecurityError("str.format is not available to a chat template")
        return None

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        whole = [value for value in (left, right) if isinstance(value, int)]
        if any(value.bit_length() > INTEGER_BITS_MAX for value in whole):
            raise SecurityError(f"a number of more than {INTEGER_BITS_MAX} bits")
        if operator == "**" and (not isinstance(right, (int, float)) or abs(right) > INTEGER_BITS_MAX):
            raise SecurityError(f"an exponent above {INTEGER_BITS_MAX}")
        if operator == "%" and isinstance(left, str):
            raise SecurityError("string formatting with % is not available to a chat template")
        if operator == "+":
            _charge(left, right)
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, (str, list, tuple)) and isinstance(times, int):
                    _budget.get().charge(len(value) * max(times, 0))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805, PYI063
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            _charge_text_method(owner, getattr(__obj, "__name__", ""), args)
        return super().call(__context, __obj, *args, **kwargs)


def _charge_text_method(owner: str, name: str, arguments: tuple[Any, ...]) -> None:
    _charge(owner)
    if name == "replace" and len(arguments) > 1:
        _charge_replace(owner, arguments[0], arguments[1])
    elif name == "join" and arguments:
        _charge_join(arguments[0], owner)


def _charge_replace(text: Any, old: Any, new: Any) -> None:
    found = str(text).count(str(old))
    _budget.get().charge(found * len(str(new)))


def _charge_join(values: Any, separator: Any) -> None:
    if isinstance(values, (list, tuple, str, dict, range)):
        _charge(*values)
        _budget.get().charge(len(values) * len(str(separator)))


def _counted(value: Any) -> Any:
    """Every expression that is put out passes here (Jinja2's `finalize`)."""
    if isinstance(value, Undefined):
        return value
    text = str(value)
    _charge(text)
    return text


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, charged by what it is given, and for `join` and `replace` by what it will make."""
    behind = 1 if hasattr(function, "jinja_pass_arg") else 0
    name = function.__name__

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        given = args[behind:]
        _budget.get().step()
        _charge(*given)
        if name == "do_replace" and len(given) > 2:
            _charge_replace(*given[:3])
        if name in ("do_join", "sync_do_join"):
            values = given[0] if isinstance(given[0], (list, tuple, str, dict, range)) else list(given[0])
            given = (values, *given[1:])
            _charge_join(values, given[1] if len(given) > 1 else kwargs.get("d", ""))
        return function(*args[:behind], *given, **kwargs)

    return run


def _refuser(name: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise SecurityError(f"the filter {name!r} is not available to a chat template")

    return refuse


def _raise_exception(message: str) -> None:
    raise TemplateRuntimeError(message)


def _tojson(
    value: Any,
    *,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Hugging Face's `tojson`: no HTML escapes, and characters as they are."""
    if indent is not None and not 0 <= indent <= 16:
        raise SecurityError("tojson: indent is not 0 to 16")
    if separators is not None and sum(len(part) for part in separators) > 16:
        raise SecurityError("tojson: separators are longer than 16 characters")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
