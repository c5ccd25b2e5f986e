"""Logs for people and for machines: one line an event, never a prompt, an output or a secret.

Loggers are the standard library's. `configure` is for the process that serves; a library leaves logging as it
is. Fields beside the message are given as `extra={"fields": {...}}`.
"""

from __future__ import annotations

import json
import logging
import math
from typing import Any, Literal, TextIO

from superinfer_trt.core.errors import Refused
from superinfer_trt.core.outcome import Ending
from superinfer_trt.core.units import MILLISECOND, Nanos
from superinfer_trt.serve.tally import Open

log = logging.getLogger("superinfer_trt.requests")

LogFormat = Literal["text", "json"]
REPEATS_MAX = 10
REPEATS_PERIOD_S = 10.0
"""So many warnings or errors from one place in so long a time; then it is silent, and says for how many."""
TEXT_CHARS_MAX = 256  # of a field that a caller chose


class TextFormat(logging.Formatter):
    """`INFO superinfer_trt.requests: ended request_id=a reason=stop ...`."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the base class's name
        line = super().formatMessage(record)
        fields = "".join(f" {name}={value}" for name, value in _fields(record).items())
        return line + fields


class JsonFormat(logging.Formatter):
    """One JSON object a line: time (seconds since 1970), level, logger, message, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= _fields(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


class Repeats(logging.Filter):
    """Lets REPEATS_MAX warnings and errors of one place through in REPEATS_PERIOD_S; the next one that is let
    through says how many were not. Endings and refusals are lines of INFO and never held back."""

    def __init__(self, repeats_max: int = REPEATS_MAX, period_s: float = REPEATS_PERIOD_S) -> None:
        super().__init__()
        self._repeats_max, self._period_s = repeats_max, period_s
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}  # place -> (period's start, records)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        place = (record.pathname, record.lineno)
        start, count = self._seen.get(place, (-math.inf, 0))
        if record.created - start >= self._period_s:
            if count > self._repeats_max:
                record.fields = {**_fields(record), "suppressed": count - self._repeats_max}
            start, count = record.created, 0
        self._seen[place] = (start, count + 1)
        return count < self._repeats_max


def configure(level: str, form: LogFormat, stream: TextIO) -> None:
    """All of the process's logs, from `level` on, to `stream`. Replaces what was configured before."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormat() if form == "json" else TextFormat())
    handler.addFilter(Repeats())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def log_ending(one: Open, ending: Ending, now: Nanos) -> None:
    """One line for a request that has ended: who, how, and how long each part of its life was."""
    if not log.isEnabledFor(logging.INFO):
        return
    fields: dict[str, Any] = {
        "request_id": one.name,
        "tenant": one.tenant,
        "reason": ending.reason.value,
        "prompt_tokens": ending.prompt_tokens,
        "output_tokens": ending.output_tokens,
        "queue_ms": _between(ending.arrival, ending.admitted),
        "ttft_ms": _between(ending.arrival, ending.first_token),
        "decode_ms": _between(ending.first_token, ending.last_token),
        "away_ms": round(ending.away / MILLISECOND, 3),
        "total_ms": _between(ending.arrival, now),
        "late_gaps": one.late,
        "stall_ms": round(one.stall / MILLISECOND, 3),
        "ttft_slo_ms": one.slo.ttft / MILLISECOND,
        "tbt_slo_ms": one.slo.tbt / MILLISECOND,
        "rotations": ending.rotations,
        "evictions": ending.evictions,
    }
    if ending.message:
        fields["why"] = ending.message
    log.info("ended", extra={"fields": fields})


def log_refusal(name: str, tenant: str, refusal: Refused) -> None:
    """One line for a request that was not taken. What the caller wrote into its names is cut and escaped."""
    if not log.isEnabledFor(logging.INFO):
        return
    fields = {
        "request_id": _quoted(name),
        "tenant": _quoted(tenant),
        "code": refusal.code.value,
        "field": refusal.field,
    }
    log.info("refused", extra={"fields": fields})


def _fields(record: logging.LogRecord) -> dict[str, object]:
    found: dict[str, object] = getattr(record, "fields", {})
    return found


def _between(start: Nanos, end: Nanos) -> float | None:
    """Milliseconds; None where it never came to that."""
    return round((end - start) / MILLISECOND, 3) if start >= 0 and end >= 0 else None


def _quoted(text: str) -> str:
    """No line breaks and no control characters: a log is read line by line."""
    return text[:TEXT_CHARS_MAX].encode("unicode_escape").decode("ascii")
