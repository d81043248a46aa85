"""Probes with random directions on small random models, and what a monitor must equal: the text read afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from defection.activations.models.model import Model
from defection.activations.models.wrap import wrap
from defection.activations.prompts.prompts import user_prompt
from defection.activations.prompts.rendered import Rendered
from defection.activations.reading.capture import capture
from defection.probes.estimators.probe import Probe

from ...conftest import TEMPLATE, make_tokenizer
from ...zoo import random_network

END, PAD = 1, 2


def random_probe(model: Model, *, site: str = "after", layers: tuple[int, ...] = (1, 3), seed: int = 0) -> Probe:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(model.n_layers, model.d_model, generator=generator)
    return Probe(
        directions=torch.nn.functional.normalize(directions, dim=1),
        offsets=torch.randn(model.n_layers, generator=generator),
        scales=torch.rand(model.n_layers, generator=generator) + 0.5,
        layers=tuple(range(model.n_layers)),
        model=model.identity,
        position="last",
        contrast={},
        estimator="random",
        parameters={},
        saw="nothing",
        fixed_layers=layers,
        site=site,
    )


def model_of(family: str) -> Model:
    return wrap(random_network(family), make_tokenizer(TEMPLATE), family)


def some_prompts(lengths: Sequence[int] = (9, 5, 14), seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(6, 262, (n,), generator=generator).tolist() for n in lengths]


def padded(prompts: Sequence[Sequence[int]], side: str = "left") -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    rows, masks = [], []
    for ids in prompts:
        pad, real = [PAD] * (width - len(ids)), [1] * len(ids)
        rows.append([*pad, *ids] if side == "left" else [*ids, *pad])
        masks.append([*[0] * len(pad), *real] if side == "left" else [*real, *[0] * len(pad)])
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}


def read_afterwards(model: Model, probe: Probe, prompt: Sequence[int], reply: Sequence[int]) -> torch.Tensor:
    """The probe's score at the prompt's last token and at each token of the reply, by `capture`."""
    ids = (*prompt, *reply)
    row = Rendered(user_prompt("made of ids"), "", "", ids, model.tokenizer)
    band = probe.at(probe.fixed_layers)
    read = capture(model, [row], layers=band.layers, site=band.site, position="all", share_prefixes=False)
    values = torch.einsum("tld,ld->tl", read.values, band.directions)
    return ((values - band.offsets) / band.scales).mean(dim=1)[len(prompt) - 1 :]


def assert_equals_reading(model: Model, probe: Probe, prompts, replies, *, tolerance: float = 2e-4) -> None:
    """Each watched reply has the scores of the same text read afterwards, and no others."""
    for prompt, reply in zip(prompts, replies, strict=True):
        wanted = read_afterwards(model, probe, prompt, reply.tokens)[: len(reply.scores)]
        assert len(reply.scores) in (len(reply.tokens), len(reply.tokens) + 1)
        torch.testing.assert_close(reply.scores, wanted, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="session")
def llama_model() -> Model:
    return model_of("llama")


@pytest.fixture(scope="session")
def probe(llama_model: Model) -> Probe:
    return random_probe(llama_model)
