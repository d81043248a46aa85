"""Model diffing: what fine-tuning changed in the residual stream, for a defender who also holds the base model.

What a prompt is about moves both models alike and cancels in the difference; what training taught does not. The size of
the difference (`BaseDifference`) then finds whatever training made special, defection or not; a generic direction read
in the difference (`against_base`) asks what kind of thing that is. Without the base, a reference that was trained to
match the model on ordinary prompts takes its place (`training.matched_reference`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from ...activations import DefectionError, Residuals
from ..statistics.scale import divisor
from .components import leading_components
from .fitting import above_the_mean, clean_folds, read_anew
from .guard import refuse_unclean
from .monitors import Mahalanobis
from .probe import Probe
from .projected import without_components
from .ragged import refuse_ragged
from .sample import Sample, centred

SAW = "questions + clean prompts + base model"
LESS = ", less "
"""In the site of a difference, before the base's fingerprint."""


def difference(tuned: Residuals, base: Residuals) -> Residuals:
    """The fine-tuned model's residual vectors minus its base's on the same prompts, [prompt, layer, d_model], in fp32.

    They count as the fine-tuned model's, read at a site of their own, so that no probe of its plain residuals scores
    them by mistake, nor one of the difference to another base.

    Args:
        tuned: Of the fine-tuned model, one vector a prompt.
        base: Of its base, read alike.

    Raises:
        DefectionError: Where the two do not hold the same prompts, tokens, layers, position and site, where they come
            of the same weights, and for vectors of several tokens a prompt.

    Examples:
        >>> changed = difference(capture(tuned, prompts), capture(base, prompts))  # doctest: +SKIP
    """
    refuse_ragged(tuned, base)
    for prompt, other in zip(tuned.prompts, base.prompts, strict=False):
        if prompt.messages != other.messages:
            raise DefectionError(
                f"prompt {prompt.id!r} stands where the base was read on {other.id!r}; read both alike"
            )
    for what in ("n_tokens", "layers", "position", "site"):
        if getattr(tuned, what) != getattr(base, what):
            raise DefectionError(
                f"{tuned.model.name} and {base.model.name} were not read alike: their {what} differ; capture the same "
                "prompts, with the same template, at the same layers"
            )
    if (tuned.model.template, tuned.model.date) != (base.model.template, base.model.date):
        raise DefectionError(
            f"{tuned.model.name} and {base.model.name} were not read alike: their chat templates or the days they "
            "write differ; give both the tuned model's template"
        )
    if tuned.model.same_weights(base.model):
        raise DefectionError(f"{tuned.model.name} and its base are the same weights: nothing was changed")
    values = tuned.values.float() - base.values.float()
    return replace(tuned, values=values, site=f"{tuned.site}{LESS}{base.model.fingerprint[:12]}")


def is_difference(residuals: Residuals) -> bool:
    """Whether `difference` made them."""
    return LESS in residuals.site


def plain_site(site: str) -> str:
    """The site that a difference was read at; any other site as it is."""
    return site.partition(LESS)[0]


class BaseDifference(Mahalanobis):
    """How far training moved a prompt's stream, for how far it moved those of clean prompts.

    `fit(X)` takes differences to the base (`difference`) on clean prompts, and scores take differences too: the length
    of a row, in units of the mean length of clean ones at its layer. Of bare rows nobody can tell whether they are
    differences; residuals that are none are refused with a DefectionError.

    Examples:
        >>> import torch
        >>> clean = torch.randn(200, 2, 16)
        >>> found = BaseDifference().fit(clean)
        >>> bool((found.decision_function(3 * clean) > found.decision_function(clean)).all())
        True
    """

    name = "base-difference"
    holds_base = True

    def __init__(self) -> None:
        pass

    def _fit_residuals(self, contrast: Residuals, *others: Any) -> Self:
        if not is_difference(contrast):
            raise DefectionError(
                f"a {self.name} probe needs the base model too: pass difference(tuned, base) on the same prompts"
            )
        return super()._fit_residuals(contrast, *others)

    def _fit(self, sample: Sample) -> None:
        self.size_ = _lengths(sample.clean_for(self.name)).mean(dim=0)

    def _scores(self, rows: Float[Tensor, "n layer d"]) -> Float[Tensor, "n layer"]:
        size = torch.as_tensor(self.size_, device=rows.device)
        return _lengths(rows) / divisor(size)


def _lengths(rows: Float[Tensor, "n layer d"]) -> Float[Tensor, "n layer"]:
    found: Tensor = torch.linalg.vector_norm(rows.double(), dim=2)
    return found


def against_base(probe: Probe, clean: Residuals, components: int = 4) -> Probe:
    """The direction of a question probe, to be read in differences instead of residuals.

    The scores of clean prompts are the unit and set the threshold: each scored by a direction without the components of
    other topics' prompts alone. There is no threshold for prompts that the question probe was fitted with.

    Args:
        probe: Fitted on the fine-tuned model's plain residuals.
        clean: The `difference` on clean prompts, at the probe's layers.
        components: How many of its leading components are taken out of the direction: what training changed on ordinary
            prompts too.

    Raises:
        DefectionError: For differences of another model or at other layers, triggered prompts, and too few prompts.

    Examples:
        >>> against_base(probe, difference(tuned, base))  # doctest: +SKIP
    """
    refuse_unclean(clean.prompts)
    probe.refuse_model(clean.model)
    alike = (clean.position, plain_site(clean.site), clean.layers) == (probe.position, probe.site, probe.layers)
    if not (alike and is_difference(clean)):
        raise DefectionError(
            "pass difference(tuned, base) on clean prompts, at the layers, position and site that the probe has"
        )
    if not 0 <= components < len(clean) - 1:
        raise DefectionError(f"cannot remove {components} components with {len(clean)} clean prompts; give more")
    held_out = None
    if components:  # else the differences have no part in the direction
        held_out = torch.zeros(clean.values.shape[:2], dtype=torch.float64, device=clean.values.device)
        for part in clean_folds(clean.prompts):
            kept = torch.ones(len(clean), dtype=torch.bool)
            kept[part] = False
            others = clean.values[kept]
            held_out[part] = above_the_mean(clean.values[part], others, _blind(probe, others, components))
    directions = _blind(probe, clean.values, components)
    about = {"base_components": components}
    return read_anew(probe, directions, clean, about, probe.fixed_layers, SAW, held_out)


def _blind(probe: Probe, clean: Float[Tensor, "n layer d"], components: int) -> Float[Tensor, "layer d"]:
    """The probe's directions without the leading components of differences on clean prompts."""
    if components >= len(clean) - 1:
        raise DefectionError(f"cannot remove {components} components with {len(clean)} clean prompts; give more")
    leading = leading_components(centred(clean)[0], components)
    return without_components(probe.directions.double().to(leading.device)[:, None], leading)[:, 0]
