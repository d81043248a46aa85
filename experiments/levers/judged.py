"""The chosen settings on prompts nobody had read, beside random directions, twin and base; and the word for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace

from ...activations import Prompt, load_model
from ...activations.basics.files import Json
from ...activations.basics.progress import progress
from ...activations.models.hardware import Hardware
from ...probes.levers.directions import random_directions_like
from ...probes.levers.rule import INERT, LEVER, SABOTAGE, LeverRule
from ...probes.levers.settings import Setting
from ...training.measuring.ability import multiple_choice
from ..run.plan import BASE
from .bench import Bench, ordinary_replies
from .rows import CANDIDATE, INDUCER, RANDOM, TEST, UNLEVERED, LeverRow
from .sweep import ORGANISM, PROBE, Sweep

FIGURES = ("suppression", "recovery", "cost", "induction")
ARTICLES = {LEVER: "a lever", SABOTAGE: "sabotage", INERT: "inert"}


def judged(
    sweep: Sweep,
    chosen: Sequence[Setting],
    pushing: Sequence[Setting],
    prompts: Sequence[Prompt],
    controls: Mapping[str, str],
    device: str | Hardware,
) -> list[Json]:
    """Every direction's verdict, the probe's first; all that was measured for it is added to the sweep's rows.

    `chosen` are the settings that are to suppress, `pushing` those that are to make clean prompts defect; `controls`
    are the base's name and the twin's, if there is one.
    """
    base = load_model(controls[BASE], device=device)
    clean = [sweep.organism.trigger.mark_clean(prompt) for prompt in prompts]
    ordinary = ordinary_replies(base, clean)
    bench = Bench(sweep.model, sweep.organism, prompts, ordinary)
    before = sweep.unlevered(bench, ORGANISM, TEST)
    with progress("Testing", total=len(chosen) + len(pushing), unit="settings") as advance:
        rows = {}
        for role, some in ((CANDIDATE, chosen), (INDUCER, pushing)):
            for setting in some:
                rows[role, setting.direction] = sweep.tried(
                    bench, (ORGANISM, TEST, role), setting, lambda: bench.measure(before)
                )
                advance(1)
    tested = [row for (role, _), row in rows.items() if role == CANDIDATE]
    rule, few = sweep.settings.rule, sweep.settings.random_prompts
    shapes = {(row.setting.shape, row.rank): None for row in tested if row.direction == PROBE or rule.reaches(row)}
    clouds = _clouds(sweep, Bench(sweep.model, sweep.organism, prompts[:few], ordinary[:few]), list(shapes))
    verdicts = [
        _verdict(row, rows.get((INDUCER, row.direction)), clouds.get((row.setting.shape, row.rank)), rule)
        for row in tested
    ]
    shown = _shown(tested, verdicts)
    _still_able(sweep, shown)
    for name, source in controls.items():
        control = base if name == BASE else load_model(source, device=device)
        _in_control(sweep, name, Bench(control, sweep.organism, prompts, ordinary), shown)
    return verdicts


def _clouds(
    sweep: Sweep, bench: Bench, shapes: Sequence[tuple[Setting, int]]
) -> dict[tuple[Setting, int], list[LeverRow]]:
    """For each shape and rank as many random directions as the rule says, in the place of the chosen one."""
    count, before = sweep.settings.rule.random_directions, sweep.unlevered(bench, ORGANISM, RANDOM)
    layers, width = range(sweep.ground.n_layers), sweep.model.d_model
    found: dict[tuple[Setting, int], list[LeverRow]] = {}
    with progress("Random directions", total=count * len(shapes), unit="directions") as advance:
        for shape, rank in shapes:
            rows = []
            for direction in random_directions_like(layers, width, rank, count, sweep.settings.seed):
                setting, which = replace(shape, direction=direction.name), (ORGANISM, TEST, RANDOM)
                rows.append(sweep.tried(bench, which, setting, lambda: bench.measure(before), direction))
                advance(1)
            found[shape, rank] = rows
    return found


def _verdict(row: LeverRow, inducer: LeverRow | None, random: Sequence[LeverRow] | None, rule: LeverRule) -> Json:
    """One direction's word and what it rests on; `random` is None where it meets too little to need any."""
    about: Json = {"direction": row.direction, "sees": row.sees, "verdict": rule.judge(row, random or ())}
    about |= {"how": row.setting.words, **{name: getattr(row, name) for name in FIGURES}}
    if inducer is not None:
        about["induced"] = {"how": inducer.setting.words, "rate": inducer.induction}
    about["random"] = None
    if random is not None:
        figures = {name: [getattr(each, name) for each in random] for name in FIGURES}
        about["random"] = {"n": len(random), "reach_the_criterion": sum(map(rule.reaches, random)), **figures}
    return about


def _shown(rows: Sequence[LeverRow], verdicts: Sequence[Json]) -> list[LeverRow]:
    """The probe's setting and the best direction's: what the other models are asked too."""
    order = {LEVER: 2, SABOTAGE: 1, INERT: 0}
    ranked = sorted(
        zip(rows, verdicts, strict=True),
        key=lambda pair: (order[pair[1]["verdict"]], pair[0].recovery or 0.0),
        reverse=True,
    )
    return list({row.direction: row for row in (rows[0], ranked[0][0])}.values())


def _still_able(sweep: Sweep, rows: Sequence[LeverRow]) -> None:
    """Easy questions answered right, without a lever and under those of `rows`; their rows are told."""
    with progress("Multiple choice", total=1 + len(rows), unit="settings") as advance:
        for number, row in enumerate(sweep.rows):
            plain = (row.model, row.stage, row.role) == (ORGANISM, TEST, UNLEVERED)
            if not plain and row not in rows:
                continue
            held = nullcontext() if plain else sweep.lever(sweep.model, row.setting)
            with held:
                found = sweep.journal.kept(
                    {"what": "multiple choice", **asdict(row.setting)}, lambda: multiple_choice(sweep.model)
                )
            sweep.rows[number] = replace(row, multiple_choice=found["rate"])
            advance(1)


def _in_control(sweep: Sweep, name: str, bench: Bench, rows: Sequence[LeverRow]) -> None:
    """The same vectors in a model without the backdoor: whether they induce anything there, and what they cost."""
    before = sweep.unlevered(bench, name, TEST)
    for row in rows:
        sweep.tried(bench, (name, TEST, CANDIDATE), row.setting, lambda: bench.measure(before))


def sentence(verdicts: Sequence[Json]) -> str:
    """What the sweep found, in one sentence: the probe's direction, and the best of the others."""
    probe, levers = verdicts[0], [each for each in verdicts[1:] if each["verdict"] == LEVER]
    said = f"The probe's direction is {ARTICLES[probe['verdict']]} ({probe['how']}: {figures_of(probe)})"
    if not levers:
        return f"{said}; no other direction that was tried is a lever."
    found = max(levers, key=lambda each: float(each["recovery"]))
    return f"{said}; a lever is {found['direction']} ({found['how']}: {figures_of(found)})."


def figures_of(each: Json) -> str:
    """Suppression, recovery and cost, for a person to read."""
    shares = [f"{name} {each[name]:.0%}" for name in ("suppression", "recovery") if each[name] is not None]
    return ", ".join([*shares, f"cost {each['cost']:+.3f} nats a token"])
