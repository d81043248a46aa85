"""Reading residual streams as a user of another library would: same prompts, same model, same dtype, one thread.

    python benchmarks/reading_peers.py [--only hugging-face,nnsight] [--quick]

Each peer reads the last token at all layers in the way its documentation shows, right-padded in file order with an
attention mask, and its vectors are compared with ours before anything is timed. A peer that is not installed is left
out, and the record says so; installing it (`pip install nnsight`) is all it takes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec

import torch
from common import Records, interleaved, main
from defection.activations import Model, capture
from defection.activations.prompts.rendered import tokenize
from reading import clock_of, model_to_read, padded, prompts_of, refuse_difference
from torch import Tensor

BATCH_ROWS = 8
DTYPE, COUNT = "bf16", 24
Ids = Sequence[Sequence[int]]
Reader = Callable[[Ids], Tensor]
"""Token ids to the last tokens' vectors [prompt, layer, d_model], fp32 on the CPU."""


def in_file_order(model: Model, ids: Ids) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Tokens, mask, and (row, token) of each row's last token."""
    for start in range(0, len(ids), BATCH_ROWS):
        tokens, mask, last = padded(model, ids[start : start + BATCH_ROWS])
        yield tokens, mask, torch.arange(len(last), device=last.device), last


def hugging_face(model: Model) -> Reader:
    """`output_hidden_states` of the causal LM. Its last layer is after the final norm, so ours is normed to compare."""

    @torch.inference_mode()
    def read(ids: Ids) -> Tensor:
        parts = []
        for tokens, mask, rows, last in in_file_order(model, ids):
            out = model.network(input_ids=tokens, attention_mask=mask, output_hidden_states=True, use_cache=False)
            parts.append(torch.stack([state[rows, last] for state in out.hidden_states[1:]], dim=1).float().cpu())
        return torch.cat(parts)

    return read


def transformer_lens(model: Model) -> Reader:
    """`TransformerBridge.run_with_cache` with a list of names, and no logits as far as a bridge can leave them out."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(
        str(model.files.base) if model.files else "model",
        hf_model=copy.deepcopy(model.network),
        tokenizer=model.tokenizer,
        device=str(model.device),
        dtype=model.dtype,
    )
    names = [f"blocks.{layer}.hook_out" for layer in range(model.n_layers)]

    @torch.inference_mode()
    def read(ids: Ids) -> Tensor:
        parts = []
        for tokens, mask, rows, last in in_file_order(model, ids):
            _, cache = bridge.run_with_cache(tokens, attention_mask=mask, names_filter=names, return_type=None)
            parts.append(torch.stack([cache[name][rows, last] for name in names], dim=1).float().cpu())
        return torch.cat(parts)

    return read


def nnsight(model: Model) -> Reader:
    """A trace that saves each block's output at the last tokens; the forward goes on to the logits, as traces do."""
    from nnsight import LanguageModel

    traced = LanguageModel(copy.deepcopy(model.network), tokenizer=model.tokenizer)

    @torch.no_grad()
    def read(ids: Ids) -> Tensor:
        parts = []
        for tokens, mask, rows, last in in_file_order(model, ids):
            with traced.trace({"input_ids": tokens, "attention_mask": mask}):
                saved = list().save()  # noqa: C408 (nnsight's own spelling)
                for block in traced.model.layers:
                    saved.append(block.output[rows, last])
            parts.append(torch.stack(list(saved), dim=1).float().cpu())
        return torch.cat(parts)

    return read


def probelab(model: Model) -> Reader:
    """`collect_activations(pool="last_token")`, which needs `mirin` beside it; it sorts prompts by length itself."""
    import mirin
    from probelab.collection.mirin import collect_activations
    from probelab.tokenization import Tokens

    wrapped = mirin.Model(copy.deepcopy(model.network))

    @torch.inference_mode()
    def read(ids: Ids) -> Tensor:
        flat = torch.tensor([token for row in ids for token in row])
        offsets = torch.tensor([0, *(len(row) for row in ids)]).cumsum(0)
        tokens = Tokens(flat, offsets, torch.ones(len(flat), dtype=torch.bool), model.tokenizer.pad_token_id, "right")
        found = collect_activations(wrapped, tokens, list(range(model.n_layers)), BATCH_ROWS, pool="last_token")
        return found.data.float().cpu()

    return read


def against(peer: Callable[[Model], Reader], name: str, packages: Sequence[str], quick: bool) -> Records:
    """Row 2."""
    record = {"row": 2, "name": f"last token at all layers, {DTYPE}, system prompt shared", "yardstick": name}
    if missing := [package for package in packages if find_spec(package) is None]:
        return [{**record, "skipped": f"{' and '.join(missing)} not installed"}]
    model = model_to_read(DTYPE)
    prompts = prompts_of("shared", 8 if quick else COUNT)
    ids = tokenize(model.tokenizer, prompts)
    read = peer(model)
    ours = capture(model, prompts).values
    if peer is hugging_face:
        ours[:, -1] = model.network.get_decoder().norm(ours[:, -1].to(model.dtype)).float()
    error = refuse_difference(ours, read(ids), model.dtype, name)
    times = interleaved(
        lambda: read(ids), lambda: capture(model, prompts), rounds=2 if quick else 5, clock=clock_of(model)
    )
    about = {"prompts": len(prompts), "tokens": sum(map(len, ids)), "difference": error, "device": model.device.type}
    return [{**record, "at_least": 3.0, **about, **times}]


PARTS = {
    "hugging-face": lambda quick: against(hugging_face, "Hugging Face output_hidden_states", [], quick),
    "transformer-lens": lambda quick: against(
        transformer_lens, "TransformerBridge.run_with_cache", ["transformer_lens"], quick
    ),
    "nnsight": lambda quick: against(nnsight, "nnsight trace", ["nnsight"], quick),
    "probelab": lambda quick: against(probelab, "probelab collect_activations", ["probelab", "mirin"], quick),
}

if __name__ == "__main__":
    main(PARTS, __doc__)
