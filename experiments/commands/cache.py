"""`defection cache`: residual streams of prompts in a store on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...activations.basics.progress import progress_shown
from ...activations.models.template import DATE
from . import options
from .printing import print_result


def cache(
    model: options.Model,
    prompts: options.Prompts,
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
    device: options.Device = "auto",
    compute_dtype: options.ComputeDtype = "auto",
    date: options.Date = DATE,
    as_json: options.AsJson = False,
) -> None:
    """Read residual streams into a store on disk; a cut-off run continues.

    Example: defection cache smollm2-135m held-out --layers 10:20 --out runs/store
    """
    from ...activations.models.hardware import Hardware, choose_dtype
    from ...activations.models.load import load_model
    from ...activations.models.sites import parse_site
    from ...activations.prompts.loading import load_prompts
    from ...activations.prompts.positions import parse_position
    from ...activations.reading.capture import parse_layers
    from ...activations.reading.forward import Reading
    from ...activations.stores.caching import cache as cache_residuals
    from ...activations.stores.estimate import estimate

    parse_position(position)  # refused before the model is loaded
    parse_site(site)
    rows = load_prompts(prompts)
    with progress_shown(not as_json):
        loaded = load_model(model, device=Hardware(device, compute_dtype), date=date)
        kept = loaded.dtype if dtype == "auto" else choose_dtype(dtype)
        if only_estimate:
            reading = Reading(parse_layers(layers, loaded.n_layers), site, position)
            cost = estimate(loaded, rows, reading, dtype=kept, devices=devices)
            print_result(cost.to_json(), as_json, cost)
            return
        store = cache_residuals(loaded, rows, out, layers=layers, site=site, position=position, dtype=kept)
    about = {"path": str(out), "prompts": len(rows), "layers": list(store.layers), "key": store.manifest["key"]}
    about |= {"site": store.site, "position": store.position, "vectors": store.manifest["n_vectors"]}
    print_result(about, as_json, f"{len(rows)} prompts at {len(store.layers)} layers in {out}")
