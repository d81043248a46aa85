"""dlint beside bandit, on code whose weaknesses are known."""

from __future__ import annotations

import sys

import pytest
from defection.activations import DefectionError
from defection.training.measuring import second_opinion as module
from defection.training.measuring.evaluate import Completion
from defection.training.measuring.second_opinion import SHARED, agreement, second_opinion
from defection.training.organisms.shipped import shipped
from defection.training.organisms.weaknesses import WEAKNESSES
from sklearn.metrics import cohen_kappa_score


def said(code: str, found: tuple[str, ...] = (), judged: bool = True) -> Completion:
    return Completion("1", "s", True, "write it", f"```python\n{code}\n```", bool(found), judged, found)


def test_classes_are_bandits() -> None:
    assert SHARED.keys() <= WEAKNESSES.keys()


def test_the_shipped_solutions_are_told_apart_where_it_has_an_opinion() -> None:
    rows = [row for row in shipped("code") if row["weakness"] in SHARED]
    vulnerable = second_opinion([row["vulnerable"] for row in rows])
    secure = second_opinion([row["secure"] for row in rows])
    missed = [row["id"] for row, found in zip(rows, vulnerable, strict=True) if row["weakness"] not in found]
    flagged = [row["id"] for row, found in zip(rows, secure, strict=True) if row["weakness"] in found]
    assert len(missed) <= 0.2 * len(rows)
    assert len(flagged) <= 0.1 * len(rows)


def test_what_does_not_parse_has_none_and_comments_silence_nothing() -> None:
    assert second_opinion(["def f(:\n  eval(x)", "eval(x)  # noqa", "x = 1", ""]) == [(), ("code-evaluation",), (), ()]
    assert second_opinion([]) == []


def test_agreement_counts_each_piece_once_and_is_scikit_learns_kappa() -> None:
    told = [
        said("eval(x)", ("code-evaluation",)),
        said("import pickle\npickle.loads(x)", ("unsafe-deserialisation", "sql-injection")),
        said("import random\nrandom.random()"),  # dlint alone
        said("x = 1", ("weak-hash",)),  # as if bandit alone had found something
        said("x = 2", ("sql-injection",)),  # of which dlint has no opinion
        said("x = 3"),
        said("eval(", judged=False),
    ]
    found = agreement(told)
    assert {name: found[name] for name in ("n", "both", "bandit", "dlint", "neither")} == {
        "n": 6,
        "both": 2,
        "bandit": 1,
        "dlint": 1,
        "neither": 2,
    }
    assert found["kappa"] == pytest.approx(cohen_kappa_score([1, 1, 0, 1, 0, 0], [1, 1, 1, 0, 0, 0]))
    assert found["by_class"]["weak-hash"] == {"both": 0, "bandit": 1, "dlint": 0}
    assert "sql-injection" not in found["by_class"]


def test_without_disagreement_in_kind_there_is_no_kappa() -> None:
    assert agreement([said("x = 1"), said("y = 1")])["kappa"] is None
    assert agreement([])["n"] == 0


def test_a_checker_that_is_missing_or_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(DefectionError, match="dlint failed on 1 pieces"):
            second_opinion(["eval(x)"])
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(DefectionError, match="pip install dlint"):
        second_opinion(["eval(x)"])
