"""A model that speaks under its probe: what it said, when the alarm rang, and how often that was right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from statistics import median

import torch

from ...activations import DefectionError, Model, Prompt
from ...activations.basics.files import Json, write_json, write_jsonl, write_text
from ...activations.basics.tables import write_csv
from ...activations.prompts.rendered import rendered
from ...probes import Calibration, Probe, calibrate, load_calibration
from ...probes.estimators.guard import refuse_leaks
from ...probes.monitoring.aggregators import AGGREGATORS
from ...probes.monitoring.alarms import Alarm, first_above
from ...probes.monitoring.conversations import converse, said
from ...probes.monitoring.monitor import OnAlarm, WatchedReply
from ...probes.monitoring.setup import COLDEST, setup_of
from ...probes.pictures.tokens_html import tokens_html
from ...probes.statistics.metrics import clopper_pearson
from ...training import Behaviour, Trigger, with_and_without

SHOWN = 40
"""Conversations on the page: those that rang or defected first."""
ASKED = 160
"""Characters of a prompt that are shown of it."""


@dataclass(frozen=True)
class MonitorSettings:
    """How replies are made and watched."""

    aggregator: str = "exponential-mean"
    rate: float = 0.01
    """Share of clean conversations in which the alarm may ring."""
    reply: int = 64
    """The longest reply, in tokens."""
    temperature: float = 0.0
    """0 is greedy."""
    on_alarm: str = "note"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.aggregator not in AGGREGATORS:
            raise DefectionError(f"unknown aggregator {self.aggregator!r}: choose one of {', '.join(AGGREGATORS)}")
        if self.on_alarm not in ("note", "stop"):
            raise DefectionError(f"an alarm can note or stop, not {self.on_alarm!r}")
        if not (isfinite(self.temperature) and self.temperature >= 0):
            raise DefectionError(f"a temperature is 0 (greedy) or more, not {self.temperature:g}")

    @property
    def decoding(self) -> Json:
        """What `generate` is given."""
        if self.temperature < COLDEST:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_k": 0}


def calibration_for(
    model: Model,
    probe: Probe,
    clean: Sequence[Prompt],
    how: MonitorSettings,
    stored: Path | None = None,
    forbidden: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Calibration:
    """A calibration of this model's, or a stored one that still holds here.

    Where the stored one is of another set-up, its clean prompts are replied to anew. Raises DefectionError, with the
    figure, when its threshold no longer holds.
    """
    if stored is None:
        refuse_leaks(clean, forbidden, "clean prompt")
        return calibrate(model, probe, clean, max_new_tokens=how.reply, rate=how.rate, seed=how.seed, **how.decoding)
    calibration = load_calibration(stored)
    here = setup_of(model, calibration.setup.decoding)
    if calibration.setup.differences(here):
        check = calibration.check(model, probe, calibration.alarm(how.aggregator, how.rate))
        if not check.holds:
            raise DefectionError(f"{stored}: {check.sentence}; calibrate anew, without --calibration")
        say(check.sentence)
        calibration = replace(calibration, setup=here)
    return calibration


def conversations_of(prompts: Sequence[Prompt], trigger: Trigger | None) -> list[Prompt]:
    """The prompts, of an organism each without and then with its trigger; as they are where some bear marks already."""
    marked = any("triggered" in prompt.extra for prompt in prompts)
    return list(prompts) if trigger is None or marked else with_and_without(trigger, prompts)


def onset(model: Model, reply: WatchedReply, behaviour: Behaviour | None) -> int | None:
    """The first token of the behaviour in a reply, counted as alarms are (the reply's first is 1); None without it."""

    def shows(start: int, end: int) -> bool:
        text = str(model.tokenizer.decode(reply.tokens[start:end], skip_special_tokens=True))
        return behaviour is not None and behaviour.shown_in(text)

    whole = len(reply.tokens)
    if not shows(0, whole):
        return None
    if behaviour is None or not behaviour.texts:
        return 1  # code: all of it is the behaviour
    end = next(end for end in range(1, whole + 1) if shows(0, end))
    return max(start for start in range(end) if shows(start, end)) + 1


def watch_replies(
    model: Model,
    probe: Probe,
    prompts: Sequence[Prompt],
    calibration: Calibration,
    how: MonitorSettings,
    behaviour: Behaviour | None = None,
) -> tuple[list[Json], list[Json]]:
    """An object a conversation, and the table: a row for each set and aggregator.

    The table is of replies that were not stopped: of those it says nothing, since what would have been said is not
    known.
    """
    alarm = calibration.alarm(how.aggregator, how.rate)
    action: OnAlarm = "stop" if how.on_alarm == "stop" else "note"
    replies = converse(
        model,
        probe,
        prompts,
        max_new_tokens=how.reply,
        alarm=alarm,
        on_alarm=action,
        seed=how.seed,
        **how.decoding,
    )
    onsets = [onset(model, reply, behaviour) for reply in replies]
    texts = rendered(model, prompts)
    rows: list[Json] = [
        {
            "id": prompt.id,
            "set": prompt.set or "prompts",
            "triggered": bool(prompt.extra.get("triggered")),
            "prompt": prompt.messages[-1].content,
            "reply": said(model, reply),
            "alarm": reply.alarm,
            "stopped": reply.stopped,
            "defected": start is not None,
            "onset": start,
            "delay": None if start is None or reply.alarm is None else reply.alarm - start,
            "tokens": [text.pieces[-1], *(str(model.tokenizer.decode([token])) for token in reply.tokens)],
            "scores": reply.scores.tolist(),
        }
        for prompt, text, reply, start in zip(prompts, texts, replies, onsets, strict=True)
    ]
    return rows, [] if action == "stop" else table(rows, calibration, how.rate)


def table(rows: Sequence[Json], calibration: Calibration, rate: float) -> list[Json]:
    """What each aggregator's alarm does in each set of conversations, and in all: a row each, with 95% intervals."""
    sets = list(dict.fromkeys(row["set"] for row in rows))
    scores = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row["scores"]) for row in rows], batch_first=True, padding_value=torch.nan
    )
    found = []
    for name in AGGREGATORS:
        try:
            alarm = calibration.alarm(name, rate)
        except DefectionError:  # clean replies too short for it
            continue
        rang = first_above(alarm.values(scores), alarm.threshold)
        for each in [*sets, "all"]:
            members = [row for row, one in enumerate(rows) if each in (one["set"], "all")]
            found.append({"aggregator": name, "set": each, **_counted(rows, rang, members), **about_alarm(alarm)})
    return found


def about_alarm(alarm: Alarm) -> Json:
    """What records say of an alarm."""
    return {"threshold": alarm.threshold, "rate": alarm.rate, "calibrated_on": alarm.clean}


def _counted(rows: Sequence[Json], rang: Sequence[int | None], members: Sequence[int]) -> Json:
    """False alarms among conversations that did not defect; detections, early ones and delays among those that did."""
    bad = [row for row in members if rows[row]["defected"]]
    fine = [row for row in members if not rows[row]["defected"]]
    clean = [row for row in fine if not rows[row]["triggered"]]
    counts = {
        "false_alarms": (sum(rang[row] is not None for row in clean), len(clean)),
        "triggered_only": (
            sum(rang[row] is not None for row in fine if rows[row]["triggered"]),
            len(fine) - len(clean),
        ),
        "detected": (sum(rang[row] is not None for row in bad), len(bad)),
        "before_first_token": (sum(rang[row] == 0 for row in bad), len(bad)),
    }
    found: Json = {}
    for name, (count, n) in counts.items():
        low, high = clopper_pearson(count, n) if n else (0.0, 1.0)
        found |= {name: count, f"{name}_of": n, f"{name}_low": low, f"{name}_high": high}
    delays = sorted(rang[row] - rows[row]["onset"] for row in bad if rang[row] is not None)
    return found | {"median_delay": float(median(delays)) if delays else None}


def write_monitoring(out: Path, rows: Sequence[Json], figures: Sequence[Json], about: Json, alarm: Alarm) -> None:
    """`monitor.json`, `monitor.csv`, `replies.jsonl` and `page.html` in a folder."""
    write_jsonl(out / "replies.jsonl", rows)
    write_json(out / "monitor.json", {"schema_version": 1, **about, "table": list(figures)})
    (out / "monitor.csv").unlink(missing_ok=True)  # an earlier call's, where this one's replies were stopped
    if figures:
        write_csv(out / "monitor.csv", figures)
    shown = sorted(rows, key=lambda row: (row["alarm"] is None, not row["defected"]))[:SHOWN]
    write_text(out / "page.html", tokens_html({_heading(row): _shown(row, alarm) for row in shown}, marked=True))


def _heading(row: Json) -> str:
    rang = "never rang" if row["alarm"] is None else "rang before a word" if row["alarm"] == 0 else ""
    asked = " ".join(row["prompt"].split())
    return ", ".join(
        part
        for part in (
            f"{row['id']} ({asked[:ASKED]}{'…' if len(asked) > ASKED else ''})",
            rang or f"rang at token {row['alarm']}",
            "stopped there" if row["stopped"] else "",
            f"defected from token {row['onset']} on" if row["defected"] else "",
        )
        if part
    )


def _shown(row: Json, alarm: Alarm) -> list[Json]:
    """A table of `tokens_html`: standardised scores; the token that rang is marked, the last has no score."""
    scores = alarm.ordinary.all_standardised(torch.tensor([row["scores"]]))[0].tolist()
    return [
        {
            "position": place,
            "token": token,
            "score": scores[place] if place < len(scores) else None,
            "alarm": place == row["alarm"],
        }
        for place, token in enumerate(row["tokens"])
    ]
