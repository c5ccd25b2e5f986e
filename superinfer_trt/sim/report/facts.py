"""What was simulated, in words: the head of each study. Pure, any thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from superinfer_trt.sim.report.study import Study, written


def world_facts(study: Study, ordinary: Mapping[str, object]) -> list[tuple[str, str]]:
    """(term, words) of what was simulated. `ordinary`: the values of a job without flags; what differs
    from them is told by its name."""
    world = dict(study.world)
    facts = [(name.capitalize(), _file_name(world.pop(name))) for name in ("hardware", "model", "trace")]
    ttft, tbt = world.pop("ttft_slo_s", None), world.pop("tbt_slo_ms", None)
    if ttft is not None and tbt is not None:
        facts.append(("Objectives", f"TTFT within {ttft:g} s, TBT within {tbt:g} ms"))
    facts.append(("Arrivals", _arrivals(study, world)))
    counts = sorted({int(run.figures["requests"]) for run in study.runs if "requests" in run.figures})
    if counts:
        between = f"{counts[0]:,}" + (f" to {counts[-1]:,}" if len(counts) > 1 else "")
        facts.append(("Requests of a run", between))
    for name, words in (("hbm_blocks", "HBM"), ("dram_blocks", "DRAM")):
        sizes = sorted({int(run.figures[name]) for run in study.runs if run.figures.get(name)})
        if sizes:
            facts.append((f"KV blocks in {words}", " or ".join(f"{size:,}" for size in sizes)))
        world.pop(name, None)
    facts.append(("Seeds", ", ".join(map(str, study.seeds))))
    facts.append(("Runs", f"{len(study.runs)}"))
    others = {name: value for name, value in world.items() if _told(value) != _told(ordinary.get(name))}
    if others:
        told = (f"{name} {_told(value)}" for name, value in sorted(others.items()))
        facts.append(("Further", "; ".join(told)))
    return facts


def _told(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_told(one)}" for key, one in sorted(value.items()))
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_told, value))
    return written(value)


def _file_name(value: object) -> str:
    """Of a file its name; where it lies is nobody's business."""
    return str(value).replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or str(value)


def _arrivals(study: Study, world: dict[str, object]) -> str:
    kind, shape = world.pop("arrivals", None), world.pop("shape", None)
    duration = world.pop("duration_s", None)
    rates = [rate for rate in study.rates if rate is not None]
    if not rates:
        return "the trace's own times"
    poisson = kind == "gamma" and shape == 1
    words = "Poisson" if poisson else f"{kind}, shape {written(shape)}"
    told = f"{words}, {', '.join(f'{rate:g}' for rate in rates)} requests/s"
    return told + (f" for {duration:g} s" if isinstance(duration, (int, float)) else "")


def world_titles(studies: Sequence[Study]) -> list[str]:
    """`qwen2.5-32b on gh200-144gb, sharegpt`, with what else sets worlds of one title apart."""
    plain = [
        f"{_file_name(s.world['model'])} on {s.world['hardware']}, {_file_name(s.world['trace'])}"
        for s in studies
    ]
    titles = []
    for study, title in zip(studies, plain, strict=True):
        twins = [other for other, same in zip(studies, plain, strict=True) if same == title]
        names = [name for name in study.world if len({_told(twin.world.get(name)) for twin in twins}) > 1]
        apart = "; ".join(f"{name} {_told(study.world[name])}" for name in names)
        titles.append(f"{title} ({apart})" if apart else title)
    return titles
