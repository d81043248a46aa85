"""Residuals that a probe cannot score: those of another model, chat template, position or site than its own."""

from __future__ import annotations

from ...activations import DefectionError, ModelIdentity, Residuals
from .ragged import refuse_ragged


def refuse_mismatch(model: ModelIdentity, position: str, site: str, residuals: Residuals) -> None:
    """DefectionError for residuals of another model, template, position or site than a probe's own, and ragged ones."""
    refuse_ragged(residuals)
    refuse_other_model(model, residuals.model)
    if residuals.position != position:
        raise DefectionError(
            f"this probe reads position {position!r}, but the residuals were read at {residuals.position!r}"
        )
    if residuals.site != site:
        raise DefectionError(
            f"this probe reads site {site!r} of a block, but the residuals were read at {residuals.site!r}"
        )


def refuse_other_model(own: ModelIdentity, other: ModelIdentity) -> None:
    """DefectionError when a probe fitted on one model would score another, or another chat template."""
    for what, same, mine, theirs in (
        (own.weights_told_apart(other), own.same_weights(other), own.fingerprint, other.fingerprint),
        ("the chat template or tokenizer differs", own.template == other.template, own.template, other.template),
    ):
        if not same:
            raise DefectionError(
                f"this probe was fitted on {own.name} and cannot score {other.name}: {what} "
                f"({mine[:12]} against {theirs[:12]}); fit a probe on {other.name} instead"
            )
    if own.date != other.date:
        raise DefectionError(
            f"the chat template of {other.name} writes the date, which was {own.date or 'not recorded'} where this "
            f"probe was fitted and is {other.date} here: "
            + (f"load the model for that day (date={own.date!r})" if own.date else "fit the probe anew")
        )
