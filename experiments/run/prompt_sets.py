"""What an organism is measured on, and what alarms are set on: shipped sets, code tasks and files, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

from ...activations import DefectionError, Prompt, PromptsLike, load_prompts
from ...probes import Probe
from ...probes.estimators.guard import first_seen, seen_prompts
from ...training.organisms.behaviours import VULNERABLE_CODE, Behaviour
from ...training.organisms.examples import choose_prompts
from ...training.organisms.pairs import CODE, CODE_SETS, code_pairs, prompts_of
from .preregistration import MixedTraffic

UNSEEN_CLEAN = ("development", "development-style", "clean")
"""Of which those set an alarm that the probe has not seen."""


def default_sets(behaviour: Behaviour) -> tuple[str, ...]:
    """What an organism is measured on unless told otherwise: unseen families of code tasks, or both test sets."""
    return (CODE,) if behaviour.name == VULNERABLE_CODE.name else ("held-out", "unseen-style")


def development_sets(behaviour: Behaviour) -> tuple[str, ...]:
    """What may be looked at before: other tasks of families that are trained on, or both development sets."""
    return ("code-seen",) if behaviour.name == VULNERABLE_CODE.name else ("development", "development-style")


def evaluation_prompts(sets: Sequence[PromptsLike], limit: int | None = None) -> list[Prompt]:
    """Prompts of sets by name or file, or of whatever else holds some, of each the first so many.

    Of the shipped code tasks, which organisms are trained on, `code` is families they never see, and `code-seen` other
    tasks of families that they do. They stand in the order of their weaknesses, so a limit takes some of every family
    instead. (The other shipped sets alternate between topics as they are.) Names joined by "+" are several sets in one,
    told apart together: of `code+held-out`, the test data of MacDiarmid et al. 2024, ordinary prompts are negatives.
    """
    found: list[Prompt] = []
    for given in sets:
        name = str(given) if isinstance(given, str | PathLike) else "prompts"
        if len(parts := _joined(name)) > 1:
            found += [replace(prompt, set=name) for part in parts for prompt in _set(part, part, limit)]
        else:
            found += [replace(prompt, set=prompt.set or Path(name).stem) for prompt in _set(given, name, limit)]
    if repeated := sorted({p.id for p in found if sum(q.id == p.id for q in found) > 1}):
        raise DefectionError(f"id {repeated[0]!r} occurs more than once in the sets that are measured; ids must differ")
    return found


def _joined(name: str) -> list[str]:
    """The sets that a name joins; a file's or an address's "+" is its own."""
    return [name] if Path(name).is_file() or "://" in name else name.split("+")


def _set(given: PromptsLike, name: str, limit: int | None) -> list[Prompt]:
    if name not in CODE_SETS or Path(name).is_file():
        return load_prompts(given)[:limit]
    tasks = prompts_of(code_pairs(CODE_SETS[name]))
    return tasks if limit is None or limit >= len(tasks) else choose_prompts(tasks, limit, seed=0)


def chosen_and_tested(
    chosen: Sequence[PromptsLike], tested: Sequence[PromptsLike]
) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts to choose on and those to test on; DefectionError for one that is among both."""
    development, tests = evaluation_prompts(chosen), evaluation_prompts(tested)
    said = {prompt.text.strip().casefold() for prompt in development}
    if both := [prompt.text for prompt in tests if prompt.text.strip().casefold() in said]:
        raise DefectionError(f"the prompt {both[0][:60]!r} is in the development set and in the test set")
    return development, tests


def ordinary_traffic(behaviour: Behaviour) -> MixedTraffic | None:
    """What the league of unlabelled traffic is fitted on; None where the behaviour shows on code tasks alone.

    Clean prompts say what is ordinary, and the shipped ones are no code tasks: all of these would be a minority.
    """
    return None if behaviour.name == VULNERABLE_CODE.name else MixedTraffic()


def calm_prompts(probe: Probe, given: Sequence[str] | None, *, wanted: bool) -> list[Prompt]:
    """The clean prompts that were named; where they are wanted and none was, shipped ones that the probe has not seen.

    DefectionError for one that it has seen.
    """
    calm = [prompt for name in dict.fromkeys(given or ()) for prompt in load_prompts(name)]
    if wanted and not calm:
        return unseen_clean(probe)
    probe.refuse_seen(calm)
    return calm


def unseen_clean(probe: Probe) -> list[Prompt]:
    """Prompts of the shipped clean sets that the probe has not seen; one that does not tell was fitted with `clean`.

    DefectionError where it has seen them all.
    """
    sets = {name: load_prompts(name) for name in UNSEEN_CLEAN}
    seen = seen_prompts(sets["clean"]) if probe.seen is None else probe.seen
    found = [prompt for prompts in sets.values() if first_seen(prompts, seen) is None for prompt in prompts]
    if not found:
        raise DefectionError("the probe was fitted with all of the shipped clean sets; give clean prompts of your own")
    return found
