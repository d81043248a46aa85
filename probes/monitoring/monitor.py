"""A probe that reads each token while the model decides on the next, and can stop it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor

from ...activations.basics.errors import DefectionError
from ...activations.models.wrap import ModelLike, as_model
from ..estimators.probe import Probe
from .alarms import Alarm, first_above, plain_alarm
from .generating import Call, listening
from .setup import decoding_differences, decoding_of, setup_of
from .taps import Taps


@dataclass(frozen=True)
class AlarmEvent:
    """An alarm, as it rings.

    Examples:
        >>> AlarmEvent(row=0, token=3, value=2.5).token
        3
    """

    row: int
    """Of the batch that `generate` was given, return sequences counted one by one."""
    token: int
    """0 is the prompt's last token, before a word is said; then the reply's tokens."""
    value: float
    """The aggregator's statistic, above its threshold."""


OnAlarm = Literal["note", "stop"] | Callable[[AlarmEvent], object]


@dataclass(frozen=True)
class WatchedReply:
    """One reply, as it was watched.

    Examples:
        >>> WatchedReply((5, 6), torch.zeros(2), alarm=None).stopped
        False
    """

    tokens: tuple[int, ...]
    """What was said, without the token that ended it and without padding."""
    scores: Float[Tensor, "token"]
    """The prompt's last token's first, then each of the reply's but the last; one for each choice of a token."""
    alarm: int | None
    """The first token that rang: 0 for the prompt's last, n for the reply's n-th; None: it never did."""
    stopped: bool = False
    """Whether the alarm ended the reply: `tokens` is what was said until then."""


class Monitor:
    """Scores of every token while a model generates; an alarm that notes, stops the row, or calls a function.

    `model` is a loaded or wrapped one, or (network, tokenizer). Inside, every call of its network's `generate` is
    watched, a `Pipeline`'s too: any batch, padding, sampling, return sequences, cache, streamer or beams (a row's own
    are followed at the end; they can be noted, not stopped). `alarm` is made by `Calibration.alarm`; a number rings
    for any token whose own score lies above it and promises nothing; None only scores. `on_alarm`: "note"; "stop",
    which lets the row say its end token in place of the next one; or a function that is given an `AlarmEvent`, once a
    row, and stops the row by returning True (it looks at one flag a step, so a GPU is waited for).
    With `strict` a call that decodes otherwise than the alarm was calibrated for is refused; without, the difference
    stands in `doubts`. Outputs are what they are without a monitor, and nothing is left on the model.

    Raises DefectionError for another model's probe or alarm, and inside `generate` for decoding that cannot be
    followed: an assistant model, contrastive search, guidance, compiled code.

    Examples:
        >>> with Monitor(model, probe, alarm=calibration.alarm(rate=0.5), on_alarm="stop") as watch:
        ...     out = model.network.generate(**batch, max_new_tokens=2, do_sample=False)
        >>> watch.scores.shape, len(watch.alarms)
        (torch.Size([1, 2]), 1)
    """

    def __init__(
        self,
        model: ModelLike,
        probe: Probe,
        *,
        alarm: Alarm | float | None = None,
        on_alarm: OnAlarm = "note",
        strict: bool = True,
    ) -> None:
        self.model = as_model(model)
        probe.refuse_model(self.model.identity)
        if on_alarm not in ("note", "stop") and not callable(on_alarm):
            raise DefectionError(f'on_alarm is "note", "stop" or a function, not {on_alarm!r}')
        if on_alarm != "note" and alarm is None:
            raise DefectionError("there is no alarm to act on: give alarm= a calibrated one, or a number")
        self.alarm = plain_alarm(float(alarm)) if isinstance(alarm, int | float) else alarm
        self.on_alarm = on_alarm
        self.strict = strict
        self.doubts: list[str] = []
        """What the alarm was not calibrated for, of a monitor that is not strict."""
        self.replies: list[WatchedReply] = []
        """All rows of all calls so far, in order."""
        self._taps = Taps(self.model, probe)
        self._listening: contextlib.AbstractContextManager[None] | None = None
        if self.alarm and self.alarm.setup:
            here = setup_of(self.model, self.alarm.setup.decoding)
            self._refuse(self.alarm.setup.differences(here))

    def __enter__(self) -> Self:
        if self._listening is not None:
            raise DefectionError("this monitor is on already; make another to watch twice")
        self._listening = listening(self.model.network, self)
        self._listening.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._listening is not None
        self._listening.__exit__(None, None, None)
        self._listening = None

    @property
    def scores(self) -> Float[Tensor, "row token"]:
        """The probe's score at each token of each reply, the prompt's last token first; NaN after a reply's end.

        In host memory. 0 is an ordinary prompt; elsewhere than at the prompt's end, what is ordinary is another number.
        A state that is not finite scores ∞.
        """
        rows = [reply.scores for reply in self.replies]
        if not rows:
            return torch.empty(0, 0)
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=torch.nan)

    @property
    def alarms(self) -> list[int | None]:
        """The first token of each reply that rang: 0 is the prompt's last, before a word is said; None: none did."""
        return [reply.alarm for reply in self.replies]

    def _refuse(self, differences: Sequence[str]) -> None:
        if not differences:
            return
        sentence = f"this alarm was calibrated for something else: {'; '.join(differences)}"
        if self.strict:
            raise DefectionError(f"{sentence}. Calibrate it for that, or watch with strict=False and no promise")
        if sentence not in self.doubts:
            self.doubts.append(sentence)

    # What `generating` calls.

    @contextlib.contextmanager
    def begins(self, call: Call) -> Iterator[None]:
        """See `generating.Listener`."""
        acts = self.on_alarm != "note"
        if acts and call.beams > 1:
            raise DefectionError("beams cannot be stopped one by one: search without num_beams, or only note alarms")
        if acts and not call.ends:
            raise DefectionError("a row that rings cannot be stopped where generate has no eos_token_id; give it one")
        if self.alarm and self.alarm.setup:
            asked = decoding_of(call.setting, call.max_new_tokens)
            self._refuse(decoding_differences(self.alarm.setup.decoding, asked))
        self._columns: list[Tensor] = []
        self._newest: Tensor | None = None
        self._prefilling = True
        self._width = 0
        over = [*call.ends, call.setting("pad_token_id")]
        self._acting = _Acting(self.alarm, call.ends, over, self.on_alarm) if acts and self.alarm else None
        with self._taps.attached():
            yield

    def reads(self, columns: Tensor | None, prefilling: bool) -> None:
        """See `generating.Listener`."""
        if self._newest is not None and not prefilling:
            raise DefectionError("the model ran twice between two tokens, which a monitor cannot follow")
        self._taps.columns = columns

    def has_read(self, here: Tensor | None) -> None:
        """See `generating.Listener`."""
        found = self._taps.take()
        if here is not None and self._newest is not None:
            found = torch.where(here.to(found.device), found, self._newest)
        self._newest = found

    def chooses(self, tokens: Tensor, logits: Tensor) -> Tensor:
        """See `generating.Listener`."""
        if self._newest is None:
            raise DefectionError("a token is chosen of which the model's blocks saw nothing")
        if not self._columns:
            self._width = tokens.shape[1]
        place = len(self._columns)
        self._columns.append(self._newest)
        scores, self._newest = self._newest, None
        return logits if self._acting is None else self._acting.at(place, scores, tokens, logits)

    def ends(self, call: Call, sequences: Tensor, beams: Tensor | None) -> None:
        """See `generating.Listener`."""
        table = torch.stack(self._columns, dim=1).cpu()
        said = sequences[:, -table.shape[1] :].cpu() if beams is None else sequences[:, self._width :].cpu()
        if beams is None:
            pad = call.setting("pad_token_id")
            chosen = [_chosen(row, call.ends, pad) for row in said.tolist()]
        else:
            beams = beams.cpu()
            chosen = (beams >= 0).sum(dim=1).tolist()
            steps = torch.arange(beams.shape[1])
            table = table[beams.clamp_min(0).long(), steps]
        ended = torch.arange(table.shape[1]) >= torch.tensor(chosen)[:, None]
        table = table.masked_fill(ended, torch.nan)
        alarms: list[int | None] = [None] * len(table)
        if self._acting is not None:
            # A stop string is seen after the alarm has looked at the reply's last token, which is nobody's to score.
            said_by = zip(self._acting.alarms(), chosen, strict=True)
            alarms = [None if alarm is None or alarm >= count else alarm for alarm, count in said_by]
        elif self.alarm is not None:
            alarms = first_above(self.alarm.values(table), self.alarm.threshold)
        stopped = self._acting.stopped() if self._acting else [False] * len(table)
        for row, (scores, count, alarm, cut) in enumerate(zip(table, chosen, alarms, stopped, strict=True)):
            tokens = said[row, :count].tolist()
            if tokens and tokens[-1] in call.ends:
                tokens.pop()
            self.replies.append(WatchedReply(tuple(tokens), scores[:count].clone(), alarm, cut and alarm is not None))
        self._columns, self._acting = [], None


def _chosen(row: list[int], ends: Sequence[int], pad: int | None) -> int:
    """How many tokens were chosen for a row, its end token included; what comes after is padding."""
    first = next((place for place, token in enumerate(row) if token in ends), None)
    if first is not None:
        return first + 1
    count = len(row)
    while pad is not None and count > 1 and row[count - 1] == pad:  # ended by a stop string, or by whoever calls
        count -= 1
    return count


class _Acting:
    """An alarm that is looked at while the model speaks; all of it on the model's device."""

    def __init__(self, alarm: Alarm, ends: list[int], over: Sequence[object], on_alarm: OnAlarm) -> None:
        self.alarm = alarm
        self.step = alarm.aggregator.start()
        self.end_tokens = ends
        self.over_tokens = [token for token in over if isinstance(token, int)]
        """Behind which a row says no more: its end tokens, and the padding after a stop string."""
        self.call = on_alarm if callable(on_alarm) else None
        self.first: Tensor | None = None
        """Of each row the token that rang, −1 before."""
        self.over: Tensor | None = None
        """Rows that have ended, or are to."""
        self.cut: Tensor | None = None
        """Rows that are to end for the alarm's sake."""

    def at(self, place: int, scores: Tensor, tokens: Tensor, logits: Tensor) -> Tensor:
        """Look at the newest scores; rows that are to end can only choose their end token."""
        device = logits.device
        if self.first is None or self.over is None or self.cut is None:
            self.ids = torch.tensor(self.over_tokens, device=device)
            self.over = torch.zeros(len(scores), dtype=torch.bool, device=device)
            self.cut, self.first = self.over.clone(), torch.full_like(self.over, -1, dtype=torch.long)
        else:
            self.over = self.over | torch.isin(tokens[:, -1].to(device), self.ids)
        value = self.step(self.alarm.ordinary.standardised(scores.to(device), place))
        rings = (value > self.alarm.threshold) & ~self.over & (self.first < 0)
        self.first = torch.where(rings, place, self.first)
        if self.call is None:
            ending = rings
        else:
            ending = torch.zeros_like(rings)
            for row in rings.nonzero().flatten().tolist():
                ending[row] = self.call(AlarmEvent(row, place, float(value[row]))) is True
        self.cut = self.cut | ending
        logits = logits.masked_fill(ending[:, None], -torch.inf)
        end = self.end_tokens[0]
        logits[:, end] = torch.where(ending, 0.0, logits[:, end])
        return logits

    def alarms(self) -> list[int | None]:
        """Of each row the token that rang."""
        assert self.first is not None
        return [None if place < 0 else place for place in self.first.tolist()]

    def stopped(self) -> list[bool]:
        """Whether each row was ended."""
        assert self.cut is not None
        return [bool(cut) for cut in self.cut.tolist()]
