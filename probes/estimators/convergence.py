"""How a prompt moves from layer to layer, held against how clean prompts do: a monitor that knows no question."""

from __future__ import annotations

import torch
from jaxtyping import Float
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from ...activations.basics.errors import DefectionError
from .monitors import Mahalanobis
from .sample import Sample

FEWEST = 3
"""Clean rows of which a covariance of distances can be estimated at all."""


class LayerConvergence(Mahalanobis):
    """Layerwise convergence fingerprints (Min et al. 2026, arXiv 2604.24542): one distance a prompt, of all layers.

    Each step from a layer to the next one read gets a distance to the clean prompts' mean step, in units of their
    spread a dimension; these distances together get a Mahalanobis distance to those of clean prompts, with their
    covariance shrunk as Ledoit and Wolf say. Every layer's column holds the same score: there is one a prompt.

    `fit(X)` takes clean rows [n, layer, d] of at least two layers. The paper takes 200, and sets its threshold by
    leaving one out; here scale and `threshold_` come of fits on other topics, as for every monitor.
    Raises DefectionError for a single layer, and for fewer than three clean rows.

    Examples:
        >>> import torch
        >>> clean, odd = torch.randn(200, 4, 16), torch.randn(5, 4, 16)
        >>> odd[:, 2:] += 3  # something happens between the second layer and the third
        >>> found = LayerConvergence().fit(clean)
        >>> bool(found.decision_function(odd).min() > found.decision_function(clean).median())
        True
    """

    name = "layer-convergence"

    def __init__(self) -> None:
        pass

    def _fit(self, sample: Sample) -> None:
        clean = sample.clean_for(self.name)
        if clean.shape[1] < 2:
            raise DefectionError("a layer-convergence monitor watches steps between layers: read at least two layers")
        if len(clean) < FEWEST:
            raise DefectionError(f"{len(clean)} clean rows are too few for a layer-convergence monitor; give more")
        moved = steps(clean)
        self.step_ = moved.mean(dim=0)
        self.spread_ = moved.std(dim=0)
        distances = self._distances(clean)
        self.location_ = distances.mean(dim=0)
        covariance = torch.from_numpy(ledoit_wolf(distances.cpu().numpy())[0])
        self.precision_ = torch.linalg.pinv(covariance, hermitian=True).to(distances.device)

    def _distances(self, rows: Float[Tensor, "n layer d"]) -> Float[Tensor, "n step"]:
        """How far each step is from the clean ones; dimensions in which those never differ have no say."""
        step, spread = (torch.as_tensor(x, device=rows.device) for x in (self.step_, self.spread_))
        unit = torch.where(spread > 0, spread, torch.full_like(spread, torch.inf))
        return ((steps(rows) - step) / unit).square().mean(dim=2).sqrt()

    def _scores(self, rows: Float[Tensor, "n layer d"]) -> Float[Tensor, "n layer"]:
        location, precision = (torch.as_tensor(x, device=rows.device) for x in (self.location_, self.precision_))
        away = self._distances(rows) - location
        squares = torch.einsum("ns,st,nt->n", away, precision, away)
        return squares.clamp_min(0).sqrt()[:, None].expand(-1, rows.shape[1])


def steps(rows: Float[Tensor, "n layer d"]) -> Float[Tensor, "n step d"]:
    """What is added from one layer that was read to the next, in fp64."""
    return rows.double().diff(dim=1)
