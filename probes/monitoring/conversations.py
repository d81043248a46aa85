"""Replies to many prompts, watched as they come: what calibrates an alarm, and what `defection monitor` does."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...activations import DefectionError, Model, Prompt
from ...activations.basics.files import Json
from ...activations.basics.progress import progress
from ...activations.prompts.chat import NEXT_TURN
from ...activations.prompts.rendered import Rendered, rendered
from ..estimators.probe import Probe
from .alarms import Alarm
from .monitor import Monitor, OnAlarm, WatchedReply

BATCH_TOKENS = 4096
"""Padded tokens of a batch, replies counted."""


def converse(
    model: Model,
    probe: Probe,
    prompts: Sequence[Prompt | Rendered],
    *,
    max_new_tokens: int,
    alarm: Alarm | None = None,
    on_alarm: OnAlarm = "note",
    strict: bool = True,
    seed: int = 0,
    what: str = "Watching replies",
    **decoding: object,
) -> list[WatchedReply]:
    """Let a model reply to each prompt under a monitor, in batches of like lengths; in the prompts' order.

    `decoding` goes to `generate`. Without a chat template a reply ends before "Human:", the next turn. Sampling starts
    from `seed`; what is drawn depends on the batches, and so on the set of prompts.
    """
    if decoding.get("num_return_sequences") not in (None, 1):
        raise DefectionError("num_return_sequences must be 1: a prompt has one watched reply; give it more than once")
    rows = rendered(model, prompts, reply_tokens=max_new_tokens)
    order = sorted(range(len(rows)), key=lambda row: len(rows[row].ids), reverse=True)
    found: dict[int, WatchedReply] = {}
    with (
        torch.random.fork_rng(),
        Monitor(model, probe, alarm=alarm, on_alarm=on_alarm, strict=strict) as watch,
        progress(what, total=len(rows), unit="replies") as advance,
    ):
        torch.manual_seed(seed)
        while order:
            width = len(rows[order[0]].ids) + max_new_tokens
            batch, order = order[: max(1, BATCH_TOKENS // width)], order[max(1, BATCH_TOKENS // width) :]
            _reply(model, [rows[row] for row in batch], max_new_tokens, decoding)
            found |= zip(batch, watch.replies[-len(batch) :], strict=True)
            advance(len(batch))
    return [found[row] for row in range(len(rows))]


def _reply(model: Model, rows: Sequence[Rendered], max_new_tokens: int, decoding: Json) -> None:
    width = max(len(row.ids) for row in rows)
    pad = model.tokenizer.pad_token_id or 0
    ids = torch.tensor([[*[pad] * (width - len(row.ids)), *row.ids] for row in rows], device=model.device)
    lengths = torch.tensor([len(row.ids) for row in rows], device=model.device)
    mask = (torch.arange(width, device=model.device) >= width - lengths[:, None]).long()
    if not model.tokenizer.chat_template:
        decoding = {"stop_strings": [NEXT_TURN], "tokenizer": model.tokenizer, **decoding}
    model.network.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, pad_token_id=pad, **decoding
    )


def said(model: Model, reply: WatchedReply) -> str:
    """A reply's text, without special tokens and the blanks around it."""
    text = str(model.tokenizer.decode(reply.tokens, skip_special_tokens=True))
    return (text.split(NEXT_TURN, maxsplit=1)[0] if not model.tokenizer.chat_template else text).strip()
