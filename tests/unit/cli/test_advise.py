"""`superinfer-trt advise` from end to end on a small machine, and what it writes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from superinfer_trt import config
from superinfer_trt.cli.advise_runs import Runner, Setting
from superinfer_trt.cli.main import run
from superinfer_trt.cli.simulation import Job
from superinfer_trt.core.errors import SuperInferError
from superinfer_trt.sched.registry import make_policy

SMALL = [
    "--duration-s",
    "3",
    "--hbm-blocks",
    "400",
    "--seeds",
    "1,2",
    "--held-out",
    "3,4",
    "--processes",
    "1",
]
SLO = ["--ttft-slo-s", "0.5", "--tbt-slo-ms", "50"]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "trace.csv"
    rows = "".join(f"{at * 7 + 20},{at % 13 * 5 + 6}\n" for at in range(40))
    path.write_text("prompt_tokens,output_tokens\n" + rows)
    return path


@pytest.fixture(scope="module")
def advised(trace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one advice, made once."""
    folder = tmp_path_factory.mktemp("advised") / "out"
    arguments = ["advise", "--trace", str(trace), *SMALL, *SLO, "--rps", "30", "--budget-s", "600", "--json"]
    assert run([*arguments, "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def found(advised: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((advised / "advice.json").read_text())
    return read


def test_the_highest_rates_are_on_the_curve(found: dict[str, Any]) -> None:
    assert [one["target"] for one in found["targets"]] == [0.99, 0.95]
    curve = {row["rps"]: row for row in found["curves"]["rota-slack"]}
    high, low = found["targets"]
    assert high["exact"]
    assert low["exact"]
    assert high["rps"] <= low["rps"]
    for one in (high, low):
        assert curve[one["rps"]]["seeds"] == 2
        assert one["rps"] < one["fails_rps"]
        assert one["fails_rps"] in curve
    assert list(curve) == sorted(curve)
    assert found["left_out"] == []


def test_the_load_that_was_asked_for_is_looked_at(found: dict[str, Any]) -> None:
    assert {policy: row["rps"] for policy, row in found["given"].items()} == {
        "rota-slack": 30.0,
        "fcfs-async": 30.0,
    }


def test_parameters_are_judged_and_pools_are_sized(found: dict[str, Any]) -> None:
    assert found["tuning"]["complete"]
    assert found["tuning"]["tried"] >= 14
    assert found["parameters"] == found["tuning"]["change"]
    pools = found["pools"]
    assert pools["hbm_blocks"] == 400
    assert pools["dram_blocks"] < pools["dram_blocks_ample"]
    assert pools["seats_peak"] <= pools["seats"] <= pools["step_tokens"]
    rates = {one["rps"] for one in found["targets"]}
    assert {one["held_out"] is not None for one in found["targets"]} == {True}
    assert pools["rps"] == max(*rates, 30.0)


def test_the_yaml_is_a_configuration_of_a_service(advised: Path, found: dict[str, Any]) -> None:
    made = config.load(advised / "serve.yaml")
    assert made.pools.hbm_blocks == 400
    assert made.pools.dram_blocks == found["pools"]["dram_blocks"]
    assert made.scheduling.seats == found["pools"]["seats"]
    assert made.scheduling.tbt_slo_ms == 50.0
    assert make_policy(made.scheduling.policy, **made.scheduling.parameters).name == "rota-slack"
    again = advised / "again.yaml"
    again.write_text(config.dump(made))
    assert config.load(again) == made


def test_the_folder_has_a_picture_and_nothing_half_written(advised: Path) -> None:
    assert (advised / "curve.png").read_bytes().startswith(b"\x89PNG")
    names = {path.name for path in advised.iterdir()} - {"again.yaml"}
    assert names == {"advice.json", "serve.yaml", "curve.png"}


def test_people_get_words(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    """With time for the first runs only."""
    assert run(["advise", "--trace", str(trace), *SMALL, *SLO, "--budget-s", "1", "--policy", "fcfs"]) == 0
    shown = capsys.readouterr().out
    for said in ("fcfs-async", "Left out for lack of time", "HBM pool: 400 blocks", "worst seed"):
        assert said in shown


def test_what_cannot_be_reached_is_said(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    arguments = [*SMALL, "--ttft-slo-s", "0.001", "--trace", str(trace)]
    assert run(["advise", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "not even at 10 RPS" in shown
    assert "no rate keeps a target" in shown
    assert "pools:" not in shown


BAD = {
    "trace": (["--trace", "nowhere.csv"], "neither a file nor"),
    "seed": (["--seed", "3"], "--seeds"),
    "seeds": (["--seeds", "a,b"], "--seeds: 'a,b'"),
    "held out": (["--held-out", "2,3"], "shares seeds"),
    "policy": (["--policy", "none"], "known: "),
    "beside": (["--beside", "none"], "known: "),
    "same": (["--beside", "rota-slack"], "is the policy itself"),
    "parameter": (["--policy-param", "colour=1"], "'colour' is unknown"),
    "rps": (["--rps", "1"], "--rps: 1.0; expected 10"),
    "requests": (["--requests-max", "9"], "--duration-s"),
    "room": (["--hardware", "h100-pcie5", "--model", "mixtral-8x7b"], "no room for KV"),
    "output": (["--output", "no/such/folder/x"], "--output: cannot make"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line_and_code_2(what: str, capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    arguments, said = BAD[what]
    small = [word for word in SMALL if what != "room" or word not in {"--hbm-blocks", "400"}]
    assert run(["advise", "--trace", str(trace), *small, *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
    assert shown.err.count("\n") == 1


# --- the runs ------------------------------------------------------------------------------------

JOB = Job(duration_s=1.0, hbm_blocks=400, trace="sharegpt", drop_longer=True)


def jobs(*rates: float) -> list[Job]:
    return [Setting("fcfs-async").job(JOB, rps, 1) for rps in rates]


def test_a_run_is_made_once() -> None:
    runner = Runner(1, 1e9, lambda: 0.0, lambda _: None)
    assert runner.run(jobs(5.0, 6.0, 5.0), 1.0)
    assert runner.runs == 2
    assert runner.run(jobs(6.0), 0.0)
    assert runner.figures(jobs(6.0))[0]["rps"] == 6.0


def test_what_does_not_fit_into_the_budget_is_not_begun() -> None:
    ticks = iter(range(1000))
    runner = Runner(1, 40.0, lambda: float(next(ticks)), lambda _: None)
    assert runner.run(jobs(20.0), 0.1)  # the first in any case
    assert not runner.run(jobs(20.0, 21.0, 2000.0), 1.0)
    assert runner.runs == 1
    assert runner.run(jobs(21.0), 1.0)


def test_a_run_that_fails_is_named() -> None:
    runner = Runner(1, 40.0, lambda: 0.0, lambda _: None)
    broken = Setting("fcfs-async", {"colour": 1}).job(JOB, 5.0, 1)
    with pytest.raises(SuperInferError, match=r"fcfs-async at 5.0 RPS, seed 1: ConfigError: .*colour"):
        runner.run([broken], 1.0)


# --- the judgement, on made-up figures -----------------------------------------------------------


class MadeUp:
    """Stands where runs are made: attainment falls beyond a knee, which depends on the job."""

    def __init__(self, lucky_seeds: set[int], enough_dram_blocks: int = 900, longest: float = 0.9) -> None:
        self.lucky_seeds = lucky_seeds
        self.enough = enough_dram_blocks
        self.longest = longest
        self.jobs: list[Job] = []

    def __call__(self, todo: Sequence[Job], processes: int) -> Iterator[tuple[Job, dict[str, Any], str]]:
        del processes
        for job in todo:
            self.jobs.append(job)
            yield job, self.figures(job), ""

    def figures(self, job: Job) -> dict[str, Any]:
        assert job.rps is not None
        changed = job.policy_params.get("patience") == 0.7 and job.seed in self.lucky_seeds
        knee = {"fcfs-async": 10.0}.get(job.policy, 14.5 if changed else 13.0)
        share = max(0.0, min(1.0, 1 - 0.02 * (job.rps - knee) - job.seed % 3 / 1000))
        dram = 5000 if job.dram_blocks is None else job.dram_blocks
        share -= 0.1 if dram < self.enough and job.policy == "rota-slack" else 0.0
        return {
            "requests": 1000,
            "joint_mean": share,
            "ttft_attainment": share,
            "tbt_attainment": 1.0,
            "ttft_ms": {"p99": 2000.0},
            "tbt_ms": {},
            "longest_gap_s": 1.0,
            "ttft_attainment_longest_prompts": self.longest if changed else 0.9,
            "hbm_blocks": 12_000,
            "dram_blocks": dram,
            "seats_peak": 200,
            "step_tokens_peak": 900,
            "dram_blocks_peak": 700,
            "dram_blocks_promised": 4000,
        }


def advice_on(
    made_up: MadeUp, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *more: str
) -> dict[str, Any]:
    monkeypatch.setattr("superinfer_trt.cli.advise_runs.run_all", made_up)
    seeds = ["--seeds", "1,2,3", "--held-out", "4,5,6", "--processes", "1"]
    assert run(["advise", *seeds, *more, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_change_that_wins_everywhere_is_advised(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up = MadeUp({1, 2, 3, 4, 5, 6})
    found = advice_on(made_up, monkeypatch, capsys)
    assert found["parameters"] == found["config"]["scheduling"]["parameters"] == {"patience": 0.7}
    assert [one["rps"] for one in found["targets"]] == [
        pytest.approx(14.9, abs=0.3),
        pytest.approx(17, abs=0.4),
    ]
    assert found["targets"][0]["beside"]["rps"] == pytest.approx(10.4, abs=0.3)
    assert found["curves"].keys() == {"rota-slack", "rota-slack patience=0.7", "fcfs-async"}
    pools = found["pools"]
    assert 900 <= pools["dram_blocks"] <= 900 * 4 / 3 + 64
    assert (pools["seats"], pools["step_tokens"]) == (256, 1024)
    served = [job for job in made_up.jobs if job.seats == 256]
    assert {(job.dram_blocks, job.step_tokens, job.seed) for job in served} == {
        (pools["dram_blocks"], 1024, seed) for seed in (4, 5, 6)
    }


@pytest.mark.parametrize(
    ("made_up", "judged"),
    [
        (MadeUp({1, 2, 3}), True),
        (MadeUp({1, 2, 3, 4, 5}), True),
        (MadeUp({1, 2, 3, 4, 5, 6}, longest=0.8), False),
    ],
    ids=["luck of the seeds", "most of the seeds", "longest prompts pay"],
)
def test_the_default_stays_unless_held_out_seeds_agree(
    made_up: MadeUp, judged: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = advice_on(made_up, monkeypatch, capsys)
    assert found["parameters"] == {}
    assert ("best" in found["tuning"]) is judged
    assert found["targets"][0]["rps"] == pytest.approx(13.4, abs=0.3)


def test_what_was_given_is_not_changed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--policy-param", "patience=0.3", "--rps", "12", "--dram-blocks", "2000"]
    made_up = MadeUp({1, 2, 3, 4, 5, 6})
    found = advice_on(made_up, monkeypatch, capsys, *given)
    ours = [job for job in made_up.jobs if job.policy == "rota-slack"]
    assert {job.policy_params["patience"] for job in ours} == {0.3}
    assert {job.policy for job in made_up.jobs if job.rps == 12} == {"rota-slack", "fcfs-async"}
    assert all(not job.policy_params for job in made_up.jobs if job.policy == "fcfs-async")
    assert found["pools"]["dram_blocks_ample"] == 2000
