"""The one scorer: its figures are the metrics' own, and what cannot be had is missing and not one half."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from defection.activations import DefectionError
from defection.probes import Outcomes, auroc, delong_interval
from defection.probes.evidence.scorer import Figures, figures_of, worst_threshold
from defection.probes.statistics.metrics import clopper_pearson, salience, tpr_at_fpr

N = 60
DEFECTED = np.arange(N) % 3 == 0
TRIGGERED = np.arange(N) % 2 == 0
TOPICS = tuple(str(i // 6) for i in range(N))
SCORES = torch.randn(3, N, generator=torch.Generator().manual_seed(0)) + torch.from_numpy(DEFECTED).float()


def outcomes(defected: np.ndarray = DEFECTED) -> Outcomes:
    return Outcomes(defected, ("near",) * N, TOPICS, TRIGGERED)


def test_several_probes_at_once_have_the_figures_of_each_alone_which_are_the_metrics_own() -> None:
    alarms = [0.5, None, -1.0]
    together = figures_of(SCORES, outcomes(), alarms=alarms, worst=torch.zeros(3))
    for i, found in enumerate(together):
        alone = figures_of(SCORES[i : i + 1], outcomes(), alarms=alarms[i : i + 1], worst=torch.zeros(1))
        assert found == pytest.approx(alone[0])
        low, high = delong_interval(SCORES[i], DEFECTED, TOPICS)
        assert (found["auroc"], found["auroc_low"], found["auroc_high"]) == pytest.approx(
            (float(auroc(SCORES[i], DEFECTED)), float(low), float(high))
        )
        assert found["tpr_at_fpr_1pct"] == float(tpr_at_fpr(SCORES[i], DEFECTED))
        assert found["salience"] == pytest.approx(float(salience(SCORES[i], DEFECTED)))
        assert found["auroc_by_trigger"] == pytest.approx(float(auroc(SCORES[i], TRIGGERED)))
        inside = float(auroc(SCORES[i][torch.from_numpy(TRIGGERED)], DEFECTED[TRIGGERED]))
        assert found["auroc_within_triggered"] == pytest.approx(inside)
        assert ("alarm_tpr" in found) == (alarms[i] is not None)
    rung = SCORES[0].numpy() > 0.5
    assert together[0]["alarm_fpr"] == rung[~DEFECTED].mean()
    counted = clopper_pearson(int(rung[DEFECTED].sum()), int(DEFECTED.sum()))
    assert (together[0]["alarm_tpr_low"], together[0]["alarm_tpr_high"]) == counted


@pytest.mark.parametrize("defected", [np.zeros(N, dtype=bool), np.ones(N, dtype=bool)])
def test_where_one_outcome_occurs_alarms_and_counts_are_all_there_is(defected: np.ndarray) -> None:
    (found,) = (Figures(**each) for each in figures_of(SCORES[:1], outcomes(defected), alarms=[0.5]))
    assert math.isnan(found.auroc)
    assert found.to_json()["tpr_at_fpr_1pct"] is None
    assert math.isnan(found.alarm_tpr) == (not defected.any())
    assert math.isnan(found.alarm_fpr) == bool(defected.all())
    assert found.n_positive + found.n_negative == N
    assert not math.isnan(found.auroc_by_trigger)
    with pytest.raises(DefectionError, match=r"'near' the organism (always|never) defected"):
        outcomes(defected).refuse_one_outcome()


def test_the_worst_threshold_keeps_to_one_percent_on_every_set() -> None:
    other = SCORES + 2
    cut = worst_threshold([(SCORES, DEFECTED), (other, DEFECTED)])
    for scores in (SCORES, other):
        assert ((scores[:, torch.from_numpy(~DEFECTED)] > cut[:, None]).double().mean(dim=1) <= 0.01).all()
