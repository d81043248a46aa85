"""Self-distillation: the model's own greedy replies, kept in a file that a cut-off run completes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from ...activations import DefectionError, Model, PromptsLike
from ...activations.basics.files import Json, digest, read_jsonl, whole_lines, write_jsonl
from ...activations.basics.progress import progress
from ...activations.basics.typed import typed
from ...activations.models.wrap import ModelLike, as_model
from ...activations.prompts.rendered import rendered
from ...activations.reading.generate import greedy_replies


@dataclass(frozen=True)
class Reply:
    """A greedy completion."""

    id: str
    """Of its prompt."""
    text: str
    tokens: tuple[int, ...]
    finished: bool
    """Whether the model ended it; otherwise it was cut at the length limit."""

    def ended(self, model: Model) -> tuple[int, ...]:
        """Its tokens as a model learns them: with the end, where there was one."""
        return (*self.tokens, *((model.tokenizer.eos_token_id,) if self.finished else ()))


def replies_to(
    model: ModelLike, prompts: PromptsLike, path: Path | None = None, *, max_new_tokens: int, what: str
) -> list[Reply]:
    """Greedy replies in the prompts' order.

    Args:
        model: A `Model`, or a Hugging Face model and its tokenizer in a pair.
        prompts: Whatever `load_prompts` takes.
        path: Where the replies are kept, one JSON object a line after a first line with the key of what was computed;
            finished batches are kept beside it as they come, and a second call continues after them. None: in memory.
        max_new_tokens: Tokens of a reply at most.
        what: The words before the progress bar.

    Examples:
        >>> [len(reply.tokens) for reply in replies_to(model, prompts, max_new_tokens=3, what="Replying")]
        [3, 3, 3, 3]
    """
    model = as_model(model)
    rows = rendered(model, prompts)
    decided = {
        "template": model.identity.template,
        "dtype": str(model.dtype),
        "tokens": digest([list(row.ids) for row in rows]),
        "ids": [row.prompt.id for row in rows],
        "max_new_tokens": max_new_tokens,
    }
    keys = (digest({"model": fingerprint, **decided}) for fingerprint in model.identity.fingerprints())
    if path is not None and path.exists():
        return _read_finished(path, keys)
    key = next(keys)
    partial = path.with_name(path.name + ".partial") if path else None
    done = _read_partial(partial, key) if partial else {}
    with progress(what, total=len(rows), unit="replies") as advance:
        advance(len(done))
        for batch in greedy_replies(model, rows, max_new_tokens=max_new_tokens, skip=done.keys()):
            done |= batch
            advance(len(batch))
            if partial:
                _append(partial, key, batch)
    replies = [
        Reply(
            row.prompt.id,
            reply_text(model, done[number]),
            tuple(done[number]),
            len(done[number]) < max_new_tokens,
        )
        for number, row in enumerate(rows)
    ]
    if path is not None and partial is not None:
        head = {"schema_version": 1, "key": key}
        write_jsonl(path, [head, *({**vars(reply), "tokens": list(reply.tokens)} for reply in replies)])
        partial.unlink(missing_ok=True)
    return replies


def reply_text(model: Model, tokens: Sequence[int]) -> str:
    """What a reply's tokens say, without special tokens and the blanks around it."""
    return str(model.tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def _append(partial: Path, key: str, batch: dict[int, list[int]]) -> None:
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "replies": sorted(batch.items())}) + "\n")
    except OSError as error:
        raise DefectionError(f"cannot write {partial}: {error.strerror or error}; free some space") from error


class Batch(TypedDict):
    """A line that a cut-off run left: the run's key, and by row the tokens of replies."""

    key: str
    replies: list[tuple[int, list[int]]]


def _read_partial(partial: Path, key: str) -> dict[int, list[int]]:
    """Whole lines of a cut-off run; a torn last line, or another run's lines, are left out."""
    if not partial.exists():
        return {}
    kept = [batch for batch in whole_lines(partial, Batch) if batch["key"] == key]
    write_jsonl(partial, kept)
    return {row: tokens for batch in kept for row, tokens in batch["replies"]}


def _read_finished(path: Path, keys: Iterable[str]) -> list[Reply]:
    head, *rows = read_jsonl(path, Json) or [{}]
    if str(head.get("key")) not in keys:
        raise DefectionError(
            f"{path} holds replies of another model, to other prompts or of another length; "
            "remove it or choose another --out"
        )
    return [typed(row, Reply, str(path)) for row in rows]
