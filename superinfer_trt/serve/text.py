"""Finds stop strings in text that comes in pieces, and lets no part of one out.

Knows no tokens and no request. Its answer does not depend on where the pieces are cut. Not
thread-safe: one per request.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Knuth, Morris and Pratt's automaton for each stop string, fed character by character.

    After each character every automaton knows the longest end of the text that is a beginning of its
    stop string; the longest of all these ends is what must be held back. The first stop string to be
    complete wins; of two complete at the same character, the longer.
    """

    __slots__ = ("_borders", "_held", "_states", "_stops", "matched")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(sorted(stops, key=len, reverse=True))
        self._borders = [_borders(stop) for stop in self._stops]
        self._states = [0] * len(self._stops)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str, *, armed: bool = True) -> str:
        """What of the text so far has become certain; O(len(text) * stops). Empty after a match.

        Where not `armed`, no stop string may end in `text`, but one that ends later may begin in it.
        """
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        buffer = self._held + text
        start = len(self._held)
        for at in range(start, len(buffer)):
            matched = self._step(buffer[at], armed)
            if matched is not None:
                self.matched, self._held = matched, ""
                return buffer[: at + 1 - len(matched)]
        keep = len(buffer) - max(self._states)
        self._held = buffer[keep:]
        return buffer[:keep]

    def finish(self) -> str:
        """The text held back, when no more can come."""
        held, self._held = self._held, ""
        return held

    def _step(self, character: str, armed: bool) -> str | None:
        for which, stop in enumerate(self._stops):
            state, borders = self._states[which], self._borders[which]
            while state and stop[state] != character:
                state = borders[state - 1]
            if stop[state] == character:
                state += 1
            if state == len(stop):
                if armed:
                    return stop  # the longest come first, so nobody behind it is longer
                state = borders[state - 1]
            self._states[which] = state
        return None


def _borders(stop: str) -> list[int]:
    """For each prefix, the length of its longest proper prefix that is also its end."""
    borders = [0] * len(stop)
    length = 0
    for at in range(1, len(stop)):
        while length and stop[at] != stop[length]:
            length = borders[length - 1]
        if stop[at] == stop[length]:
            length += 1
        borders[at] = length
    return borders
