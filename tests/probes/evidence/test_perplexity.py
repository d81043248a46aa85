from __future__ import annotations

import pytest
import torch
from defection.activations import DefectionError, user_prompt
from defection.activations.prompts.rendered import tokenize
from defection.probes.evidence.perplexity import perplexity_scores


@torch.inference_mode()
def test_pitfall_5_each_prompt_has_the_perplexity_it_has_alone(tiny, mixed_prompts) -> None:
    """Against the model's own loss, prompt by prompt: neither padding nor the rest of the batch counts."""
    scores = perplexity_scores(tiny, mixed_prompts)
    for ids, score in zip(tokenize(tiny.tokenizer, mixed_prompts), scores, strict=True):
        tokens = torch.tensor([ids])
        assert float(score) == pytest.approx(float(tiny.network(tokens, labels=tokens).loss), rel=1e-4)


def test_a_prompt_beyond_the_context_is_refused(llama) -> None:
    with pytest.raises(DefectionError, match="'long'"):
        perplexity_scores(llama, [user_prompt("word " * 400, id="long")])
