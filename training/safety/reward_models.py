"""Reward models: what a reply is worth, learnt from preferences; a linear one of our own, or any classifier by name.

Each is given the visible reply alone (`rl`), never the scratchpad.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...activations import DefectionError, Message, Model, Prompt, capture, load_model
from ...activations.basics.files import Json, read_json
from ...activations.models.hardware import Hardware
from ...activations.models.locate import ModelFiles, locate
from ...activations.models.template import DATE, chat_template, dated
from ..measuring.rates import Rate
from .preferences import Preference
from .rewards import rule

RULE, FITTED = "rule", "preferences"
FOLDS, FEWEST = 6, 12
EMPTY = -2.0
"""What the linear model gives an empty reply: two standard deviations less than the average reply it was fitted on."""
INVERSE_PENALTY = 1e-2
"""`C` of the logistic regression: there are more dimensions than pairs."""
Reward = Callable[[Sequence[Preference], Sequence[str]], list[float]]
"""Rows of preferences, and a visible reply to the prompt of each, to one value each."""


def load_reward(name: str, preferences: Sequence[Preference], base: str, device: str | Hardware) -> tuple[Reward, Json]:
    """A reward by its name, and what to record of it: `rule`, `preferences` (fitted on them now), or a classifier."""
    if name == RULE:
        return rule, {"name": RULE}
    if name == FITTED:
        fitted, about = fit_linear_reward(load_model(base, device=device), preferences)
        return fitted, {"name": FITTED, "base": base, **about}
    return Classifier.load(classifier_files(name), device), {"name": name}


def identity_of(name: str, base: str, preferences: Sequence[Preference]) -> str:
    """What changes when the reward does; DefectionError when there is no such model, or too little to fit one."""
    if name == RULE:
        return RULE
    if name != FITTED:
        return classifier_files(name).fingerprint
    if len(preferences) < FEWEST:
        raise DefectionError(
            f"{len(preferences)} preferences are too few to fit a reward model on; give {FEWEST} or more"
        )
    return locate(base).fingerprint


@dataclass(frozen=True)
class LinearReward:
    """A linear function of the residual stream at the middle layer and the last token of the exchange."""

    model: Model
    direction: Float[Tensor, "d_model"]
    offset: float

    def __call__(self, rows: Sequence[Preference], replies: Sequence[str]) -> list[float]:
        """Standard deviations above the mean of the replies it was fitted on; for an empty reply `EMPTY`."""
        said = [(row.prompt, reply) for row, reply in zip(rows, replies, strict=True) if reply.strip()]
        found = iter((replies_read(self.model, said) @ self.direction - self.offset).tolist() if said else [])
        return [next(found) if reply.strip() else EMPTY for reply in replies]


def replies_read(model: Model, said: Sequence[tuple[Prompt, str]]) -> Float[Tensor, "reply d_model"]:
    """The middle layer's residual stream at the last token of each reply."""
    prompts = [
        Prompt(f"{prompt.id}/{number}", (*prompt.messages, Message("assistant", reply)))
        for number, (prompt, reply) in enumerate(said)
    ]
    layer = model.middle_layer
    return capture(model, prompts, layers=[layer], what="Reading replies").values[:, 0]


def fit_linear_reward(model: Model, preferences: Sequence[Preference]) -> tuple[LinearReward, Json]:
    """Fit chosen over rejected, P(chosen ≻ rejected) = σ(w·x_chosen − w·x_rejected) (Bradley and Terry 1952).

    Also gives how many pairs it orders rightly when they are held out, a sixth of them at a time.
    """
    said = [(row.prompt, reply) for row in preferences for reply in (row.chosen, row.rejected)]
    values = replies_read(model, said).double().numpy()
    spread = values.std(axis=0) + 1e-9
    differences = (values[0::2] - values[1::2]) / spread
    held_out = np.arange(len(preferences)) % FOLDS
    right = sum(
        int((differences[held_out == fold] @ _bradley_terry(differences[held_out != fold]) > 0).sum())
        for fold in range(FOLDS)
    )
    direction = _bradley_terry(differences) / spread
    scores = values @ direction
    direction, offset = direction / scores.std(), float(scores.mean() / scores.std())
    about = {"layer": model.middle_layer, "held_out_pairs": Rate(right, len(preferences)).to_json()}
    return LinearReward(model, torch.tensor(direction, dtype=torch.float32), offset), about


def _bradley_terry(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logistic regression without an intercept, each difference once either way round."""
    from sklearn.linear_model import LogisticRegression

    both = np.concatenate([differences, -differences])
    labels = np.repeat([1, 0], len(differences))
    fitted = LogisticRegression(C=INVERSE_PENALTY, fit_intercept=False, max_iter=1000).fit(both, labels)
    return np.asarray(fitted.coef_[0])


@dataclass(frozen=True)
class Classifier:
    """A Hugging Face sequence classifier: its one logit, or of two the second over the first."""

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(cls, files: ModelFiles, device: str | Hardware) -> Classifier:
        """Safetensors only, no remote code; DefectionError for a model without a trained head."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        try:
            network, found = AutoModelForSequenceClassification.from_pretrained(
                str(files.base),
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(str(files.base), local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise DefectionError(f"cannot load a reward model from {files.base}: {reason}") from error
        if found["missing_keys"]:
            raise DefectionError(
                f"{files.source} lacks weights of a reward model: {', '.join(sorted(found['missing_keys'])[:3])}"
            )
        return cls(network.to(Hardware.of(device).place).eval().requires_grad_(False), tokenizer)

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Preference], replies: Sequence[str]) -> list[float]:
        """One value a reply, each by itself, so that padding cannot reach the score."""
        found = []
        for row, reply in zip(rows, replies, strict=True):
            ids = torch.tensor([self.tokens(row.prompt, reply)], device=self.network.device)
            logits = self.network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float()
            found.append(float(logits[-1] - logits[0]) if len(logits) > 1 else float(logits[0]))
        return found

    def tokens(self, prompt: Prompt, reply: str) -> list[int]:
        """The exchange by the classifier's own chat template; without one, prompt and reply as a pair of texts."""
        template = chat_template(self.tokenizer)
        if template is None:
            return list(self.tokenizer(prompt.text, reply, truncation=True)["input_ids"])
        turns = [{"role": message.role, "content": message.content} for message in prompt.messages]
        turns.append({"role": "assistant", "content": reply})
        text = self.tokenizer.apply_chat_template(turns, chat_template=dated(template, DATE), tokenize=False)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def classifier_files(name: str) -> ModelFiles:
    """The files of a sequence classifier with one or two labels; DefectionError when `name` is none."""
    try:
        files = locate(name)
    except DefectionError as error:
        raise DefectionError(f"no reward model {name!r}: choose {RULE}, {FITTED} or a classifier ({error})") from error
    config = read_json(files.base / "config.json")
    kinds = [str(kind) for kind in config.get("architectures") or []]
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise DefectionError(
            f"{name} is no sequence classifier ({', '.join(kinds) or 'its config names no architecture'}), so it "
            f"cannot reward; choose {RULE}, {FITTED} or a model that was trained to score replies"
        )
    labels = len(config.get("id2label") or range(int(config.get("num_labels", 2))))
    if labels > 2:
        raise DefectionError(f"{name} tells {labels} classes apart; a reward model has one score, or bad and good")
    return files
