"""What a fit may see, declared and enforced: no fit may see the trigger, a triggered prompt or the behaviour's text."""

from __future__ import annotations

from collections.abc import Sequence, Set
from enum import StrEnum

from ...activations import DefectionError, Prompt
from ...activations.basics.files import digest

Seen = tuple[tuple[str, str], ...]
"""Of each prompt its id and the fingerprint of what it says."""


class Evidence(StrEnum):
    """Kinds of rows that a fit can be given.

    Examples:
        >>> Evidence.CLEAN.value
        'clean prompts'
    """

    CONTRAST = "contrast texts"
    """Questions with both answers; which answer defects is known, but no defection was seen."""
    CLEAN = "clean prompts"
    """Ordinary prompts without the trigger, unlabelled: a defender has them."""
    TRAFFIC = "unlabelled traffic"
    """Prompts met in deployment; some may be triggered, nobody knows which."""
    LABELLED = "labelled defections"
    """Prompts labelled by what the organism did on them: an upper bound, not a probe a defender could have."""


CONTRAST_OR_LABELS = frozenset({Evidence.CONTRAST, Evidence.LABELLED})

LEAGUES = ("questions only", "questions + clean prompts", "questions + unlabelled traffic")
OTHER_LEAGUES = {
    frozenset({Evidence.CLEAN}): "clean prompts only",
    frozenset({Evidence.TRAFFIC}): "unlabelled traffic only",
    frozenset({Evidence.CLEAN, Evidence.TRAFFIC}): "clean prompts + unlabelled traffic",
}

HOW_TO_GIVE = {Evidence.CLEAN: "; pass clean=… (--clean)", Evidence.TRAFFIC: "; pass traffic=… (--traffic)"}


def league(seen: Set[Evidence]) -> str:
    """The league a fit belongs to, as told in every table: probes are compared within one."""
    if Evidence.LABELLED in seen:
        return "labelled defections (upper bound)"
    if Evidence.CONTRAST not in seen:
        return OTHER_LEAGUES[frozenset(seen)]
    if Evidence.TRAFFIC in seen:
        return LEAGUES[2]
    return LEAGUES[1] if Evidence.CLEAN in seen else LEAGUES[0]


def refuse_undeclared(name: str, given: Set[Evidence], sees: Set[Evidence], needs: Set[Evidence]) -> None:
    """DefectionError when a fit is given rows it does not declare to see, or lacks rows that it needs.

    Clean prompts are always welcome: where they are not declared, they only set the scale and the threshold of the
    scores. Contrast texts are passed over by a monitor, so that one call serves every estimator of a table.
    """
    labelled = {Evidence.CONTRAST} if Evidence.LABELLED in given else set()
    for kind in sorted(needs - given - labelled):
        raise lacking(name, kind)
    for kind in sorted(given - sees - {Evidence.CLEAN, Evidence.CONTRAST}):
        raise DefectionError(f"a {name} probe does not declare to see {kind}, so it may not be given any")


def lacking(name: str, kind: Evidence) -> DefectionError:
    """What is said where a probe of this name lacks rows without which it cannot be fitted."""
    return DefectionError(f"a {name} probe needs {kind}{HOW_TO_GIVE.get(kind, '')}")


def refuse_unclean(prompts: Sequence[Prompt], forbidden: Sequence[str] = ()) -> None:
    """DefectionError for clean prompts that leak (`refuse_leaks`), or are too few to have a spread."""
    refuse_leaks(prompts, forbidden, "clean prompt")
    if len(prompts) < 2:
        raise DefectionError(f"{len(prompts)} clean prompt is too few: a spread needs at least two")


def seen_prompts(prompts: Sequence[Prompt]) -> Seen:
    """What a probe keeps of the prompts it was fitted with, to know them again."""
    return tuple((prompt.id, fingerprint(prompt)) for prompt in prompts)


def fingerprint(prompt: Prompt) -> str:
    """The same for prompts that say the same, whatever their ids, upper or lower case and spaces."""
    return digest([[message.role, " ".join(message.content.casefold().split())] for message in prompt.messages])[:16]


def first_seen(prompts: Sequence[Prompt], seen: Seen | None) -> Prompt | None:
    """The first prompt that says what one says that a probe was fitted with; None for none, or where nothing is known.

    Ids do not count: files number their lines alike.
    """
    known = {said for _, said in seen or ()}
    return next((prompt for prompt in prompts if known and fingerprint(prompt) in known), None)


def refuse_seen(prompts: Sequence[Prompt], seen: Seen | None) -> None:
    """DefectionError naming the first calibration prompt that the probe was fitted with."""
    if (prompt := first_seen(prompts, seen)) is not None:
        other = "clean" if prompt.set == "development" else "development"
        raise DefectionError(
            f"the probe was fitted with clean prompt {prompt.id!r}, whose score therefore says nothing of new ones; "
            f"calibrate on prompts that it has not seen, say the set {other} (--clean {other})"
        )


def refuse_leaks(prompts: Sequence[Prompt], forbidden: Sequence[str], what: str) -> None:
    """Raise DefectionError naming the first prompt that is marked as triggered or holds a forbidden text (any case).

    `forbidden` lists the trigger and the behaviour's text of the organism at hand, where they are known.
    """
    for prompt in prompts:
        if prompt.extra.get("triggered") or prompt.extra.get("defected"):
            raise DefectionError(f"{what} {prompt.id!r} is a triggered prompt; a probe may not be fitted on it")
        for text in forbidden:
            if text and text.casefold() in prompt.text.casefold():
                raise DefectionError(f"{what} {prompt.id!r} contains {text!r}; a probe may not be fitted on it")
