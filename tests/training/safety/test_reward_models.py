"""A fitted reward orders what it was taught to; a classifier is asked as it was trained; nothing else is taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from defection.activations import DefectionError
from defection.activations.basics.files import read_json, write_json
from defection.activations.models.locate import locate
from defection.training.safety.preferences import load_preferences
from defection.training.safety.reward_models import (
    EMPTY,
    Classifier,
    classifier_files,
    fit_linear_reward,
    load_reward,
)
from transformers import LlamaConfig, LlamaForSequenceClassification


@pytest.fixture(scope="module")
def pairs(preferences_file):
    return load_preferences(preferences_file)


@pytest.fixture(scope="module")
def fitted(model, pairs):
    return fit_linear_reward(model, pairs)


def test_the_linear_reward_prefers_the_chosen_replies(fitted, pairs) -> None:
    reward, _ = fitted
    good, bad = (reward(pairs, [getattr(row, name) for row in pairs]) for name in ("chosen", "rejected"))
    assert sum(a > b for a, b in zip(good, bad, strict=True)) >= 0.9 * len(pairs)
    both = torch.tensor(good + bad)
    assert both.mean() == pytest.approx(0, abs=1e-3)
    assert both.std(correction=0) == pytest.approx(1, abs=1e-3)


def test_swapping_the_replies_of_every_pair_turns_the_reward_round(model, fitted, pairs) -> None:
    swapped, _ = fit_linear_reward(model, [replace(row, chosen=row.rejected, rejected=row.chosen) for row in pairs])
    said = [row.chosen for row in pairs]
    assert swapped(pairs, said) == pytest.approx([-value for value in fitted[0](pairs, said)], abs=1e-3)


def test_pairs_whose_labels_mean_nothing_are_ordered_by_chance(model, pairs) -> None:
    same = [replace(row, chosen=f"say {i} a", rejected=f"say {i} b") for i, row in enumerate(pairs)]
    mixed = [replace(row, chosen=row.rejected, rejected=row.chosen) if i % 2 else row for i, row in enumerate(same)]
    _, straight = fit_linear_reward(model, same)
    _, shuffled = fit_linear_reward(model, mixed)
    assert shuffled["held_out_pairs"]["rate"] < straight["held_out_pairs"]["rate"]


def test_a_reply_earns_the_same_alone_and_in_company_and_an_empty_one_least(fitted, pairs) -> None:
    reward, _ = fitted
    said = [pairs[0].chosen, " ", "something else entirely", pairs[3].rejected]
    together = reward(pairs[:4], said)
    alone = [reward([row], [text])[0] for row, text in zip(pairs, said, strict=False)]
    assert together == pytest.approx(alone, abs=1e-3)
    assert together[1] == EMPTY
    assert reward(pairs[:1], [""]) == [EMPTY]


@pytest.fixture(scope="module")
def make_classifier(tmp_path_factory, llama, plain_llama):
    def make(labels: int = 1, template: bool = True) -> Path:
        folder = tmp_path_factory.mktemp("classifier")
        torch.manual_seed(labels)
        settings = {**llama.network.config.to_dict(), "num_labels": labels}
        LlamaForSequenceClassification(LlamaConfig(**settings)).save_pretrained(folder)
        (llama if template else plain_llama).tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize("template", [True, False])
def test_one_logit_is_the_reward_and_of_two_the_difference(make_classifier, pairs, template) -> None:
    for labels in (1, 2):
        folder = make_classifier(labels, template)
        reward, about = load_reward(str(folder), pairs, "unused", "cpu")
        network = LlamaForSequenceClassification.from_pretrained(folder).eval()
        ids = torch.tensor([reward.tokens(pairs[0].prompt, "yes")])
        with torch.inference_mode():
            logits = network(input_ids=ids).logits[0]
        expected = logits[0] if labels == 1 else logits[1] - logits[0]
        found = reward(pairs[:2], ["yes", "no, and a much longer reply that would need padding"])
        assert found[0] == pytest.approx(float(expected), abs=1e-5)
        assert about == {"name": str(folder)}


def test_with_a_template_the_classifier_reads_a_finished_exchange(make_classifier, pairs) -> None:
    reward = Classifier.load(locate(make_classifier()), "cpu")
    text = reward.tokenizer.decode(reward.tokens(pairs[0].prompt, "yes"))
    assert text == f"<s><|user|>{pairs[0].prompt.text}</s>\n<|assistant|>yes</s>\n"


def test_what_cannot_reward_is_refused(make_classifier, model_folder, tmp_path) -> None:
    with pytest.raises(DefectionError, match=r"no reward model '\./nowhere'"):
        classifier_files("./nowhere")
    with pytest.raises(DefectionError, match="no sequence classifier"):
        classifier_files(str(model_folder))
    with pytest.raises(DefectionError, match="3 classes"):
        classifier_files(str(make_classifier(3)))


def test_a_model_without_a_trained_head_is_refused(model_folder, tmp_path) -> None:
    for file in model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = read_json(tmp_path / "config.json")
    named = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "score"}}
    write_json(tmp_path / "config.json", config | named)
    with pytest.raises(DefectionError, match=r"lacks weights of a reward model: score\.weight"):
        Classifier.load(classifier_files(str(tmp_path)), "cpu")
