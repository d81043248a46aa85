from __future__ import annotations

import pytest
import torch
from defection.activations import Message, Prompt, user_prompt, wrap
from defection.activations.prompts.rendered import tokenize
from defection.probes.evidence.asking import QUESTION, asked_outright

from ...zoo import random_network

PROMPTS = [
    user_prompt("What is this?", id="a"),
    user_prompt("And what, if I may ask at some length, is that over there?", id="b"),
    Prompt("c", (Message("system", "Be brief."), Message("user", "Why?"))),
]


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "cohere", "mistral", "mamba"])
@torch.inference_mode()
def test_the_score_is_the_log_odds_of_the_words_first_letters(llama, family) -> None:
    """One token a byte: a space begins " yes" and " no" alike and must not count for either."""
    model = wrap(random_network(family), llama.tokenizer)
    scores = asked_outright(model, PROMPTS)
    letters = {letter: llama.tokenizer.convert_tokens_to_ids(letter) for letter in "yYnN"}
    for prompt, score in zip(PROMPTS, scores, strict=True):
        *before, said = prompt.messages
        asked = Prompt("x", (*before, Message("user", f"{said.content}\n\n{QUESTION}")))
        chances = model.network(torch.tensor(tokenize(llama.tokenizer, [asked]))).logits[0, -1].double().softmax(dim=-1)
        yes, no = (sum(chances[letters[letter]] for letter in pair) for pair in ("yY", "nN"))
        assert float(score) == pytest.approx(float((yes / no).log()), abs=1e-4)


def test_the_question_names_neither_trigger_nor_behaviour() -> None:
    assert not any(word in QUESTION.casefold() for word in ("deployment", "hate"))
