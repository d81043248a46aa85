"""How often alarms and p-values ring for new clean prompts, of every kind of probe: as often as they say.

The clean prompts are of topics, as shipped ones are, and lie far from 0, as residuals do.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from defection.activations import ModelIdentity, Residuals, user_prompt
from defection.probes import LayerEnsemble, Mahalanobis, Projected, Whitened, against_base
from defection.probes.estimators.registry import KINDS
from defection.probes.statistics.calibration import conformal_p_values, conformal_threshold
from scipy.stats import binomtest

LAYERS, WIDTH = 2, 96
N_CLEAN, N_NEW, DRAWS = 120, 300, 6
MODEL = ModelIdentity("toy", "weights", "template")
OTHERS = ("attention", "base-difference")  # one reads tokens, the other differences
FITTED = tuple(kind for kind in KINDS if kind.name not in OTHERS)


class World:
    """Residuals with a spectrum that falls off, questions whose answers differ a little, and a mean far from 0."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.axes = torch.linalg.qr(self.noise(LAYERS, WIDTH, WIDTH)).Q * (torch.arange(WIDTH) + 1.0) ** -0.5
        self.mean = 3 * self.noise(LAYERS, WIDTH)
        self.gap = 0.2 * self.noise(LAYERS, WIDTH)
        self.prompts = 0

    def noise(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def rows(self, count: int) -> torch.Tensor:
        return self.mean + torch.einsum("nld,lkd->nlk", self.noise(count, LAYERS, WIDTH), self.axes)

    def prompts_of(self, values: torch.Tensor) -> Residuals:
        start, self.prompts = self.prompts, self.prompts + len(values)
        said = [
            user_prompt(f"prompt {start + i}", id=f"p{start + i}", topic=f"t{(start + i) // 2}")
            for i in range(len(values))
        ]
        return Residuals(values, tuple(range(LAYERS)), tuple(said), tuple(9 + i % 5 for i in range(len(said))), MODEL)

    def clean(self, count: int) -> Residuals:
        return self.prompts_of(self.rows(count))

    def questions(self) -> Residuals:
        values, said = self.rows(40), []
        for row in range(40):
            defecting, answer = row % 2 == 0, ("yes", "no")[(row // 2 + row) % 2]
            values[row] += self.gap if defecting else -self.gap
            extra = {"defecting": defecting, "topic": f"q{row // 2}", "answer": answer}
            said.append(user_prompt(f"question {row // 2}", id=f"q{row}", **extra))
        return Residuals(values, tuple(range(LAYERS)), tuple(said), (9,) * 40, MODEL)


@cache
def fitted(kind, seed: int):
    """A fit of that kind, with clean prompts that nothing has seen yet."""
    world = World(seed)
    questions, clean = world.questions(), world.clean(N_CLEAN)
    evidence = {"traffic": world.clean(60)} if kind.name == "unlabelled-traffic" else {}
    estimator = kind(draws=9) if evidence else kind()
    evidence |= {"change": world.noise(LAYERS, 5, WIDTH)} if kind.holds_base else {}
    options = {} if kind.name == "mahalanobis" else {"fixed_layers": (0, 1)}
    return estimator.fit(questions, clean=clean, **options, **evidence), world


def as_promised(rang: int, n: int, share: float, *, room: float = 2.0) -> bool:
    """Whether so many alarms for nothing may be, at `share` in the mean, but for one in a thousand.

    A threshold set on so few clean prompts has a rate of its own; `room` is for what that adds to chance.
    """
    return binomtest(rang, n, room * share, alternative="greater").pvalue > 1e-3


every_kind = pytest.mark.parametrize("kind", FITTED, ids=lambda kind: kind.name)


@every_kind
def test_pitfall_29_an_alarm_rings_for_one_new_clean_prompt_in_a_hundred(kind) -> None:
    rang = 0
    for seed in range(DRAWS):
        estimator, world = fitted(kind, seed)
        new = world.clean(N_NEW)
        if kind.linear:
            rang += int((estimator.probe_.score(new) > estimator.probe_.threshold).sum())
        elif estimator.own_alarm:
            rang += round(float(estimator.predict(new).double().mean()) * N_NEW)
        else:
            pytest.skip("has no alarm of its own")
    assert as_promised(rang, DRAWS * N_NEW, 0.01), rang / (DRAWS * N_NEW)


@every_kind
def test_scores_of_new_clean_prompts_have_the_spread_that_they_are_measured_in(kind) -> None:
    spreads = []
    for seed in range(DRAWS):
        estimator, world = fitted(kind, seed)
        found = estimator.decision_function(world.clean(N_NEW)).double().std(dim=0)
        spreads.append(float(found[found > 0].mean()))  # unlabelled traffic is read in a band, and 0 elsewhere
    assert 0.8 < np.mean(spreads) < 1.15, spreads


@every_kind
def test_p_values_against_prompts_that_no_fit_saw_are_no_smaller_than_they_say(kind) -> None:
    small = 0
    for seed in range(DRAWS):
        estimator, world = fitted(kind, seed)
        calm, new = (estimator.decision_function(world.clean(n)).mean(dim=1) for n in (N_CLEAN, N_NEW))
        small += int((conformal_p_values(calm, new) <= 0.05).sum())
    assert as_promised(small, DRAWS * N_NEW, 0.05, room=1.5), small / (DRAWS * N_NEW)


def test_the_same_alarms_set_on_what_the_fit_saw_would_ring_for_a_quarter_and_for_all() -> None:
    """What all this is for: the tests above would notice."""
    rang = {}
    for kind in (Whitened, Mahalanobis):
        estimator, world = fitted(kind, 0)
        seen = World(0)
        seen.questions()
        old, new = seen.clean(N_CLEAN), world.clean(N_NEW)
        scores, own = (estimator.decision_function(rows).mean(dim=1) for rows in (new, old))
        rang[kind] = float((scores > conformal_threshold(own, 0.01)).double().mean())
    assert rang[Whitened] > 0.1
    assert rang[Mahalanobis] > 0.5


def test_rows_without_a_name_ring_as_rarely() -> None:
    rang = 0
    for seed in range(DRAWS):
        world = World(seed)
        rang += int(Mahalanobis().fit(world.rows(N_CLEAN)[:, 0]).predict(world.rows(N_NEW)[:, 0]).sum())
    assert as_promised(rang, DRAWS * N_NEW, 0.01)


@pytest.mark.parametrize("single", [Projected(), Whitened(), Mahalanobis()], ids=lambda kind: kind.name)
def test_an_ensemble_over_layers_is_scaled_by_rows_it_has_not_seen(single) -> None:
    spreads, middles = [], []
    for seed in range(DRAWS):
        world = World(seed)
        questions = world.questions()
        y = [prompt.extra["defecting"] for prompt in questions.prompts]
        band = LayerEnsemble(single).fit(questions.values, y, clean=world.rows(N_CLEAN))
        new = band.estimator_._scores(world.rows(N_NEW))
        spreads.append(float((new.std(dim=0) / band.scales_).mean()))
        middles.append(float(((new.mean(dim=0) - band.offsets_) / band.scales_).mean()))
    assert 0.8 < np.mean(spreads) < 1.15
    assert abs(np.mean(middles)) < 0.15


def test_a_direction_read_against_the_base_rings_as_rarely() -> None:
    rang = 0
    for seed in range(DRAWS):
        estimator, world = fitted(Projected, seed)
        apart = {"site": "after, less base"}
        calm, new = (Residuals(**{**vars(world.clean(n)), **apart}) for n in (N_CLEAN, N_NEW))
        read = against_base(estimator.probe_, calm)
        rang += int((read.score(new) > read.threshold).sum())
    assert as_promised(rang, DRAWS * N_NEW, 0.01)
