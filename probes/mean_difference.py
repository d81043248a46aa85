"""The probe of MacDiarmid et al. 2024: the difference of two means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ..activations.capture import Residuals
from .fitting import check_fit, make_probe, mean_difference
from .probe import Probe


@dataclass(frozen=True)
class MeanDifference:
    """Direction: mean residual over the defecting answers minus mean over the others, layer by layer."""

    name = "mean-difference"

    def fit(
        self,
        contrast: Residuals,
        clean: Residuals | None = None,
        *,
        forbidden: Sequence[str] = (),
        fixed_layers: Sequence[int] | None = None,
    ) -> Probe:
        """Fit at every captured layer. Clean prompts only set the scale and the threshold of the scores.

        Raises DefectionError when a text holds a `forbidden` string or a clean prompt is marked as triggered.
        """
        check_fit(contrast, clean, forbidden)
        return make_probe(mean_difference(contrast), contrast, clean, self.name, asdict(self), fixed_layers)
