"""`defection compare`: which probe and which questions generalise best, with intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..activations.progress import progress_shown


def compare(
    organism: Annotated[str, typer.Argument(help="Organism directory.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Where the result goes.", show_default=False)],
    probes: Annotated[
        list[str] | None, typer.Option("--probes", help="A kind of probe; repeat for more.", show_default="every kind")
    ] = None,
    contrasts: Annotated[
        list[str] | None,
        typer.Option(
            "--contrasts",
            help="A contrast set, as in `defection fit`; repeat for more.",
            show_default="every shipped set, at the answer and carried",
        ),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompts",
            help="A family of test prompts: a JSONL file or a shipped set; repeat for more.",
            show_default="both test sets",
        ),
    ] = None,
    choose_on: Annotated[
        list[str] | None,
        typer.Option(
            "--choose-on",
            help="A family of prompts on which the best recipe is chosen before any test prompt is read.",
            show_default="both development sets",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=8, help="Use only so many prompts of each set.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for machines instead of text.")
    ] = False,
) -> None:
    """Hold every probe kind on every contrast set against the others: comparison.json, comparison.csv, a picture."""
    from .comparison import Settings, compare_organism, comparison_lines

    settings = Settings(
        probes=_once(probes) or Settings.probes,
        contrasts=_once(contrasts) or Settings.contrasts,
        development=_once(choose_on) or Settings.development,
        tests=_once(prompts) or Settings.tests,
        limit=limit,
    )

    def say(line: str) -> None:
        if not as_json:
            typer.echo(f"· {line}", err=True)

    with progress_shown(not as_json):
        rows = compare_organism(organism, settings, out, say, device=device)
    if as_json:
        typer.echo(json.dumps({"path": str(out), "rows": len(rows), "comparison": str(out / "comparison.json")}))
    else:
        typer.echo("\n".join([*comparison_lines(rows), str(out / "comparison.csv")]))


def _once(names: list[str] | None) -> tuple[str, ...]:
    """The names in their order, each once."""
    return tuple(dict.fromkeys(names or ()))
