"""How a value out of a model file appears in a message: as a literal on one line, and short."""

from __future__ import annotations

SHOWN_CHARACTERS_MAX = 80


def shown(value: object) -> str:
    """`repr(value)`, its middle left out when it is long; a file may hold a name of any length."""
    if isinstance(value, str):
        value = value[: 2 * SHOWN_CHARACTERS_MAX]  # never the repr of a gigabyte
    text = repr(value)
    if len(text) <= SHOWN_CHARACTERS_MAX:
        return text
    half = SHOWN_CHARACTERS_MAX // 2 - 2
    return f"{text[:half]}...{text[-half:]}"
