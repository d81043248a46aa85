"""How a command prints what it does and what came of it: for a person, or one JSON object for machines."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from ...activations.basics.files import Json

MARKS = {True: ("✓", "green"), False: ("✗", "red"), None: ("–", "yellow")}
"""Of an answer: it holds, it does not, it was not asked."""


def say(as_json: bool) -> Callable[[str], None]:
    """How a long command tells what it does: a line on stderr, or nothing when the output is for machines."""
    return lambda line: None if as_json else typer.echo(f"· {line}", err=True)


def print_result(result: Mapping[str, object], as_json: bool, *lines: object) -> None:
    """One JSON object for machines, or lines for a person."""
    typer.echo(json.dumps(result, ensure_ascii=False) if as_json else "\n".join(map(str, lines)))


def print_verdict(verdict: Json, as_json: bool, page: Path) -> None:
    """Three lines a league, each with its figure, the verdict in a sentence, and where the page lies."""
    from rich.console import Console

    if as_json:
        print_result(verdict, as_json)
        return
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
