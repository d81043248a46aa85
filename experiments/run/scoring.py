"""Scores with a promise: p-values against clean prompts, and alarms on whole conversations, token by token.

What a p-value or an alarm promises holds for prompts of the kind that the clean ones are (`probes.calibration`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ...activations import DefectionError, Message, Model, Prompt, Residuals, load_states
from ...activations.basics.files import Json
from ...activations.models.sites import AFTER
from ...activations.prompts.positions import Position, parse_position, wanted_tokens
from ...activations.prompts.rendered import Rendered, rendered
from ...probes.estimators.guard import refuse_leaks
from ...probes.estimators.probe import Probe
from ...probes.meaning.tokens import token_scale, token_streams
from ...probes.statistics.calibration import ALARMS, conformal_p_values, least_clean_prompts
from ...probes.statistics.detection import (
    NEVER,
    Streams,
    detection,
    false_alarm_share,
    first_alarms,
    stream_threshold,
    streams_of,
)
from ...training.organisms.replies import replies_to

LEAST_FOR_SPREAD = 20
"""Fewer clean prompts do not say how far scores spread."""


def refuse_too_few(
    clean: Sequence[Prompt], level: float, forbidden: Sequence[str], *, halved: bool = False, alarm: str = "quantile"
) -> None:
    """DefectionError when clean prompts hold what they may not, or are too few to promise so few false alarms.

    `halved` for `watch`, in which some of them say what is ordinary at each token.
    """
    refuse_leaks(clean, forbidden, "clean prompt")
    needed, there = least_clean_prompts(level), ranked_prompts(len(clean), level) if halved else len(clean)
    if alarm != "quantile":
        needed = LEAST_FOR_SPREAD
    if there < needed:
        half = " (half of them: the others say what is ordinary at each token)" if halved else ""
        raise DefectionError(
            f"{there} clean prompts{half} cannot promise that at most {level:g} of ordinary ones ring: that takes "
            f"{needed}; give more by --clean, or allow more by --false-alarms"
        )


def ranked_prompts(count: int, level: float) -> int:
    """How many of so many clean prompts set the alarm of `watch`; the others say what is ordinary at each token.

    Half, or as many more as the level needs and leave enough for a spread.
    """
    needed = least_clean_prompts(level)
    return needed if count // 2 < needed <= count - LEAST_FOR_SPREAD else count // 2


@dataclass(frozen=True)
class States:
    """Where another engine wrote the residuals of prompts, and which it wrote; see `activations.load_states`."""

    folder: Path
    numbers: tuple[int, ...]
    """In vLLM's counting, where `s` is our layer `s − 1`."""

    def read(self, model: Model, probe: Probe, prompts: Sequence[Prompt]) -> Residuals:
        """What the probe needs of it; DefectionError naming a layer that was not written, or another site."""
        if probe.site != AFTER:
            raise DefectionError(f"the probe reads streams {probe.site!r} a block, and states are what comes after one")
        if missing := [layer for layer in probe.layers if layer + 1 not in self.numbers]:
            raise DefectionError(
                f"the probe reads layers {missing}, which vLLM calls {[layer + 1 for layer in missing]}; of the states "
                f"{list(self.numbers)} it cannot be scored: export those too, or choose a layer that is there"
            )
        return load_states(model, prompts, self.folder, self.numbers, position=probe.position)


def score_rows(
    model: Model,
    probe: Probe,
    prompts: Sequence[Prompt],
    clean: Sequence[Prompt] = (),
    level: float = 0.01,
    alarm: str = "quantile",
    *,
    states: States | None = None,
) -> list[Json]:
    """An object a prompt: id and score; beside clean prompts, also its conformal p-value and whether the alarm rings.

    With `states` nothing is run: another engine has read all these prompts.

    The alarm rings for scores above the threshold that one of `ALARMS` sets at `level`: by `quantile`, for p-values of
    at most that. Raises DefectionError naming the first clean prompt that the probe was fitted with.
    """
    probe.refuse_seen(clean)

    def read(asked: Sequence[Prompt], what: str = "Reading prompts") -> Residuals:
        return probe.read(model, asked, what=what) if states is None else states.read(model, probe, asked)

    scores = probe.score(read(prompts))
    rows: list[Json] = [{"id": p.id, "score": score} for p, score in zip(prompts, scores.tolist(), strict=True)]
    if not clean:
        return rows
    ordinary = probe.score(read(clean, "Reading clean prompts"))
    rows = _with_p_values(rows, ordinary, scores)
    threshold = float(ALARMS[alarm](ordinary, level))
    return [row | {"alarm": row["score"] > threshold} for row in rows]


def _with_p_values(rows: list[Json], clean: Float[Tensor, "n"], scores: Float[Tensor, "m"]) -> list[Json]:
    p_values = conformal_p_values(clean, scores).tolist()
    return [row | {"p_value": p} for row, p in zip(rows, p_values, strict=True)]


@dataclass(frozen=True)
class Watch:
    """How conversations are watched, token by token."""

    span: str = "all"
    """Which tokens, as `activations.positions` says: `all`, `response` or `START:END`."""
    onset: str | None = None
    """The token at which defection begins, from which delays are counted; prompts it does not apply to are ordinary."""
    in_a_row: int = 1
    """How many tokens one after another must lie above the threshold."""
    reply: int = 0
    """So many tokens of the model's own greedy reply are read too, where a prompt holds no reply."""
    level: float = 0.01
    """Share of ordinary conversations in which the alarm may ring anywhere."""
    seed: int = 0
    """Of which clean prompts set the alarm, and which say what is ordinary."""

    def __post_init__(self) -> None:
        span = parse_position(self.span)
        if span.one_each:
            raise DefectionError(f"{self.span!r} is not a stretch of tokens: watch all, response or START:END")
        if self.onset is not None:
            begins = parse_position(self.onset)
            if begins.mean or not begins.one_each:
                raise DefectionError(
                    f"defection cannot begin at {self.onset!r}: name one token, as first-response, a number or "
                    'after:"TEXT"'
                )


@dataclass(frozen=True)
class Watched:
    """What watching found."""

    rows: list[Json]
    """An object a conversation, as `scores.jsonl` holds it."""
    threshold: float
    about: Json
    """The alarm, and how it did: keys of the command's result."""

    def tables(self) -> dict[str, list[Json]]:
        """For `tokens_html`: each conversation's scores by token."""
        return {
            row["id"]: [
                {"position": row["first_token"] + i, "token": text, "score": score}
                for i, (text, score) in enumerate(zip(row["tokens"], row["token_scores"], strict=True))
            ]
            for row in self.rows
        }


def watch(model: Model, probe: Probe, prompts: Sequence[Prompt], clean: Sequence[Prompt], how: Watch) -> Watched:
    """Score every token of every conversation, and say when the alarm rings.

    Half of the clean prompts (`ranked_prompts`) set the alarm, the threshold that at most `how.level` of new clean
    conversations pass anywhere; the others say what is ordinary at each token. A conversation's `score` is its
    highest (of the lowest `in_a_row` one after another); the p-value is that of the score. Raises DefectionError
    naming the first clean prompt that the probe was fitted with.
    """
    probe.refuse_seen(clean)
    prompts, clean = with_replies(model, prompts, how.reply), with_replies(model, clean, how.reply)
    _refuse_unlike(prompts, clean)
    order = torch.randperm(len(clean), generator=torch.Generator().manual_seed(how.seed)).tolist()
    split = len(clean) - ranked_prompts(len(clean), how.level)
    texts, calm_texts = rendered(model, prompts), rendered(model, clean)
    ordinary, ranked = ([calm_texts[row] for row in sorted(part)] for part in (order[:split], order[split:]))
    spans, clean_spans = _spans(texts, how), _spans(ranked, how)
    onsets = [_onset(text, how.onset) for text in texts]
    scale = token_scale(model, probe, ordinary)
    calm = _streams(token_streams(model, probe, ranked, scale, what="Reading clean tokens"), clean_spans)
    read = token_streams(model, probe, texts, scale)
    streams = _streams(read, spans)
    threshold = stream_threshold(calm, how.level, run=how.in_a_row)
    peaks = streams.sustained(how.in_a_row).amax(dim=1)
    rows: list[Json] = [{"id": p.id, "score": peak} for p, peak in zip(prompts, peaks.tolist(), strict=True)]
    rows = _with_p_values(rows, calm.sustained(how.in_a_row).amax(dim=1), peaks)
    alarms = first_alarms(streams, threshold, run=how.in_a_row).tolist()
    for row, text, span, scores, onset, alarm in zip(rows, texts, spans, read, onsets, alarms, strict=True):
        rang = None if alarm == NEVER else span.start + alarm
        row |= {"alarm": row["p_value"] <= how.level + 1e-12, "first_alarm": rang}
        if how.onset is not None:
            row |= {"onset": onset, "delay": None if onset is None or rang is None else rang - onset}
        pieces = text.pieces[span.start : span.stop]
        row |= {"first_token": span.start, "tokens": pieces, "token_scores": scores[span.start : span.stop].tolist()}
    about: Json = {"threshold": threshold, "clean": len(calm.lengths), "level": how.level}
    if how.onset is not None:
        about |= _detection(streams, prompts, spans, onsets, threshold, how)
    return Watched(rows, threshold, about)


def with_replies(model: Model, prompts: Sequence[Prompt], tokens: int) -> list[Prompt]:
    """The prompts, those without a reply followed by the model's own greedy one, cut off after so many tokens."""
    asked = [row for row, prompt in enumerate(prompts) if prompt.messages[-1].role != "assistant"] if tokens else []
    found = list(prompts)
    said = replies_to(model, [found[row] for row in asked], max_new_tokens=tokens, what="Replies") if asked else []
    for row, reply in zip(asked, said, strict=True):
        if reply.text:
            found[row] = replace(found[row], messages=(*found[row].messages, Message("assistant", reply.text)))
    return found


def watch_lines(about: Json, rows: Sequence[Json]) -> list[str]:
    """What watching found, for a person to read."""
    lines = [
        f"alarm at {about['threshold']:.2f}, which at most {about['level']:.3g} of clean conversations pass anywhere "
        f"(set on {about['clean']}); it rang in {sum(row['alarm'] for row in rows)} of {len(rows)}"
    ]
    if found := about.get("detection"):
        late = found["median_delay"]
        within = "" if late is None else f", in half of all within {late:g} token{'' if late == 1 else 's'}"
        lines.append(
            f"of {found['n']} with an onset it rang from there on in {found['detected']} "
            f"(95% interval of the share {found['detected_low']:.2f}–{found['detected_high']:.2f}){within}; "
            f"before it in {found['early']}, never in {found['missed']}"
        )
    if calm := about.get("ordinary"):
        share = f"95% interval of the share {calm['low']:.2f}–{calm['high']:.2f}"
        lines.append(f"of {calm['n']} without an onset it rang in {calm['rang']} ({share})")
    return lines


def _detection(
    streams: Streams,
    prompts: Sequence[Prompt],
    spans: Sequence[range],
    onsets: Sequence[int | None],
    threshold: float,
    how: Watch,
) -> Json:
    """What the alarm does on conversations with an onset, and on those without."""
    for prompt, span, onset in zip(prompts, spans, onsets, strict=True):
        if onset is not None and onset not in span:
            raise DefectionError(
                f"prompt {prompt.id!r}: its onset, token {onset}, is not among those read ({how.span})"
            )
    begins = {row: onset - spans[row].start for row, onset in enumerate(onsets) if onset is not None}
    others = [row for row in range(len(onsets)) if row not in begins]
    found: Json = {}
    if begins:
        rows = torch.tensor(list(begins))
        part = Streams(streams.scores[rows], streams.lengths[rows])
        told = detection(part, list(begins.values()), threshold, run=how.in_a_row)
        names = ("n", "detected", "detected_low", "detected_high", "early", "missed", "tokens_before")
        found["detection"] = {name: getattr(told, name) for name in names}
        never = told.median_delay == float("inf")
        found["detection"] |= {
            "median_delay": None if never else told.median_delay,
            "false_alarms_per_1000_tokens": told.false_alarms_per_1000_tokens,
        }
    if others:
        rest = torch.tensor(others)
        share, (low, high) = false_alarm_share(
            Streams(streams.scores[rest], streams.lengths[rest]), threshold, run=how.in_a_row
        )
        found["ordinary"] = {"n": len(others), "rang": round(share * len(others)), "low": low, "high": high}
    return found


def _refuse_unlike(prompts: Sequence[Prompt], clean: Sequence[Prompt]) -> None:
    """Replies are other text than prompts: an alarm set on prompts alone promises nothing of them."""
    replied = next((prompt for prompt in prompts if prompt.messages[-1].role == "assistant"), None)
    if replied is not None and not any(prompt.messages[-1].role == "assistant" for prompt in clean):
        raise DefectionError(
            f"prompt {replied.id!r} ends in a reply, but no clean prompt does, so none says what is ordinary in a "
            "reply; give clean conversations by --clean, or let the model reply to clean prompts by --reply"
        )


def _spans(rows: Sequence[Rendered], how: Watch) -> list[range]:
    spans = wanted_tokens(how.span, rows)
    for row, span in zip(rows, spans, strict=True):
        if len(span) < how.in_a_row:
            raise DefectionError(f"{how.in_a_row} tokens in a row are asked for, but {row.prompt.id!r} has {len(span)}")
    return spans


def _streams(scores: Sequence[Float[Tensor, "token"]], spans: Sequence[range]) -> Streams:
    return streams_of([row[span.start : span.stop] for row, span in zip(scores, spans, strict=True)])


def _onset(row: Rendered, rule: str | None) -> int | None:
    """The token that a rule names; None for a prompt it does not apply to: without a reply, or without the text."""
    if rule is None:
        return None
    position: Position = parse_position(rule)
    if position.kind == "first-response" and not row.reply:
        return None
    if position.kind == "after" and position.text not in (row.reply or row.opening):
        return None
    return wanted_tokens(position, [row])[0].start
