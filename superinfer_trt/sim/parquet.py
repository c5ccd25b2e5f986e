"""The runs of a sweep as Parquet: a row a run, flat columns, and the line it came from.

Columns are `job.NAME` and `figures.NAME`, deeper values by dots (`job.policy_params.alpha`,
`figures.ttft_ms.p99`), and `run`, the JSON line itself, so that reading back loses nothing. A column whose
values are of several kinds holds each as JSON text. Needs pyarrow. Knows no meaning of a name. Any thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from superinfer_trt.core.errors import ConfigError

RUN_COLUMN = "run"
_INT64 = range(-(1 << 63), 1 << 63)


def require_pyarrow() -> None:
    """Raises ConfigError with what to install where there is no pyarrow."""
    try:
        import pyarrow.parquet  # noqa: F401 - whether it is there is the question
    except ImportError:
        raise ConfigError('Parquet needs pyarrow: pip install "superinfer-trt[sim]"') from None


def write_parquet(path: Path, lines: Sequence[str]) -> None:
    """Writes `lines`, each a JSON object, whole or not at all. Raises ConfigError."""
    require_pyarrow()
    import pyarrow as pa
    from pyarrow import parquet

    rows = [dict(flat(json.loads(line))) for line in lines]
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: pa.array(column([row.get(name) for row in rows])) for name in names}
    columns[RUN_COLUMN] = pa.array([line.rstrip("\n") for line in lines], pa.string())
    part = path.with_name(path.name + ".part")
    try:
        parquet.write_table(pa.table(columns), part, compression="zstd")
        part.replace(path)
    except (OSError, pa.ArrowException) as error:
        part.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written ({_one_line(error)})") from None


def read_parquet(path: Path) -> list[str]:
    """The lines that were written, in order. Raises ConfigError."""
    require_pyarrow()
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            if RUN_COLUMN not in file.schema_arrow.names:
                raise ConfigError(
                    f"{path}: has no column {RUN_COLUMN!r}; expected Parquet as `sweep` writes it"
                )
            found = file.read(columns=[RUN_COLUMN]).column(RUN_COLUMN).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{path}: cannot be read as Parquet ({_one_line(error)})") from None
    return [line if isinstance(line, str) else json.dumps(line) for line in found]


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every leaf; an empty mapping has none."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def column(values: Sequence[Any]) -> list[Any]:
    """The values as one kind: truths, whole numbers, numbers, words lists of words; else JSON text."""
    there = [value for value in values if value is not None]
    kinds = {type(value) for value in there}
    if kinds <= {int} and all(value in _INT64 for value in there):
        return list(values)
    if kinds == {int, float} and all(value in _INT64 for value in there if isinstance(value, int)):
        return [None if value is None else float(value) for value in values]
    if len(kinds) == 1 and kinds <= {bool, float, str}:
        return list(values)
    if kinds == {list} and all(isinstance(word, str) for value in there for word in value):
        return list(values)
    return [None if value is None else json.dumps(value) for value in values]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
