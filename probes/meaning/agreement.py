"""Which questions of a contrast set point the same way, and whether the others would have found a question's direction.

A direction that only a few questions share is those questions' own. What all of one polarity share, though, is first
of all the answer word, so that is taken out of each question's difference before they are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ...activations import DefectionError, Prompt, Residuals
from ...activations.basics.files import Json
from ..estimators.fitting import SHORTEST, defecting_rows
from ..estimators.ragged import refuse_ragged
from ..questions.questions import AFFIRMING, polarity_of

By = Literal["question", "family"]


@dataclass(frozen=True)
class QuestionDirections:
    """One direction a question (or family) and layer: defecting answer minus the other."""

    names: tuple[str, ...]
    families: tuple[str, ...]
    layers: tuple[int, ...]
    values: Float[Tensor, "question layer d_model"]

    def cosines(self) -> Float[Tensor, "layer question question"]:
        """Cosine of every two directions at every layer; 0 where one of them vanishes."""
        unit = _unit(self.values)
        return torch.einsum("ald,bld->lab", unit, unit)

    def pairs(self, layers: Sequence[int] | None = None) -> list[Json]:
        """The cosine matrix as a tidy table: a row a layer and ordered pair; all layers, or some."""
        table = self.cosines()
        return [
            {"layer": layer, "a": a, "b": b, "cosine": float(table[self.layers.index(layer), i, j])}
            for layer in (self.layers if layers is None else layers)
            for i, a in enumerate(self.names)
            for j, b in enumerate(self.names)
        ]

    def agreement(self) -> list[Json]:
        """A row a question and layer: its mean cosine with the others of its family, and with those of other families.

        A question alone in its family, or a single family, has None there.
        """
        table = self.cosines()
        family = torch.tensor([self.families.index(name) for name in self.families])
        same = family[:, None] == family[None, :]
        itself = torch.eye(len(family), dtype=torch.bool)
        rows = []
        for i, name in enumerate(self.names):
            for column, layer in enumerate(self.layers):
                row = {"question": name, "family": self.families[i], "layer": layer}
                for field, others in (("within_family", same[i] & ~itself[i]), ("across_families", ~same[i])):
                    row[field] = float(table[column, i, others].mean()) if others.any() else None
                rows.append(row)
        return rows


def question_directions(contrast: Residuals, *, by: By = "question", keep_word: bool = False) -> QuestionDirections:
    """Defecting minus other answer of each question, all its turns averaged, at each layer.

    Unless `keep_word`, what lies along `answer_word_direction` is projected out: two questions of one polarity agree
    on the word whatever else they have in common.
    """
    groups = _grouped(contrast, by)
    values = torch.stack([_difference(contrast, rows) for rows in groups.values()])
    if not keep_word:
        values = _without(values, answer_word_direction(contrast))
    families = tuple(_family(contrast.prompts[rows[0]]) for rows in groups.values())
    return QuestionDirections(tuple(groups), families, contrast.layers, values)


def answer_word_direction(contrast: Residuals) -> Float[Tensor, "layer d_model"]:
    """Mean residual after the affirming answer minus mean after the denying one, per layer, in fp64.

    In a balanced set each word is the defecting one half of the time, so defection cancels and the word is left.
    Of two answers of which neither affirms (letters, say) the one later in the alphabet counts as affirming.
    Raises DefectionError unless the texts hold exactly two answers.
    """
    marks = _affirming_rows(contrast)
    values = contrast.values.double()
    return values[marks].mean(dim=0) - values[~marks].mean(dim=0)


@dataclass(frozen=True)
class LeftOut:
    """Mean differences fitted without one question (or family) each."""

    directions: QuestionDirections
    """`values[i]` is what `MeanDifference` finds on all texts but those of `names[i]`."""
    table: list[Json]
    """A row a left-out group and layer: `cosine` with the direction of all, and `margin`, how far the group's own two
    answers lie apart along the others' direction, in units of the whole set's mean difference there; above 0 the others
    tell the left-out answers apart. The answer word, as the others say it, is taken out of both."""


def leave_one_out(contrast: Residuals, *, by: By = "question") -> LeftOut:
    """Fit the mean difference without each question, or family, in turn, by subtracting its rows from the sums.

    Raises DefectionError when there is nothing left to fit.
    """
    groups = _grouped(contrast, by)
    if len(groups) < 2:
        raise DefectionError(f"leaving one {by} out of a single one leaves nothing to fit; use a larger contrast set")
    values, defecting, affirming = contrast.values.double(), defecting_rows(contrast), _affirming_rows(contrast)
    whole = values[defecting].mean(dim=0) - values[~defecting].mean(dim=0)
    spread = whole.norm(dim=-1).clamp_min(1e-300)
    directions, table = [], []
    for name, rows in groups.items():
        own = _difference(contrast, rows)
        others = _means_apart_without(values, defecting, rows, f"{by} {name!r}")
        word = _means_apart_without(values, affirming, rows, f"{by} {name!r}")
        directions.append(others)
        wordless = _without(others, word)
        margins = (_without(own, word) * _unit(wordless)).sum(dim=-1) / spread
        cosines = (_unit(others) * _unit(whole)).sum(dim=-1)
        table += [
            {"left_out": name, "by": by, "layer": layer, "cosine": float(cosine), "margin": float(margin)}
            for layer, cosine, margin in zip(contrast.layers, cosines, margins, strict=True)
        ]
    families = tuple(_family(contrast.prompts[rows[0]]) for rows in groups.values())
    return LeftOut(QuestionDirections(tuple(groups), families, contrast.layers, torch.stack(directions)), table)


def _grouped(contrast: Residuals, by: By) -> dict[str, list[int]]:
    refuse_ragged(contrast)
    named: Callable[[Prompt], str] = _family if by == "family" else lambda prompt: prompt.topic
    groups: dict[str, list[int]] = {}
    for row, prompt in enumerate(contrast.prompts):
        groups.setdefault(named(prompt), []).append(row)
    return groups


def _family(prompt: Prompt) -> str:
    return str(prompt.extra.get("family", "none"))


def _affirming_rows(contrast: Residuals) -> Tensor:
    refuse_ragged(contrast)
    answers = [str(prompt.extra.get("answer", "")) for prompt in contrast.prompts]
    found = sorted(set(answers))
    if len(found) != 2:
        raise DefectionError(
            f"an answer word has a direction when there are two answers, but these texts hold {len(found)}: "
            f"{', '.join(map(repr, found[:4]))}; compare questions of one format at a time"
        )
    affirming = found[0] if polarity_of(found[0], found[1]) == AFFIRMING else found[1]
    return torch.tensor([answer == affirming for answer in answers])


def _difference(contrast: Residuals, rows: Sequence[int]) -> Float[Tensor, "layer d_model"]:
    part = contrast.select(rows)
    marks = defecting_rows(part)
    values = part.values.double()
    return values[marks].mean(dim=0) - values[~marks].mean(dim=0)


def _means_apart_without(values: Tensor, marks: Tensor, rows: Sequence[int], what: str) -> Tensor:
    """Mean of the marked rows minus mean of the others, those of `rows` left out of both."""
    kept = torch.ones(len(marks), dtype=torch.bool)
    kept[list(rows)] = False
    if not (marks & kept).any() or not (~marks & kept).any():
        raise DefectionError(f"without {what} the contrast texts no longer hold both kinds of answer")
    return values[marks & kept].mean(dim=0) - values[~marks & kept].mean(dim=0)


def _unit(vectors: Tensor) -> Tensor:
    return normalize(vectors, dim=-1, eps=SHORTEST)


def _without(vectors: Float[Tensor, "*batch layer d_model"], direction: Float[Tensor, "layer d_model"]) -> Tensor:
    """The vectors with their component along `direction` removed, layer by layer."""
    unit = _unit(direction)
    return vectors - (vectors * unit).sum(dim=-1, keepdim=True) * unit
