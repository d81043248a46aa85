"""`defection share`: a probe and its card in a folder that can be uploaded as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .printing import print_result


def share(
    run: Annotated[Path, typer.Argument(help="A folder that `demo` or `sweep` wrote, finished.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder to upload; it may not hold anything else.")],
    name: Annotated[str, typer.Option("--name", help="What the probe is called on its card.")],
    author: Annotated[str, typer.Option("--author", help="Who is to be asked: a handle, an ORCID.")] = "",
    licence: Annotated[str, typer.Option("--license", help="apache-2.0, mit, cc-by-4.0 or cc0.")] = "apache-2.0",
    as_json: options.AsJson = False,
) -> None:
    """Write the main probe with a card of what it claims and what chance does: probe_card.json and README.md.

    The folder goes to the Hugging Face hub with `hf upload USER/NAME FOLDER`; `load_probe("USER/NAME")` and every
    `--probe USER/NAME` read it from there.

    Example: defection share runs/demo --out shared --name "Six and forty questions, smollm2-135m"
    """
    from ...probes.evidence.card import About
    from ..run.pages import results_of
    from ..run.sharing import share_probe

    about = About(name, author, licence)
    with results_of(run):
        card = share_probe(run, out, about)
    baselines = card["baselines"]
    held = ", ".join(name for name, found in baselines.items() if found.get("passed")) or "none"
    said = f"{out}: AUROC {card['performance']['auroc']:.3f}; baselines passed: {held}"
    print_result(card, as_json, said, f"hf upload USER/NAME {out}")
