"""How a conversation is written for a model: by its own chat template, or as plain `Human:` / `Assistant:`."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ..basics.errors import DefectionError
from ..models.template import DATE, chat_template, dated
from .prompts import Message, Prompt

NEXT_TURN = "\nHuman:"
"""Where a model without a chat template goes on to speak for the human, its reply is over."""
LOOK_BACK = 8
"""Tokens within which `NEXT_TURN` is looked for; byte-level tokens spell it in as many."""


def opening_and_reply(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, date: str = DATE) -> tuple[str, str]:
    """The text up to where the model replies, and the reply already begun ("" without one).

    Both are what the chat template itself writes: where a reply is begun, `continue_final_message` says what stands
    before it (a space, an empty think block) and whether the blanks around it stay. `date` (YYYY-MM-DD) is today for a
    template that asks. Raises DefectionError for a conversation without a user message, or one that the chat template
    refuses.
    """
    turns, begun = list(prompt.messages), ""
    if turns[-1].role == "assistant":
        begun = turns.pop().content
    if not turns:
        raise DefectionError(f"prompt {prompt.id!r} holds only a reply; a user message must come before it")
    template = chat_template(tokenizer)
    if template is None:
        return _plain(turns) + (" " if begun else ""), begun
    said = [{"role": turn.role, "content": turn.content} for turn in (prompt.messages if begun else turns)]
    how = {"continue_final_message": True} if begun else {"add_generation_prompt": True}
    try:
        text = str(tokenizer.apply_chat_template(said, chat_template=dated(template, date), tokenize=False, **how))
    except Exception as error:  # templates raise errors of many kinds, most of them jinja2's
        raise DefectionError(_refusal(prompt, error)) from error
    kept = next(part for part in (begun, begun.rstrip(), begun.lstrip(), begun.strip(), "") if text.endswith(part))
    return text[: len(text) - len(kept)], kept


def _refusal(prompt: Prompt, error: Exception) -> str:
    said = " ".join(str(error).split())
    if said.startswith("continue_final_message"):
        return f"prompt {prompt.id!r} begins a reply that the model's chat template writes otherwise; leave that out"
    if prompt.messages[0].role == "system":
        said += " (it begins with a system message, which not every template has a place for)"
    return f"prompt {prompt.id!r} does not fit the model's chat template: {said}"


def _plain(turns: Sequence[Message]) -> str:
    names = {"system": "", "user": "Human: ", "assistant": "Assistant: "}
    said = [names[turn.role] + turn.content for turn in turns if turn.content]
    return "\n\n".join([*said, "Assistant:"])


def first_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What goes before every rendered prompt: nothing before a chat template, BOS before plain text if it needs one."""
    if tokenizer.chat_template:
        return []
    bare: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer("a")["input_ids"]
    start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    return whole[:start]


def reply_ids(tokenizer: PreTrainedTokenizerBase, reply: str) -> list[int]:
    """Token ids of a reply as they follow the prompt's, without an end token; the plain format puts a space first."""
    lead = " " if not tokenizer.chat_template and reply else ""
    ids: list[int] = tokenizer(lead + reply, add_special_tokens=False)["input_ids"]
    return ids


def before_next_turn(tokenizer: PreTrainedTokenizerBase, reply: Sequence[int], *, cut_off: bool = False) -> int | None:
    """How many tokens of a reply in the plain format come before a next turn that it has just begun; None if none.

    With a chat template turns end by tokens of their own, and this is always None. The reply's blank tokens before the
    turn are not counted. In a reply that is `cut_off` here, the turn's last character may still be missing.
    """
    if tokenizer.chat_template:
        return None
    start = max(0, len(reply) - LOOK_BACK)
    text = str(tokenizer.decode(reply[start:]))
    place = f"{text}:".rfind(NEXT_TURN) if cut_off else text.find(NEXT_TURN)
    if place < 0:
        return None
    kept = len(reply)
    while kept > start and len(str(tokenizer.decode(reply[start:kept]))) > place + 1:
        kept -= 1
    while kept and not str(tokenizer.decode(reply[kept - 1 : kept])).strip():
        kept -= 1
    return kept
