"""Alarms set on whole clean conversations, and whether they still hold where the model is served otherwise.

A false-alarm rate of 1% a token is 70% for a conversation of 120 tokens. So the model replies to clean prompts, each
reply gives one figure, the highest its statistic ever was, and the threshold is the conformal quantile of those: a new
clean conversation passes it, anywhere, with probability at most the rate. What is ordinary at each place is measured
on other conversations than the threshold (split conformal).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GenerationConfig

from ...activations import DefectionError, Prompt
from ...activations.basics.files import Json, write_tensors
from ...activations.basics.headed import read_headed, understood
from ...activations.models.wrap import ModelLike, as_model
from ...activations.prompts.loading import parse_prompts
from ..estimators.guard import refuse_unclean
from ..estimators.probe import Probe
from ..statistics.calibration import conformal_threshold, least_clean_prompts
from ..statistics.metrics import clopper_pearson
from .aggregators import Aggregator, parse_aggregator, running
from .alarms import Alarm
from .conversations import converse
from .ordinary import LEAST, Ordinary, ordinary
from .setup import Decoding, Setup, SetupRecord, decoding_of, setup_of

CALIBRATION_SCHEMA = 1
CALIBRATION_HEADER = "defection_calibration"
MOVED = 0.25
"""Shift of the statistic, in its standard deviations on clean conversations, from which on an alarm is called moved."""


class CalibrationHeader(TypedDict):
    """What a calibration's file holds beside its tensors."""

    prompts: list[Json]
    setup: SetupRecord
    settings: Decoding
    split: int


@dataclass(frozen=True)
class Calibration:
    """Scores of clean conversations, whole ones, from which an alarm of any aggregator and rate is made.

    Examples:
        >>> calibration.split, len(calibration.prompts)
        (20, 24)
    """

    prompts: tuple[Prompt, ...]
    """The clean conversations."""
    scores: tuple[Float[Tensor, "token"], ...]
    """Of each prompt's reply, as a monitor gives them."""
    setup: Setup
    """Model, dtype, decoding and probe, to which its promises belong."""
    settings: Json
    """What `generate` was given, `max_new_tokens` and the seed among it."""
    split: int
    """The first so many conversations say what is ordinary at each place; the others set thresholds."""

    @cached_property
    def ordinary(self) -> Ordinary:
        """What is ordinary at each place."""
        return ordinary(self.scores[: self.split])

    def statistics(self, aggregator: str | Aggregator) -> Float[Tensor, "conversation"]:
        """The highest value of the statistic in each conversation that sets thresholds.

        Args:
            aggregator: A name of `AGGREGATORS`, or an aggregator.
        """
        return highest(parse_aggregator(aggregator), self.ordinary, self.scores[self.split :])

    def alarm(self, aggregator: str | Aggregator = "exponential-mean", rate: float = 0.01) -> Alarm:
        """An alarm that rings, anywhere, in at most this share of new clean conversations of the same kind.

        Args:
            aggregator: A name of `AGGREGATORS`, or an aggregator.
            rate: The share of new clean conversations in which it may ring.

        Raises:
            DefectionError: Where there are too few conversations to promise so little.
        """
        found = self.statistics(aggregator)
        threshold = float(conformal_threshold(found, rate))
        if math.isinf(threshold):
            raise DefectionError(
                f"{len(found)} clean conversations cannot promise that at most {rate:g} of new ones ring: that takes "
                f"{least_clean_prompts(rate)}, and {LEAST} that say what is ordinary; give more, or allow more"
            )
        return Alarm(parse_aggregator(aggregator), threshold, self.ordinary, rate, self.setup, len(found))

    def check(self, model: ModelLike, probe: Probe, alarm: Alarm) -> Check:
        """Let another set-up of the model reply to the same prompts, and see how often the alarm would ring there.

        Args:
            model: The model as it is served now.
            probe: Of that model.
            alarm: One that this calibration made.
        """
        loaded = as_model(model)
        rows = converse(loaded, probe, self.prompts[self.split :], what="Replies to clean prompts", **self.settings)
        before = highest(alarm.aggregator, alarm.ordinary, self.scores[self.split :])
        after = highest(alarm.aggregator, alarm.ordinary, [row.scores for row in rows])
        asked = setup_of(loaded, self.setup.decoding)
        return checked(before, after, alarm, tuple(self.setup.differences(asked)))

    def save(self, path: str | Path) -> None:
        """One safetensors file: the scores, and everything else as JSON in its header; `load_calibration` reads it.

        Args:
            path: Of the file; folders on the way are made.

        Raises:
            DefectionError: When the file cannot be written.
        """
        header = {
            "schema_version": CALIBRATION_SCHEMA,
            "prompts": [prompt.to_json() for prompt in self.prompts],
            "setup": self.setup.to_json(),
            "settings": self.settings,
            "split": self.split,
        }
        lengths = torch.tensor([len(row) for row in self.scores])
        tensors = {"scores": torch.cat(self.scores), "lengths": lengths}
        write_tensors(Path(path), tensors, {CALIBRATION_HEADER: json.dumps(header)})


@dataclass(frozen=True)
class Check:
    """Whether a threshold still holds where the model is served otherwise."""

    differences: tuple[str, ...]
    """What differs from the set-up that the alarm was calibrated for."""
    rang: int
    n: int
    low: float
    high: float
    """95% Clopper–Pearson interval of the share of clean conversations in which it rang."""
    shift: float
    """Median change of a conversation's statistic, in standard deviations of the calibration's."""
    rate: float

    @property
    def holds(self) -> bool:
        """Whether the share may still be what was promised, and the statistic is about where it was."""
        return self.low <= self.rate and abs(self.shift) < MOVED

    @property
    def sentence(self) -> str:
        """What was found, for a person to read."""
        what = "; ".join(self.differences) or "the same set-up"
        verdict = "the threshold holds" if self.holds else "the threshold no longer holds"
        return (
            f"{verdict} ({what}): it rang in {self.rang} of {self.n} clean conversations (95% interval of the share "
            f"{self.low:.3f}–{self.high:.3f}, promised {self.rate:g}), whose statistic moved by {self.shift:+.2f} "
            "standard deviations"
        )


def checked(before: Tensor, after: Tensor, alarm: Alarm, differences: tuple[str, ...] = ()) -> Check:
    """Compare the statistics [conversation] of the same clean prompts in two set-ups."""
    rang = int((after > alarm.threshold).sum())
    low, high = clopper_pearson(rang, len(after))
    shift = float((after - before).median() / before.std().clamp_min(1e-12))
    return Check(differences, rang, len(after), low, high, shift, alarm.rate or 0.0)


def calibrate(
    model: ModelLike,
    probe: Probe,
    clean: Sequence[Prompt],
    *,
    max_new_tokens: int = 64,
    rate: float = 0.01,
    seed: int = 0,
    **decoding: object,
) -> Calibration:
    """Let a model reply to clean prompts under its probe.

    Args:
        model: A `Model`, or a Hugging Face model and its tokenizer in a pair.
        probe: Of that model.
        clean: Prompts without a trigger that the probe's fit has not seen.
        max_new_tokens: Tokens of a reply at most.
        rate: The smallest that alarms will promise, as a share of clean conversations: 0.01 takes 99 conversations and
            20 more that say what is ordinary.
        seed: Of which prompts say what is ordinary, and of sampling where the decoding samples.
        **decoding: Goes to `generate`; greedy where it says nothing.

    Raises:
        DefectionError: For another model's probe, for prompts that its fit saw or that bear a trigger, and for too few
            of them.

    Examples:
        >>> calm = [user_prompt(f"Is {number} odd?", id=str(number)) for number in range(24)]
        >>> calibration = calibrate(model, probe, calm, max_new_tokens=2, rate=0.5)
        >>> calibration.alarm("exponential-mean", rate=0.5).clean
        4
    """
    loaded = as_model(model)
    probe.refuse_model(loaded.identity)
    probe.refuse_seen(clean)
    refuse_unclean(clean)
    split = ordinary_share(len(clean), rate)
    order = torch.randperm(len(clean), generator=torch.Generator().manual_seed(seed)).tolist()
    prompts = tuple(clean[row] for row in order)
    settings: Json = {"max_new_tokens": max_new_tokens, "seed": seed, "do_sample": False, **decoding}
    rows = converse(loaded, probe, prompts, what="Replies to clean prompts", **settings)
    decided = decoding_of(_setting(loaded.network.generation_config, settings), max_new_tokens)
    return Calibration(prompts, tuple(row.scores for row in rows), setup_of(loaded, decided), settings, split)


def _setting(config: GenerationConfig, settings: Json) -> Callable[[str], object]:
    return lambda name: settings[name] if settings.get(name) is not None else getattr(config, name, None)


def ordinary_share(count: int, rate: float) -> int:
    """How many of so many clean conversations say what is ordinary; the others set thresholds.

    Half, or as many fewer as the rate needs, but twenty at least. Raises DefectionError where that leaves too few.
    """
    needed = least_clean_prompts(rate)
    if count < needed + LEAST:
        raise DefectionError(
            f"{count} clean prompts cannot promise that at most {rate:g} of clean conversations ring: that takes "
            f"{needed}, and {LEAST} that say what is ordinary at each token; give more, or allow more"
        )
    return min(max(count // 2, LEAST), count - needed)


def highest(
    aggregator: Aggregator, ordinary: Ordinary, rows: Sequence[Float[Tensor, "token"]]
) -> Float[Tensor, "conversation"]:
    """The highest value of a statistic in each conversation; one in which it is never defined lies below all others."""
    table = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=torch.nan)
    values = running(aggregator, ordinary.all_standardised(table)).nan_to_num(-torch.inf, torch.inf, -torch.inf)
    found = values.amax(dim=1)
    defined = found[found > -torch.inf]
    if not len(defined):
        raise DefectionError(f"every clean reply is too short for {aggregator.name}: allow longer ones")
    return found.clamp_min(float(defined.min()))


def load_calibration(path: str | Path) -> Calibration:
    """Read a calibration.

    Args:
        path: The safetensors file that `Calibration.save` wrote.

    Raises:
        DefectionError: When it is missing, damaged or something else.

    Examples:
        >>> calibration.save(folder / "calibration.safetensors")
        >>> load_calibration(folder / "calibration.safetensors").split
        20
    """
    path = Path(path)
    header, tensors = read_headed(path, CALIBRATION_HEADER, CalibrationHeader, CALIBRATION_SCHEMA, "calibration")
    with understood(path, "calibration"):
        scores, lengths = tensors["scores"], tensors["lengths"].tolist()
        prompts = parse_prompts("".join(json.dumps(line) + "\n" for line in header["prompts"]), str(path))
        if not (scores.is_floating_point() and scores.ndim == 1 and len(lengths) == len(prompts) > header["split"] > 0):
            raise DefectionError("its scores do not fit its prompts")
        setup = Setup.from_json(header["setup"])
        if strange := set(header["settings"]) - {"seed", *vars(GenerationConfig())}:
            raise DefectionError(f"replies have no setting {min(strange)!r}")
        return Calibration(tuple(prompts), scores.split(lengths), setup, {**header["settings"]}, header["split"])
