"""Typed reading of one JSON object; what is wrong is refused with the name of the field. Pure, thread-safe.

A field that is null counts as left out, as OpenAI's clients write it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from superinfer_trt.core.errors import RefusalCode, Refused

UINT32_MAX = (1 << 32) - 1


def refuse(field: str, message: str, code: RefusalCode = RefusalCode.INVALID) -> NoReturn:
    """Raises Refused."""
    raise Refused(code, field, message)


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`, strictly: UTF-8, no NaN, no field twice. Raises Refused."""
    try:
        value = json.loads(
            data.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_object_of_pairs
        )
    except UnicodeDecodeError as error:
        refuse("", f"the line is not UTF-8 (byte {error.start})")
    except RecursionError:
        refuse("", "the line is nested too deeply")
    except ValueError as error:
        refuse("", f"the line is not JSON: {str(error)[:200]}")
    if not isinstance(value, dict):
        refuse("", "the line is not a JSON object")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _object_of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice[:64]!r} is there twice")
    return made


class Fields:
    """One object whose fields are taken one by one; `end` refuses what nobody took."""

    def __init__(self, values: Mapping[str, Any], prefix: str = "") -> None:
        self._left = {name: value for name, value in values.items() if value is not None}
        self._prefix = prefix

    def name(self, field: str) -> str:
        """`field` as the caller knows it."""
        return f"{self._prefix}{field}"

    def take(self, field: str) -> Any:
        """The value as it stands; None if left out."""
        return self._left.pop(field, None)

    def text(self, field: str) -> str | None:
        value = self.take(field)
        return None if value is None else checked_text(value, self.name(field))

    def flag(self, field: str) -> bool:
        """False if left out."""
        value = self.take(field)
        if value is not None and not isinstance(value, bool):
            refuse(self.name(field), f"must be true or false, not {shown(value)}")
        return bool(value)

    def number(self, field: str) -> float | None:
        value = self.take(field)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            refuse(self.name(field), f"must be a number, not {shown(value)}")
        try:
            made = float(value)
        except OverflowError:
            made = math.inf
        if not math.isfinite(made):
            refuse(self.name(field), "is too large")
        return made

    def whole(self, field: str, low: int = 0, high: int = UINT32_MAX) -> int | None:
        value = self.take(field)
        return None if value is None else checked_whole(value, self.name(field), low, high)

    def objects(self, field: str) -> Fields | None:
        """A nested object."""
        value = self.take(field)
        if value is None:
            return None
        if not isinstance(value, dict):
            refuse(self.name(field), f"must be an object, not {shown(value)}")
        return Fields(value, f"{self.name(field)}.")

    def ignore(self, *fields: str) -> None:
        """What may be anything, for it changes no result."""
        for field in fields:
            self._left.pop(field, None)

    def neutral(self, field: str, *allowed: Any) -> None:
        """A field that this service cannot heed: refused unless it asks for nothing."""
        value = self.take(field)
        if value is None or any(type(value) is type(one) and value == one for one in allowed):
            return
        leave = f"; leave it out or give {json.dumps(allowed[0])}" if allowed else "; leave it out"
        refuse(self.name(field), f"{shown(value)} cannot be done here{leave}", RefusalCode.UNSUPPORTED)

    def end(self) -> None:
        """Raises Refused for the first field that is left."""
        for field in self._left:
            refuse(self.name(field[:64]), "is not known here; leave it out", RefusalCode.UNSUPPORTED)


def each(value: list[Any], name: str, check: Callable[[Any, str], Any]) -> list[Any]:
    """The items of a list, each by `check(item, its name)`."""
    return [check(item, f"{name}[{at}]") for at, item in enumerate(value)]


def checked_text(value: Any, name: str) -> str:
    """Raises Refused for what is no string, or no Unicode (a lone surrogate)."""
    if not isinstance(value, str):
        refuse(name, f"must be a string, not {shown(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        refuse(name, "is not valid Unicode")
    return value


def checked_whole(value: Any, name: str, low: int = 0, high: int = UINT32_MAX) -> int:
    """Raises Refused for what is no whole number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int):
        refuse(name, f"must be a whole number, not {shown(value)}")
    if not low <= value <= high:
        refuse(name, f"must be {low} to {high}, not {shown(value)}")
    return value


def shown(value: Any) -> str:
    """A value in a message, short."""
    text = str(value) if isinstance(value, int) and abs(value) < 1 << 64 else _dumped(value)
    return text if len(text) <= 64 else f"{text[:61]}..."


def _dumped(value: Any) -> str:
    try:
        return json.dumps(value)[:80]
    except (ValueError, RecursionError):  # a whole number of thousands of digits
        return f"a value of the type {type(value).__name__}"
