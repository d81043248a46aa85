"""What a prompt is to a model: its text, its token ids, and which characters each token holds; made once, passed on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat

from transformers import PreTrainedTokenizerBase

from ..basics.errors import DefectionError
from ..models.model import Model
from ..models.template import DATE
from .chat import first_tokens, opening_and_reply
from .loading import PromptsLike, items_of, load_prompts
from .prompts import Prompt


@dataclass(frozen=True)
class Rendered:
    """A prompt as one tokenizer gives it to its model.

    Examples:
        >>> row = render(model.tokenizer, [user_prompt("Who?")])[0]
        >>> row.text, row.ids, row.pieces
    """

    prompt: Prompt
    opening: str
    """The text up to where the model replies."""
    reply: str
    """The reply already begun; "" without one."""
    ids: tuple[int, ...]
    tokenizer: PreTrainedTokenizerBase = field(repr=False, compare=False)
    date: str = DATE
    """What today is to a chat template that asks."""

    def made_for(self, tokenizer: PreTrainedTokenizerBase, date: str) -> bool:
        """Whether it is what that tokenizer makes of the prompt on that day."""
        return self.tokenizer is tokenizer and self.date == date

    @property
    def text(self) -> str:
        """All that the model is given."""
        return self.opening + self.reply

    @cached_property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Where each token's characters lie in the text; a special token put before it lies nowhere (0, 0).

        Raises DefectionError for a tokenizer that cannot say.
        """
        if not self.tokenizer.is_fast:
            raise DefectionError(
                f"{type(self.tokenizer).__name__} does not say which characters a token holds; give the position as a "
                "number"
            )
        found = self.tokenizer(self.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return ((0, 0),) * (len(self.ids) - len(found)) + tuple((start, end) for start, end in found)

    @property
    def pieces(self) -> list[str]:
        """Each token's own part of the text: together they read as the conversation.

        Where several tokens make one character, all but the first are empty.
        """
        if not self.tokenizer.is_fast:
            return [str(self.tokenizer.decode([token])) for token in self.ids]
        found, done = [], 0
        for token, (start, end) in zip(self.ids, self.spans, strict=True):
            put_before = start == end == 0
            found.append(str(self.tokenizer.decode([token])) if put_before else self.text[max(start, done) : end])
            done = max(done, end)
        return found


def render(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], date: str = DATE) -> list[Rendered]:
    """Write and tokenise each prompt, without padding.

    A chat template writes its own special tokens, so none are added to it; the plain format gets those that the
    tokenizer puts before a text (exactly one BOS), and none that it would put after one. `date` is today
    for a template that asks. Raises DefectionError naming a prompt without a user message, without tokens, or that the
    chat template refuses.
    """
    if not prompts:
        return []
    before = first_tokens(tokenizer)
    halves = [opening_and_reply(tokenizer, prompt, date) for prompt in prompts]
    encoded = tokenizer(["".join(half) for half in halves], add_special_tokens=False)["input_ids"]
    rows = [
        Rendered(prompt, *half, (*before, *ids), tokenizer, date)
        for prompt, half, ids in zip(prompts, halves, encoded, strict=True)
    ]
    if empty := next((row for row in rows if not row.ids), None):
        raise DefectionError(f"prompt {empty.prompt.id!r} gives no tokens")
    return rows


def tokenize(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], date: str = DATE) -> list[list[int]]:
    """The token ids alone of each prompt; see `render`."""
    return [list(row.ids) for row in render(tokenizer, prompts, date)]


def rendered(model: Model, prompts: PromptsLike, *, reply_tokens: int | Sequence[int] = 0) -> list[Rendered]:
    """Each prompt as the model is given it, whatever holds them (`load_prompts`).

    What the model's tokenizer has rendered already, for its date, is taken as it is.
    Room is kept for a reply of `reply_tokens` (one number, or one a prompt), whose last token never goes through the
    model. Raises DefectionError naming the first prompt that does not fit the model's context.
    """
    given, date = items_of(prompts), model.identity.date or DATE
    done = [row if isinstance(row, Rendered) and row.made_for(model.tokenizer, date) else None for row in given]
    missing = [prompt for prompt, found in zip(load_prompts(given), done, strict=True) if not found]
    made = iter(render(model.tokenizer, missing, date))
    rows = [found or next(made) for found in done]
    replies = repeat(reply_tokens, len(rows)) if isinstance(reply_tokens, int) else reply_tokens
    for row, reply in zip(rows, replies, strict=True):
        if max(row.ids) >= model.vocabulary:
            token = max(row.ids)
            raise DefectionError(
                f"prompt {row.prompt.id!r} holds the token {model.tokenizer.convert_ids_to_tokens(token)!r} (id "
                f"{token}), but {model.identity.name} has embeddings of {model.vocabulary} rows"
            )
        if len(row.ids) + max(0, reply - 1) > model.context_length:
            said = f" and its reply {reply}" if reply else ""
            raise DefectionError(
                f"prompt {row.prompt.id!r} is {len(row.ids)} tokens long{said}, but {model.identity.name} takes at "
                f"most {model.context_length}; shorten it or leave it out"
            )
    return rows
