"""From a prompt to token ids: the model's own chat template, or plain `Human:` / `Assistant:`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from .errors import DefectionError
from .prompts import Prompt

PLAIN_FORMAT = "plain Human:/Assistant: format, version 1"


def render(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str:
    """The text the model is given: up to where it would reply, or to the end of a reply already begun."""
    turns = [{"role": message.role, "content": message.content} for message in prompt.messages]
    begun = turns.pop()["content"] if turns[-1]["role"] == "assistant" else ""
    if not turns:
        raise DefectionError(f"prompt {prompt.id!r} holds only a reply; a user message must come before it")
    if tokenizer.chat_template is None:
        return _plain(turns) + (f" {begun}" if begun else "")
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates raise errors of many kinds, most of them jinja2's
        raise DefectionError(f"prompt {prompt.id!r} does not fit the model's chat template: {error}") from error
    return str(text) + begun


def _plain(turns: list[dict[str, str]]) -> str:
    names = {"system": "", "user": "Human: ", "assistant": "Assistant: "}
    said = [names[turn["role"]] + turn["content"] for turn in turns if turn["content"]]
    return "\n\n".join([*said, "Assistant:"])


def tokenize(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Token ids of each prompt, without padding.

    A chat template writes its own special tokens, so none are added to it; the plain format gets the tokenizer's
    (PITFALLS 4: exactly one BOS).
    """
    if not prompts:
        return []
    texts = [render(tokenizer, prompt) for prompt in prompts]
    plain = tokenizer.chat_template is None
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=plain)["input_ids"]
    for prompt, row in zip(prompts, ids, strict=True):
        if not row:
            raise DefectionError(f"prompt {prompt.id!r} gives no tokens")
    return ids


def template_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over everything that turns a prompt into token ids: template, vocabulary, special tokens."""
    state = hashlib.sha256((tokenizer.chat_template or PLAIN_FORMAT).encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # Padding and truncation are set by whoever tokenised last and change no prompt's ids.
        backend = type(backend).from_str(backend.to_str())
        backend.no_padding()
        backend.no_truncation()
        state.update(backend.to_str().encode())
    else:
        for token, index in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
            state.update(f"{index}:{token}\n".encode())
    return state.hexdigest()
