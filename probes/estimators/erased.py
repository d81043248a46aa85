"""Mean difference after concept erasure: the direction, made blind to the answer's word, to length and to style."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...activations import DefectionError, Residuals
from ..statistics.scale import divisor
from .guard import CONTRAST_OR_LABELS, Evidence
from .mean_difference import OfDifference
from .sample import Labelled, centred
from .solving.covariance import divide_by_covariance
from .whitened import shrunk

NUISANCES = ("answer", "length", "style")
INDEPENDENT = 1e-9


class Erased(OfDifference):
    """Mean difference of rows from which named nuisances were erased by LEACE (Belrose et al. 2023, theorem 4.3).

    With A the covariances of the rows with the nuisances and Σ the rows' own covariance (shrunk), erasing is
    x ↦ x − A (AᵀΣ⁻¹A)⁺ AᵀΣ⁻¹ (x − μ), the smallest change after which no linear reader finds a nuisance: the scores'
    covariance with each of them is exactly 0 on the rows it was measured on. The answer's word is measured on contrast
    texts; length (tokens) and style (the clean prompts' `shape`, else their set) on clean prompts, when there are any.
    Arrays bring their own `nuisance` [n] or [n, k].

    Examples:
        >>> Erased().fit(X, y, clean=clean, groups=groups, nuisance=length).decision_function(X).shape
        (40, 3)
    """

    name = "erased"
    sees = CONTRAST_OR_LABELS | {Evidence.CLEAN}
    """Clean prompts show length and style."""

    def __init__(self, nuisances: tuple[str, ...] = NUISANCES, shrinkage: float | str = "ledoit-wolf") -> None:
        self.nuisances = nuisances
        self.shrinkage = shrinkage

    def _facts(self, contrast: Residuals, clean: Residuals | None) -> dict[str, Tensor | None]:
        for name in self.nuisances:
            if name not in NUISANCES:
                raise DefectionError(f"unknown nuisance {name!r}: choose from {', '.join(NUISANCES)}")
        device = contrast.values.device
        answers = answer_words(contrast) if "answer" in self.nuisances else None
        columns = []
        if clean is not None and "length" in self.nuisances:
            columns.append(torch.tensor(clean.n_tokens, dtype=torch.float64)[:, None])
        if clean is not None and "style" in self.nuisances:
            columns.append(one_hot([str(prompt.extra.get("shape", prompt.set)) for prompt in clean.prompts]))
        return {
            "nuisance": None if answers is None else answers.to(device),
            "clean_nuisance": torch.cat(columns, dim=1).to(device) if columns else None,
        }

    def _mapped(self, sample: Labelled, differences: Float[Tensor, "layer k d"]) -> Float[Tensor, "layer k d"]:
        measured = [(sample.rows, sample.nuisance), (sample.clean, sample.clean_nuisance)]
        pairs = [(rows, nuisance) for rows, nuisance in measured if rows is not None and nuisance is not None]
        if not pairs:
            return differences
        columns = differences.mT
        covariances = torch.cat([covariance_with(rows, nuisance) for rows, nuisance in pairs], dim=2)
        rows, ridge, product = shrunk([(rows, 1 / len(pairs)) for rows, _ in pairs], self.shrinkage)
        divided = divide_by_covariance(rows, ridge, covariances, product)
        inverse = torch.linalg.pinv(covariances.mT @ divided, rtol=INDEPENDENT, hermitian=True)
        erased = columns - covariances @ (inverse @ (divided.mT @ columns))
        found: Tensor = (erased - divided @ (inverse @ (covariances.mT @ erased))).mT
        return found


def covariance_with(rows: Float[Tensor, "n layer d"], nuisance: Float[Tensor, "n k"]) -> Float[Tensor, "layer d k"]:
    """Covariance of every dimension with every nuisance, the latter scaled to unit variance."""
    centred_nuisance = nuisance - nuisance.mean(dim=0)
    spread = centred_nuisance.square().mean(dim=0).sqrt()
    scaled = centred_nuisance / divisor(spread)
    stack, _ = centred(rows)
    covariances = stack.mT @ scaled / len(scaled)
    # A nuisance that the rows do not show leaves rounding, which must not be erased as if it were a direction.
    total = stack.square().sum(dim=(1, 2)).div(len(scaled)).sqrt()
    shown = covariances.norm(dim=1) > INDEPENDENT * total[:, None]
    return torch.where(shown[:, None], covariances, torch.zeros_like(covariances))


def answer_words(contrast: Residuals) -> Float[Tensor, "text word"]:
    """Which answer each text gives, a column a word; DefectionError when the texts do not say."""
    words = [prompt.extra.get("answer") for prompt in contrast.prompts]
    if any(word is None for word in words):
        name = contrast.prompts[words.index(None)].id
        raise DefectionError(f"contrast text {name!r} does not say its answer, which was to be erased")
    return one_hot([str(word).casefold() for word in words])


def one_hot(names: list[str]) -> Float[Tensor, "row name"]:
    """A column a name, in sorted order, but for the last one, which the others imply."""
    found, numbers = np.unique(names, return_inverse=True)
    return torch.nn.functional.one_hot(torch.as_tensor(numbers), len(found))[:, : max(1, len(found) - 1)].double()
