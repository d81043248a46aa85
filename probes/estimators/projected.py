"""Projected mean difference: what ordinary prompts vary in most is taken out of the direction."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from ...activations.basics.errors import DefectionError
from .components import leading_components
from .guard import CONTRAST_OR_LABELS, Evidence
from .mean_difference import OfDifference
from .sample import Labelled, centred


class Projected(OfDifference):
    """Mean difference without its part in the leading principal components of clean prompts.

    Those components carry topic, length and format; a direction that overlaps them reads the prompt's subject.

    Examples:
        >>> Projected().fit(X, y, clean=clean).decision_function(X).shape
        (40, 3)
    """

    name = "projected"
    sees = CONTRAST_OR_LABELS | {Evidence.CLEAN}
    needs = frozenset({Evidence.CONTRAST, Evidence.CLEAN})
    """Clean prompts give the components."""

    def __init__(self, components: int = 4) -> None:
        self.components = components

    def _mapped(self, sample: Labelled, differences: Float[Tensor, "layer k d"]) -> Float[Tensor, "layer k d"]:
        clean = sample.clean_for(self.name)
        if not 0 <= self.components < min(len(clean), clean.shape[-1]):
            raise DefectionError(
                f"cannot remove {self.components} components with {len(clean)} clean prompts: give more, or "
                "take mean-difference"
            )
        components = leading_components(centred(clean, coarse=sample.coarse)[0], self.components)
        return without_components(differences, components)


def without_components(
    directions: Float[Tensor, "layer k d"], components: Float[Tensor, "layer component d"]
) -> Float[Tensor, "layer k d"]:
    """What is left of each layer's directions outside of its orthonormal components."""
    return directions - (directions @ components.mT) @ components
