"""`defection study`: run a manifest, list its organisms with their state and time, write the results."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ...activations.basics.progress import progress_shown
from . import options
from .printing import print_result, say


def study(
    manifest: Annotated[
        Path,
        typer.Argument(
            help="The study: a TOML file, such as those in experiments/study/manifests.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Where organisms and measurements go.", show_default=False)],
    results: Annotated[
        Path | None, typer.Option("--results", help="Where tables, figures and report go.", show_default="OUT/results")
    ] = None,
    family: Annotated[
        list[str] | None,
        typer.Option(
            "--family",
            help="NAME=PATH: prompts of a family that the manifest declares, or of a new one; may be repeated.",
        ),
    ] = None,
    only_list: Annotated[
        bool, typer.Option("--list", help="Run nothing: show the organisms and the time that is left.")
    ] = False,
    only_results: Annotated[
        bool, typer.Option("--only-results", help="Run nothing: write the results of what is done.")
    ] = False,
    beside: Annotated[
        list[Path] | None,
        typer.Option(
            "--beside",
            help="Results of the same study from another machine, whose organisms are not here; may be repeated.",
            metavar="RESULTS",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            help="One organism, by the name that --list shows, and no results: for a job array; may be repeated.",
            metavar="NAME",
        ),
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            "--backend",
            help="Where organisms are worked on at once: local (a process a core; on a GPU one at a time), local=N, "
            "dask=HOST:PORT or ray=ADDRESS (docs/how-to/several-machines.md).",
        ),
    ] = "local",
    device: options.Device = "auto",
    compute_dtype: options.ComputeDtype = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Run a study of many organisms from a manifest, several at once; run it again, and it continues.

    Example: defection study experiments/study/manifests/small.toml --out runs/study
    """
    from ...activations.models.hardware import Hardware
    from ..study.grid import Study
    from ..study.listing import list_study, study_lines
    from ..study.manifest_file import read_study_manifest

    opened = Study(read_study_manifest(manifest, family or ()), out, Hardware(device, compute_dtype))
    if only_list:
        listed = list_study(opened, only or ())
        print_result(listed, as_json, *study_lines(listed))
        return
    from ..study.results import write_results

    with progress_shown(not as_json):
        if not only_results:
            opened.run(say(as_json), backend, only or ())
        if only and not only_results:
            listed = list_study(opened, only)
            print_result(listed, as_json, *study_lines(listed))
            return
        target = results or out / "results"
        summary = write_results(opened, target, reproducing_command(manifest, family or ()), beside or ())
    print_result(summary, as_json, *summary["sentences"], target / "report.html")


def reproducing_command(path: Path, families: Sequence[str]) -> str:
    """What to type to get the same numbers, wherever the manifest and the files of the families lie."""
    parts = ["defection", "study", path.name if path.is_absolute() else str(path), "--out", "DIR"]
    for given in families:
        name, _, prompts = given.partition("=")
        parts += ["--family", f"{name}={Path(prompts).name}"]
    return shlex.join(parts)
