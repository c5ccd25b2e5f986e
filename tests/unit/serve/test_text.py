"""Stop strings: found wherever the pieces are cut, and no part of one is let out."""

from __future__ import annotations

from itertools import pairwise, product

from hypothesis import given
from hypothesis import strategies as st

from superinfer_trt.serve.text import StopMatcher

letters = st.text("ab", max_size=30)
stops = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)


def plain(stop: list[str], text: str) -> tuple[str, str | None]:
    """The same by looking at every beginning of the text: the naive twin."""
    for end in range(1, len(text) + 1):
        found = [one for one in stop if text[:end].endswith(one)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def pieces(text: str, cuts: list[int]) -> list[str]:
    edges = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in pairwise(edges)]


@given(stops, letters, st.lists(st.integers(0, 30)))
def test_equals_the_naive_twin_wherever_it_is_cut(stop: list[str], text: str, cuts: list[int]) -> None:
    matcher = StopMatcher(stop)
    out = ""
    for piece in pieces(text, cuts):
        out += matcher.push(piece)
        before, _ = plain(stop, text)
        assert before.startswith(out)  # never more than may be seen
    out += matcher.finish()
    assert (out, matcher.matched) == plain(stop, text)


@given(stops, letters, st.integers(0, 30))
def test_nothing_ends_before_it_is_armed(stop: list[str], text: str, at: int) -> None:
    """As the naive twin that looks only at ends behind `at`."""
    matcher = StopMatcher(stop)
    out = matcher.push(text[:at], armed=False) + matcher.push(text[at:]) + matcher.finish()
    expected: tuple[str, str | None] = (text, None)
    for end in range(at + 1, len(text) + 1):
        found = [one for one in stop if text[:end].endswith(one)]
        if found:
            longest = max(found, key=len)
            expected = (text[: end - len(longest)], longest)
            break
    assert (out, matcher.matched) == expected


def test_every_small_stop_string_in_every_small_text() -> None:
    """Enumerated, because what a stop string does after half a match needs a text made for it."""
    words = ["".join(word) for length in range(1, 8) for word in product("ab", repeat=length)]
    for stop in words[:30]:  # up to four letters
        for text in words:
            matcher = StopMatcher([stop])
            out = "".join(map(matcher.push, text)) + matcher.finish()
            assert (out, matcher.matched) == plain([stop], text), (stop, text)


@given(stops, letters)
def test_holds_back_no_more_than_a_beginning_of_a_stop_string(stop: list[str], text: str) -> None:
    matcher = StopMatcher(stop)
    out = "".join(map(matcher.push, text))
    if matcher.matched is None:
        held = text[len(out) :]
        assert held == "" or any(one.startswith(held) and one != held for one in stop)


def test_nothing_follows_a_match() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push("a EN") == "a "
    assert matcher.push("D and more") == ""
    assert matcher.matched == "END"
    assert matcher.push("even more") == ""
    assert matcher.finish() == ""


def test_what_was_no_stop_string_comes_out_late() -> None:
    matcher = StopMatcher(["\n\n"])
    assert matcher.push("one\n") == "one"
    assert matcher.push("two") == "\ntwo"


def test_of_two_complete_at_once_the_longer_wins() -> None:
    matcher = StopMatcher(["c", "abc"])
    assert matcher.push("xabc") == "x"
    assert matcher.matched == "abc"
