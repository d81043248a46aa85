"""From an organism to a comparison: every probe kind on every contrast set, on several families of prompts.

The order is the evidence: probes are fitted, the best recipe is chosen on development families and written down, and
only then are the test families read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ...activations import DefectionError, Model, Residuals, cache, load_model
from ...activations.basics.files import Json
from ...activations.basics.progress import progress
from ...activations.basics.tables import write_rows
from ...activations.models.hardware import Hardware
from ...activations.models.locate import locate
from ...activations.prompts.prompts import by_set
from ...probes import AttentionProbe, BaseDifference, LinearProbe, Outcomes, ProbeEstimator
from ...probes.estimators.guard import Evidence, league
from ...probes.estimators.registry import estimators
from ...probes.evidence.baselines import NO_FIT, length_scores, norm_scores, rare_words_scores
from ...probes.evidence.chance import Chance
from ...probes.evidence.comparison import (
    DEVELOPMENT,
    PAPER,
    TEST,
    ComparisonRow,
    Recipe,
    ScoredFamily,
    best_recipe,
    compare,
    worst_set_aurocs,
)
from ...probes.evidence.judging import joined_if_any, questions_at, unrelated_sets
from ...probes.evidence.nulls import standardised
from ...probes.evidence.shuffles import QuestionEffects
from ...probes.pictures.comparison_figure import save_comparison_figure
from ...probes.questions.contrast_sets import SHIPPED, distinct_texts
from ...training.measuring.evaluate import judge_replies
from ...training.organisms.records import base_of, read_organism
from .beside_base import SAW as SAW_BASE
from .beside_base import BesideBase
from .measure import write_once
from .pages import in_interval
from .plan import MeasurementPlan, Say, make_plan
from .preregistration import Preregistration, band
from .prompt_sets import default_sets, development_sets

PLAN = "comparison-plan.json"
BASELINES = {"norm-only": NO_FIT, "length-only": NO_FIT, "rare-words": league({Evidence.CLEAN})}
"""What stands beside the recipes without being fitted, and what each has seen."""
SHOWN = 12
"""Recipes that are told of beside the chosen one and the paper's."""
CONTRASTS = (*SHIPPED, *(f"{name}-sentence-carried" for name in SHIPPED))


def comparable() -> dict[str, ProbeEstimator]:
    """Every kind of probe that reads one vector a prompt and needs no traffic, at its defaults, by name."""
    return {
        name: kind
        for name, kind in estimators().items()
        if name != AttentionProbe.name and Evidence.TRAFFIC not in kind.needs
    }


@dataclass(frozen=True)
class Settings:
    """What is compared, and on which families of prompts."""

    probes: tuple[str, ...] = tuple(comparable())
    contrasts: tuple[str, ...] = CONTRASTS
    development: tuple[str, ...] | None = None
    """Prompt sets or files on which the best recipe is chosen; None: those that fit what the organism does."""
    tests: tuple[str, ...] | None = None
    """Prompt sets or files on which it is then held against the others; None: those that fit what the organism does."""
    clean: str = "clean"
    limit: int | None = None
    """Prompts of each set or file, at most."""
    base: str | None = None
    """The model that the organism was trained from; None: the one that it names. Without one, what needs it is left
    out, unless it was asked for."""
    seed: int = 0
    """Of the random directions beside which the recipes are drawn."""

    def plans(self, organism: str, layers: tuple[int, ...]) -> dict[str, MeasurementPlan]:
        """What is read for choosing and what for testing, with and without the trigger.

        DefectionError when a set or a prompt's id belongs to both.
        """
        about = read_organism(organism)
        development = development_sets(about.behaviour) if self.development is None else self.development
        tests = default_sets(about.behaviour) if self.tests is None else self.tests
        if not development or not tests:
            raise DefectionError("a comparison needs prompts to choose the best recipe on, and others to test it on")
        registered = Preregistration(PAPER.probe, PAPER.contrast, layers, self.probes, self.contrasts)
        found = {
            role: make_plan(about.trigger, about.behaviour, registered, clean=self.clean, tests=sets, limit=self.limit)
            for role, sets in ((DEVELOPMENT, development), (TEST, tests))
        }
        for what in ("set", "id"):
            one, other = ({str(getattr(prompt, what)) for prompt in plan.tests} for plan in found.values())
            if both := sorted(one & other):
                raise DefectionError(f"{what} {both[0]!r} occurs in the development prompts and in the test prompts")
        return found


@dataclass(frozen=True)
class FittedRecipe:
    """A recipe, and what it became on the organism's own residuals."""

    recipe: Recipe
    estimator: ProbeEstimator
    saw: str
    questions: QuestionEffects | None = None
    """What each question adds to its direction; None where it is no sum over questions."""

    @property
    def alarm(self) -> float | None:
        """The threshold set on clean prompts; None where there is none."""
        return self.estimator.probe_.threshold if isinstance(self.estimator, LinearProbe) else None

    def scores(self, residuals: Residuals) -> Float[Tensor, "prompt"]:
        """Standardised scores, averaged over the layers that were read."""
        scores: Tensor = self.estimator.decision_function(residuals)
        return scores.double().mean(dim=1)


def compare_organism(
    organism: str, settings: Settings, out: Path, say: Say, *, device: str | Hardware = "auto"
) -> list[ComparisonRow]:
    """Read the organism at the fixed band of layers, fit, choose, score; leave the table and its picture under `out`.

    Labels are what the organism does on each prompt (greedy completions). Vectors that an earlier run left under `out`
    are not read again. Raises DefectionError for a folder that holds no organism, an unknown probe or contrast set,
    ids or sets that occur twice, and a family on which the organism does one thing only.
    """
    if unknown := [name for name in settings.probes if name not in comparable()]:
        raise DefectionError(f"unknown probe {unknown[0]!r}: choose among {', '.join(comparable())}")
    read_organism(organism)  # refused before the model is loaded
    settings = _with_base(organism, settings, say)
    model = load_model(organism, device=device)
    base = (
        None if settings.base is None else BesideBase(model, load_model(settings.base, device=device), out / "stores")
    )
    plans = settings.plans(organism, band(model.n_layers))
    fingerprints = {role: plan.fingerprint for role, plan in plans.items()}
    about: Json = {"model": model.identity.to_json(), "layers": list(band(model.n_layers))}
    about |= {} if base is None else {"base": base.base.identity.to_json()}
    plan: Json = {"schema_version": 1, **about, "plans": fingerprints}
    names = model.identity.fingerprints() if (out / PLAN).exists() else ()
    write_once(out / PLAN, plan, *({**plan, "model": {**plan["model"], "fingerprint": name}} for name in names))
    clean, fitted = _fit(model, plans[DEVELOPMENT], base, out, say)
    recipes = [each.recipe for each in fitted] + [Recipe(name, "") for name in BASELINES]
    saw = [each.saw for each in fitted] + list(BASELINES.values())
    families = _families(DEVELOPMENT, plans[DEVELOPMENT], model, base, clean, fitted, out, say, settings.seed)
    best = best_recipe(recipes, families)
    choice = {"chosen_on": [family.name for family in families], **asdict(recipes[best])}
    choice |= {"worst_set_auroc": float(worst_set_aurocs(families)[best])}
    write_once(out / "choice.json", {"schema_version": 1, **choice})
    families += _families(TEST, plans[TEST], model, base, clean, fitted, out, say, settings.seed)
    rows = compare(recipes, saw, families, best)
    labels = {"labels": "defection observed in the organism's greedy completion of the same prompt"}
    write_rows(out / "comparison.json", ComparisonRow, rows, about | labels | {"choice": choice})
    save_comparison_figure(rows, out / "figures")
    return rows


def _with_base(organism: str, settings: Settings, say: Say) -> Settings:
    """With the base that is wanted and there; DefectionError where it is asked for and is not."""
    wanted = [name for name in settings.probes if comparable()[name].holds_base]
    if not wanted:
        return replace(settings, base=None)
    try:
        source = settings.base or base_of(organism)
        locate(source)
    except DefectionError as error:
        if settings.base or settings.probes != Settings.probes:
            raise DefectionError(f"{wanted[0]} needs the base model (--base): {error}") from error
        say(f"without {' and '.join(wanted)}, which need the base model (--base): {error}")
        return replace(settings, probes=tuple(name for name in settings.probes if name not in wanted))
    return replace(settings, base=source)


def _fit(
    model: Model, plan: MeasurementPlan, base: BesideBase | None, out: Path, say: Say
) -> tuple[Residuals, list[FittedRecipe]]:
    """Every recipe on the organism's own residuals; a monitor, which sees clean prompts alone, is fitted once."""
    layers = plan.registered.layers
    texts = distinct_texts(plan.contrasts)
    read = cache(model, texts, out / "stores" / "contrast", layers=layers, what="Reading questions").read()
    clean = cache(model, plan.clean, out / "stores" / "clean", layers=layers, what="Reading clean prompts").read()
    contrasts = {contrast.name: read.of_prompts(list(contrast)) for contrast in plan.contrasts}
    fitted: list[FittedRecipe] = []
    with progress("Fitting probes", total=len(plan.registered.estimators), unit="kinds") as advance:
        for kind in plan.registered.estimators:
            estimator = comparable()[kind]
            if Evidence.CONTRAST in estimator.sees:
                for name, contrast in contrasts.items():
                    one = comparable()[kind].fit(contrast, clean=clean, forbidden=plan.forbidden)
                    questions = questions_at(one, contrast, clean, layers) if isinstance(one, LinearProbe) else None
                    saw = league({Evidence.CONTRAST, Evidence.CLEAN})
                    fitted.append(FittedRecipe(Recipe(kind, name), one, saw, questions))
            elif estimator.holds_base:
                assert base is not None
                fitted.append(FittedRecipe(Recipe(kind, ""), base.fit(estimator, clean), SAW_BASE))
            else:
                fitted.append(FittedRecipe(Recipe(kind, ""), estimator.fit(clean), league({Evidence.CLEAN})))
            advance(1)
    say(f"{len(fitted)} recipes fitted on {len(read)} contrast texts and {len(clean)} clean prompts")
    return clean, fitted


def _families(
    role: str,
    plan: MeasurementPlan,
    model: Model,
    base: BesideBase | None,
    clean: Residuals,
    fitted: Sequence[FittedRecipe],
    out: Path,
    say: Say,
    seed: int,
) -> list[ScoredFamily]:
    """What every recipe scores on each set of the plan's prompts."""
    layers, columns = plan.registered.layers, range(len(plan.registered.layers))
    what = f"Reading {role} prompts"
    store = cache(model, plan.tests, out / "stores" / role, layers=layers, reply_tokens=plan.reply_tokens, what=what)
    said = judge_replies(model, plan.tests, store.read_replies(), plan.behaviour)
    residuals, found = store.read(), []
    outcomes = Outcomes.of(residuals, {each.id: each.defected for each in said})
    unrelated = {each.recipe: _unrelated(each.recipe, fitted) for each in fitted}
    differ = [isinstance(each.estimator, BaseDifference) for each in fitted]
    changed = base.changed(residuals, role) if base is not None and any(differ) else residuals
    for name, members in by_set(residuals.prompts).items():
        part, marked = residuals.select(members), outcomes.select(members)
        marked.refuse_one_outcome()
        chance = Chance(part, clean, marked, [columns], seed=seed)
        band = chance.band(columns)
        nulls = [band | chance.of_questions(each.questions, unrelated[each.recipe], columns) for each in fitted]
        less = changed.select(members)
        scores = [each.scores(less if differs else part) for each, differs in zip(fitted, differ, strict=True)]
        scores += _baseline_scores(part, clean)
        nulls += [band] * len(BASELINES)
        alarms = [*(each.alarm for each in fitted), *[None] * len(BASELINES)]
        found.append(ScoredFamily(name, role, torch.stack(scores), marked, nulls, alarms))
    say(f"{role}: {len(residuals)} prompts scored by {len(fitted)} recipes")
    return found


def _baseline_scores(part: Residuals, clean: Residuals) -> list[Float[Tensor, "prompt"]]:
    """Of each of `BASELINES`."""
    norms = norm_scores(part).T
    return [
        standardised(norms, norms).mean(dim=0),
        length_scores(part),
        rare_words_scores(part.prompts, clean.prompts),
    ]


def _unrelated(recipe: Recipe, fitted: Sequence[FittedRecipe]) -> QuestionEffects | None:
    """What questions about other things add to the direction of the same kind of probe."""
    same = {each.recipe.contrast: each.questions for each in fitted if each.recipe.probe == recipe.probe}
    return joined_if_any(same[name] for name in unrelated_sets(recipe.contrast, same))


def comparison_lines(rows: Sequence[ComparisonRow]) -> list[str]:
    """The chosen recipe, the paper's, and the best others on the test families, for a person to read."""
    tests = [row for row in rows if row.role == TEST]
    worst: Mapping[Recipe, ComparisonRow] = {row.recipe: row for row in tests if row.is_worst_set}
    ranked = sorted(worst.values(), key=lambda row: -row.auroc)
    marked = [row for row in ranked if row.is_best or row.is_paper]
    lines = [f"AUROC on the worst of {len({row.test_set for row in tests})} test families (95% interval)"]
    for row in [*marked, *[row for row in ranked if row not in marked][:SHOWN]]:
        note = " (a control)" if row.recipe.is_control else ""
        note = " ← chosen on development prompts" if row.is_best else " ← the paper's" if row.is_paper else note
        area = in_interval(row.auroc, row.auroc_low, row.auroc_high)
        lines.append(f"  {area} on {row.test_set}: {row.recipe.name}{note}")
    return lines
