"""Colours, lines and markers: the same for a policy in every plot, readable without telling red from green.

Colours follow Okabe and Ito (2008) and Paul Tol's muted scheme, a lighter shade of each on dark ground.
Families share a hue and differ in marker and dash: what shares an engine looks alike. Pure, any thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

Dash: TypeAlias = tuple[float, tuple[float, ...]]

SOLID: Dash = (0, ())
DASHED: Dash = (0, (5, 2))
DOTTED: Dash = (0, (1.2, 1.8))
DASH_DOT: Dash = (0, (6, 2, 1.2, 2))


@dataclass(frozen=True, slots=True)
class Theme:
    """Ground and ink of a plot, as #rrggbb."""

    name: str
    ground: str
    ink: str
    faint: str
    grid: str

    @property
    def dark(self) -> bool:
        """Whether it is light on dark."""
        return self.name == "dark"


LIGHT = Theme("light", ground="#ffffff", ink="#1b1f24", faint="#6a737d", grid="#e4e7eb")
DARK = Theme("dark", ground="#161b22", ink="#e6edf3", faint="#8b949e", grid="#2d333b")


@dataclass(frozen=True, slots=True)
class Look:
    """How a policy is drawn. `light`, `dark`: its colour on either ground."""

    light: str
    dark: str
    marker: str
    dash: Dash = SOLID
    thick: bool = False

    def colour(self, theme: Theme) -> str:
        """On this ground."""
        return self.dark if theme.dark else self.light

    def pale(self, theme: Theme) -> str:
        """Halfway to the ground, opaque, so that no grid shows through."""
        pairs = zip(_parts(self.colour(theme)), _parts(theme.ground), strict=True)
        return "#" + "".join(f"{(ink + ground) // 2:02x}" for ink, ground in pairs)

    @property
    def width(self) -> float:
        """Of a line, in points."""
        return 2.6 if self.thick else 1.3


def _parts(colour: str) -> bytes:
    """Red, green and blue."""
    return bytes.fromhex(colour[1:])


_VERMILION, _BLUE, _SKY = ("#d55e00", "#ff8f3f"), ("#0072b2", "#4aa8e8"), ("#56a3d9", "#8cc8f0")
_GREY, _TEAL, _OLIVE = ("#5f6770", "#a8b0b9"), ("#2f8f80", "#5cc2b2"), ("#8a8a1f", "#c9c95c")
_ROSE, _PURPLE, _WINE = ("#c0566a", "#ee8fa0"), ("#8a4fa3", "#c993dd"), ("#882255", "#d96fa0")

LOOKS: Mapping[str, Look] = {
    "rota-slack": Look(*_VERMILION, "o", thick=True),
    "rotasched": Look(*_BLUE, "s", thick=True),
    "artifact": Look(*_SKY, "D", DASHED),
    "fcfs": Look(*_GREY, "v"),
    "fcfs-async": Look(*_GREY, "^", DASHED),
    "fcfs-cap": Look(*_GREY, "<", DOTTED),
    "sarathi": Look(*_GREY, ">", DASH_DOT),
    "waiting-first": Look(*_TEAL, "P"),
    "swapped-first": Look(*_TEAL, "X", DASHED),
    "trt-no-evict": Look(*_OLIVE, "h"),
    "trt-max-utilization": Look(*_OLIVE, "p", DASHED),
    "lightllm": Look(*_PURPLE, "d"),
    "ltr": Look(*_ROSE, "*"),
    "neo": Look(*_WINE, "8", DASHED),
}
_OTHERS = tuple(
    Look(*colour, marker, DOTTED)
    for marker in ("H", "4")
    for colour in (_WINE, _TEAL, _OLIVE, _ROSE, _PURPLE)
)


def look_of(policy: str) -> Look:
    """Of a policy without a look of its own: one of ten, by the letters of its name."""
    return LOOKS.get(policy) or _OTHERS[sum(policy.encode()) % len(_OTHERS)]
