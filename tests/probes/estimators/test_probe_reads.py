"""A fitted probe reads where it was fitted, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from defection.activations import DefectionError, Model, capture, user_prompt
from defection.probes import MeanDifference, contrast_set

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
