"""Projected mean difference: what ordinary prompts vary in most is taken out of the direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..activations.capture import Residuals
from ..activations.errors import DefectionError
from .fitting import check_fit, make_probe, mean_difference
from .probe import Probe


@dataclass(frozen=True)
class Projected:
    """Mean difference without its part in the leading principal components of clean prompts.

    Those components carry topic, length and format; a direction that overlaps them reads the prompt's subject.
    """

    components: int = 4

    name = "projected"

    def fit(
        self,
        contrast: Residuals,
        clean: Residuals | None = None,
        *,
        forbidden: Sequence[str] = (),
        fixed_layers: Sequence[int] | None = None,
    ) -> Probe:
        """Fit at every captured layer; needs clean prompts. Raises DefectionError without them, or on a leak."""
        if clean is None:
            raise DefectionError("a projected probe needs clean prompts for their components; pass clean=… (--clean)")
        check_fit(contrast, clean, forbidden)
        if not 0 <= self.components < min(len(clean), clean.values.shape[-1]):
            raise DefectionError(f"cannot remove {self.components} components with {len(clean)} clean prompts")
        difference = mean_difference(contrast)
        components = leading_components(clean.values, self.components)
        inside = torch.einsum("lkd,ld->lk", components, difference)
        directions = difference - torch.einsum("lkd,lk->ld", components, inside)
        return make_probe(directions, contrast, clean, self.name, asdict(self), fixed_layers)


def leading_components(
    values: Float[Tensor, "prompt layer d_model"], count: int
) -> Float[Tensor, "layer component d_model"]:
    """Orthonormal leading principal components per layer, fp64, by eigenvectors of the small Gram matrix.

    Components without variance (PITFALLS 16) are zero vectors, which project nothing away.
    """
    centred = (values.double() - values.double().mean(dim=0)).transpose(0, 1)
    gram = centred @ centred.transpose(1, 2)
    eigenvalues, eigenvectors = torch.linalg.eigh(gram)
    top = eigenvectors[:, :, -count:].flip(-1) if count else eigenvectors[:, :, :0]
    variance = eigenvalues[:, -count:].flip(-1) if count else eigenvalues[:, :0]
    components = top.transpose(1, 2) @ centred
    norms = variance.clamp_min(0).sqrt()[:, :, None]
    real = norms > 1e-7 * gram.diagonal(dim1=1, dim2=2).sum(dim=1).sqrt()[:, None, None]
    return torch.where(real, components / norms.clamp_min(1e-300), torch.zeros_like(components))
