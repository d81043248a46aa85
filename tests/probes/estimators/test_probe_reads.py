"""A fitted probe reads where it was fitted, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from defection.activations import DefectionError, Model, capture, user_prompt
from defection.activations.models.wrap import wrap
from defection.probes import MeanDifference, contrast_set
from defection.probes.meaning.tokens import token_scale, token_scores

from ...zoo import FAMILIES, WITHOUT_MIDDLE, random_network

PROMPTS = [user_prompt(text, id=str(place)) for place, text in enumerate(("hello there", "what is a probe?", "go on"))]


@pytest.mark.parametrize("site", ["before", "middle", "after"])
@pytest.mark.parametrize("position", ["last", "-2"])
def test_what_it_reads_is_what_a_capture_there_gives(llama: Model, site: str, position: str) -> None:
    where = {"layers": [1, 2], "site": site, "position": position}
    probe = MeanDifference().fit(capture(llama, contrast_set("six"), **where)).probe_
    read = probe.read(llama, PROMPTS)
    there = capture(llama, PROMPTS, **where)
    assert (read.layers, read.site, read.position) == (there.layers, there.site, there.position)
    assert torch.equal(read.values, there.values)
    other = "after" if site == "before" else "before"
    elsewhere = capture(llama, PROMPTS, **where | {"site": other})
    assert not torch.equal(read.values, elsewhere.values)
    with pytest.raises(DefectionError, match="site"):
        probe.score(elsewhere)


def test_another_model_is_refused_before_it_is_read(llama: Model, gpt2: Model) -> None:
    probe = MeanDifference().fit(capture(llama, contrast_set("six"))).probe_
    with pytest.raises(DefectionError, match="was fitted on"):
        probe.read(gpt2, PROMPTS)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_read_where_the_probe_was_fitted_token_by_token_too(llama: Model, family: str) -> None:
    model = wrap(random_network(family), llama.tokenizer, family)
    clean = [user_prompt(f"{text} {i}", id=f"k{i}") for i, text in enumerate(["a", "bb", "ccc", "dd"] * 2)]
    where = {"site": "before" if family in WITHOUT_MIDDLE else "middle", "position": "-2"}
    fit = MeanDifference().fit(capture(model, contrast_set("six"), **where), clean=capture(model, clean, **where))
    probe = fit.probe_
    assert torch.equal(probe.read(model, PROMPTS).values, capture(model, PROMPTS, **where).values)
    scores = probe.decision_function(probe.read(model, PROMPTS[:1]))[0] * (len(clean) / (len(clean) - 1)) ** 0.5
    rows = token_scores(model, probe, PROMPTS[0], token_scale(model, probe, clean))
    there = [row["score"] for row in rows if row["position"] == rows[-1]["position"] - 1]
    torch.testing.assert_close(torch.tensor(there), scores, atol=2e-2, rtol=1e-2)
