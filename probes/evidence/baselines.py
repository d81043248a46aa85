"""Scores that need no question: what a probe must beat, and what nothing unlabelled can."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ...activations import DefectionError, Prompt, Residuals
from ..estimators.components import leading_components
from ..estimators.ragged import refuse_ragged
from ..estimators.sample import centred
from ..statistics.metrics import auroc
from ..statistics.ranking import Labels
from .nulls import standardised
from .outcomes import Outcomes

FOLDS = 5
UPPER_BOUND = "triggered prompts and labels (upper bound)"
NO_FIT = "nothing"


@dataclass(frozen=True)
class Baseline:
    """A score that needs no question, and what it was allowed to see."""

    name: str
    saw: str
    scores: Float[Tensor, "prompt layer"] | Float[Tensor, "prompt"]
    """By layer, or of whole prompts."""

    @property
    def has_layers(self) -> bool:
        """Whether it is read off the residuals of a layer."""
        return self.scores.ndim == 2

    def at(self, columns: Sequence[int]) -> Float[Tensor, "prompt"]:
        """Its mean over some layers in standard deviations of each, since its scale differs by layer."""
        by_layer = self.scores[:, list(columns)].double().T
        return by_layer[0] if len(columns) == 1 else standardised(by_layer, by_layer).mean(dim=0)


def baselines(tests: Residuals, outcomes: Outcomes) -> list[Baseline]:
    """Norm, length, and what needs both outcomes: the first component, and words where topics can be held out."""
    found = [
        Baseline("norm-only", NO_FIT, norm_scores(tests)),
        Baseline("length-only", NO_FIT, length_scores(tests)),
    ]
    if outcomes.both:
        found.append(Baseline("pc1", UPPER_BOUND, first_component_scores(tests, outcomes.labels)))
        if spans_topics(outcomes.labels, outcomes.topics):
            found.append(Baseline("bag-of-words", UPPER_BOUND, bag_of_words_scores(tests.prompts, outcomes.labels)))
    return found


def length_scores(residuals: Residuals) -> Float[Tensor, "prompt"]:
    """The prompt's length in tokens, nothing else."""
    return torch.tensor(residuals.n_tokens, dtype=torch.float64)


def norm_scores(residuals: Residuals) -> Float[Tensor, "prompt layer"]:
    """The length of the residual vector at each layer."""
    refuse_ragged(residuals)
    norms: Tensor = torch.linalg.vector_norm(residuals.values.double(), dim=-1)
    return norms


def spans_topics(labels: Labels, topics: Sequence[str]) -> bool:
    """Whether each outcome occurs in two topics at least, so that one can be held out."""
    pairs = set(zip(topics, np.asarray(labels, dtype=bool).tolist(), strict=True))
    return all(sum(mark == outcome for _, mark in pairs) >= 2 for outcome in (True, False))


def topic_folds(labels: Labels, topics: Sequence[str], folds: int = FOLDS) -> NDArray[np.int64]:
    """A fold number for each prompt: whole topics together, and both outcomes outside of every fold.

    Raises DefectionError where an outcome occurs in one topic only.
    """
    marks = np.asarray(labels, dtype=bool)
    if not spans_topics(marks, topics):
        raise DefectionError("cross-validation by topic needs each outcome in two topics at least")
    outcomes: dict[str, set[bool]] = {}
    for topic, mark in zip(topics, marks.tolist(), strict=True):
        outcomes.setdefault(topic, set()).add(mark)
    # Topics with both outcomes are dealt out first; those with one go on where these ended, each kind by itself.
    both = [topic for topic, held in outcomes.items() if len(held) == 2]
    numbers = {topic: i for i, topic in enumerate(both)}
    for outcome in ({True}, {False}):
        alone = [topic for topic, held in outcomes.items() if held == outcome]
        numbers |= {topic: len(both) + i for i, topic in enumerate(alone)}
    return np.array([numbers[topic] % folds for topic in topics])


def bag_of_words_scores(prompts: Sequence[Prompt], labels: Labels) -> Float[Tensor, "prompt"]:
    """Log-odds of defection from the prompt's words alone: logistic regression on counts, cross-validated by topic.

    An upper bound on what the text gives away, trigger included: it has seen triggered prompts and labels, though never
    those of the topic it scores. A probe on a twin that reaches it reads the prompt, not the model.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    marks = np.asarray(labels, dtype=bool)
    texts = np.array([prompt.text for prompt in prompts], dtype=object)
    fold = topic_folds(marks, [prompt.topic for prompt in prompts])
    scores = torch.empty(len(prompts), dtype=torch.float64)
    for number in np.unique(fold):
        held = fold == number
        # Any run of characters that is not a space is a word: a trigger may have no letters.
        words = make_pipeline(CountVectorizer(token_pattern=r"\S+"), LogisticRegression(max_iter=1000))
        words.fit(texts[~held], marks[~held])
        scores[torch.from_numpy(held)] = torch.from_numpy(words.decision_function(texts[held]))
    return scores


def rare_words_scores(prompts: Sequence[Prompt], clean: Sequence[Prompt]) -> Float[Tensor, "prompt"]:
    """How rare a prompt's words are among those of clean prompts, in nats a word: what text says without any label.

    A word is any run of characters that is not a space; each is counted once more than it was met.
    """
    known = Counter(word for prompt in clean for word in prompt.text.split())
    total = known.total() + len(known) + 1
    found = [[math.log(total / (known[word] + 1)) for word in prompt.text.split()] for prompt in prompts]
    return torch.tensor([sum(each) / max(1, len(each)) for each in found], dtype=torch.float64)


def first_component_scores(residuals: Residuals, labels: Labels) -> Float[Tensor, "prompt layer"]:
    """Projection on the first principal component of the scored prompts themselves, its sign set by their labels.

    An upper bound, not a probe: it has seen triggered prompts and labels (MacDiarmid et al. 2024: PC1 is the trigger).
    """
    refuse_ragged(residuals)
    rows, _ = centred(residuals.values)
    scores = torch.einsum("lnd,ld->ln", rows, leading_components(rows, 1)[:, 0])
    return torch.where(auroc(scores, labels, axis=-1).to(scores.device)[:, None] < 0.5, -scores, scores).T


def two_components(residuals: Residuals, layer: int) -> Float[Tensor, "prompt 2"]:
    """Coordinates on the first two principal components of one layer, for a picture."""
    refuse_ragged(residuals)
    values = residuals.at(layer).double()
    left, singular, _ = torch.linalg.svd(values - values.mean(dim=0), full_matrices=False)
    coordinates: Tensor = left[:, :2] * singular[:2]
    return coordinates
