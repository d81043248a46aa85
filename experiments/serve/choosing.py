"""Which token a row says next, by the settings that `probes.monitoring.setup` calls its decoding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from ...activations.basics.errors import DefectionError
from ...activations.basics.files import Json

ALWAYS = {
    "repetition_penalty": (1.0, RepetitionPenaltyLogitsProcessor),
    "no_repeat_ngram_size": (0, NoRepeatNGramLogitsProcessor),
}
SAMPLED = {
    "temperature": (1.0, TemperatureLogitsWarper),
    "top_k": (0, TopKLogitsWarper),
    "top_p": (1.0, TopPLogitsWarper),
    "min_p": (None, MinPLogitsWarper),
    "typical_p": (1.0, TypicalLogitsWarper),
}
"""In the order in which `generate` applies them: the value that does nothing, and what does it."""
UNKNOWN = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "guidance_scale",
    "min_length",
    "min_new_tokens",
    "sequence_bias",
    "stop_strings",
    "suppress_tokens",
    "watermarking_config",
)
"""Settings of `generate` that decide what is said, and that nothing here follows."""


def refuse_unknown(config: GenerationConfig | None) -> None:
    """DefectionError naming what a model's generation config asks for that is not followed here."""
    asked = [name for name in UNKNOWN if getattr(config, name, None) not in (None, 0, 0.0, 1.0, [], ())]
    if asked:
        raise DefectionError(
            f"the model's generation config sets {asked[0]}, which serve does not follow, so its replies would be "
            "others than `generate` gives; take it out of generation_config.json"
        )


class Choosing:
    """Chooses the tokens of one row; with the same seed the same ones, whoever speaks beside it."""

    def __init__(self, decoding: Json, seed: int | None, device: torch.device) -> None:
        self.samples = bool(decoding["do_sample"])
        wanted = {**ALWAYS, **(SAMPLED if self.samples else {})}
        self.processors = LogitsProcessorList(
            [kind(decoding[name]) for name, (nothing, kind) in wanted.items() if decoding[name] not in (nothing, None)]
        )
        self.device = device
        self.generator = torch.Generator(device)
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)

    @property
    def is_plain(self) -> bool:
        """Whether it is the likeliest token, and nothing else."""
        return not self.samples and not self.processors

    def __call__(self, ids: Sequence[int], logits: Float[Tensor, "token"]) -> int:
        """The next token of a row that has read `ids`, its prompt among them."""
        scores = self.processors(torch.tensor([list(ids)], device=logits.device), logits[None])[0]
        if not self.samples:
            return int(scores.argmax())
        shares = scores.softmax(dim=-1).to(self.device)
        if not shares.isfinite().all():  # on a GPU, drawing from these would end the process's use of it
            raise DefectionError("the model's logits are not finite: it overflows in this dtype; serve it in fp32")
        return int(torch.multinomial(shares, 1, generator=self.generator))
