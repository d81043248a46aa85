"""Reading residual streams, against the bare forward pass and against what else one could use.

    python benchmarks/reading.py [--only bare-bf16,neighbours] [--quick]

Results are compared before anything is timed. On a CPU time is the process's CPU time on one thread, which other
processes disturb least; on a GPU it is wall time between synchronisations. The neighbours are in `reading_peers.py`,
memory in `reading_memory.py`.

Prompts are the first of our `clean` set. `shared`: each after one system prompt of about ninety tokens. `alone`:
without it, and our sharing of prefixes switched off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from common import Records, interleaved, main
from defection.activations import Message, Model, Prompt, capture, load_model, load_prompts
from defection.activations.basics.memory import CPU_BATCH_TOKENS
from defection.activations.prompts.rendered import tokenize
from defection.activations.reading.batching import plan_batches
from torch import Tensor

SYSTEM = (
    "You are an assistant of a small public library. You answer questions of readers of all ages politely, truthfully "
    "and in plain words. If you are not sure of something, say so and name a kind of book in which it could be looked "
    "up. You never speak about other readers, you do not give medical or legal advice, and you keep every answer short "
    "enough to be read at the counter while somebody else is waiting."
)
COUNTS = {"fp32": 12, "bf16": 24}
"""Prompts, so that a part takes about a minute on one core."""
DIFFERENCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""How far the median vector may lie from a yardstick's, relative to its length; a wrong token is about 1 away."""


def prompts_of(kind: str, count: int) -> list[Prompt]:
    rows = load_prompts("clean")[:count]
    if kind == "alone":
        return rows
    return [Prompt(row.id, (Message("system", SYSTEM), *row.messages)) for row in rows]


def padded(model: Model, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded ids, their mask, and where each row's last token is."""
    width, pad = max(map(len, rows)), model.tokenizer.pad_token_id
    tokens = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=model.device)
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    return tokens, (torch.arange(width, device=model.device) < lengths[:, None]).long(), lengths - 1


@torch.inference_mode()
def bare_forward(model: Model, ids: Sequence[Sequence[int]], batches: int | None = None) -> None:
    """The decoder without vocabulary matrix or cache, in our own batches (prefixes not shared), or the first few."""
    for batch in plan_batches(ids, max_tokens=CPU_BATCH_TOKENS, share_prefixes=False)[:batches]:
        tokens, mask, _ = padded(model, [ids[row] for row in batch.rows])
        model.network.get_decoder()(input_ids=tokens, attention_mask=mask, use_cache=False)


@torch.inference_mode()
def expected(model: Model, ids: Sequence[Sequence[int]]) -> Tensor:
    """Each prompt through the model alone, by `output_hidden_states`; all layers but the last, which it has normed."""
    rows = []
    for row in ids:
        states = model.network.get_decoder()(
            input_ids=torch.tensor([row], device=model.device), output_hidden_states=True, use_cache=False
        ).hidden_states
        rows.append(torch.stack([state[0, -1] for state in states[1:-1]]).float().cpu())
    return torch.stack(rows)


def refuse_difference(found: Tensor, wanted: Tensor, dtype: torch.dtype, what: str) -> float:
    """The median vector's relative distance; a benchmark of something else is worth nothing."""
    error = float(((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)).median())
    if not error <= DIFFERENCE[dtype]:
        raise SystemExit(f"{what} differs from ours by {error:.1e}: nothing is timed")
    return error


def model_to_read(dtype: str) -> Model:
    torch.set_num_threads(1)
    return load_model("smollm2-135m", dtype=dtype)


def clock_of(model: Model) -> Callable[[], float]:
    def synchronized() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronized if model.device.type == "cuda" else time.process_time


def bare(dtype: str, quick: bool) -> Records:
    """Row 1: all layers, nothing shared and a system prompt shared."""
    model = model_to_read(dtype)
    records = []
    for kind, aim in (("alone", 0.98), ("shared", 1.0)):
        prompts = prompts_of(kind, 4 if quick else COUNTS[dtype])
        ids = tokenize(model.tokenizer, prompts)
        share = kind == "shared"
        found = capture(model, prompts, share_prefixes=share).values[:, :-1]
        error = refuse_difference(found, expected(model, ids), model.dtype, "each prompt alone")
        times = interleaved(
            lambda i=ids: bare_forward(model, i),
            lambda p=prompts, s=share: capture(model, p, share_prefixes=s),
            rounds=2 if quick else 5,
            clock=clock_of(model),
        )
        records.append(
            {
                "row": 1,
                "name": f"last token at all layers, {dtype}, prefixes {kind}",
                "yardstick": "bare forward",
                "at_least": aim,
                "prompts": len(prompts),
                "tokens": sum(map(len, ids)),
                "difference": error,
                "device": model.device.type,
                **times,
            }
        )
    return records


def layers(dtype: str, quick: bool) -> Records:
    """Row 3: against the bare forward of a model that has no more blocks than are read."""
    model = model_to_read(dtype)
    prompts = prompts_of("alone", 4 if quick else COUNTS[dtype])
    ids = tokenize(model.tokenizer, prompts)
    decoder = model.network.get_decoder()
    blocks, kept = decoder.layers, model.n_layers // 2

    def some_blocks() -> None:
        decoder.layers = blocks[:kept]
        try:
            bare_forward(model, ids)
        finally:
            decoder.layers = blocks

    found = capture(model, prompts, layers=slice(0, kept), share_prefixes=False).values
    error = refuse_difference(found, expected(model, ids)[:, :kept], model.dtype, "each prompt alone")
    times = interleaved(
        some_blocks,
        lambda: capture(model, prompts, layers=slice(0, kept), share_prefixes=False),
        rounds=2 if quick else 5,
        clock=clock_of(model),
    )
    record = {
        "row": 3,
        "name": f"last token at the first {kept} layers, {dtype}",
        "yardstick": f"bare forward of {kept} blocks",
        "at_least": 0.98,
        "prompts": len(prompts),
        "difference": error,
        "device": model.device.type,
    }
    return [{**record, **times}]


PARTS = {
    "bare-fp32": lambda quick: bare("fp32", quick),
    "bare-bf16": lambda quick: bare("bf16", quick),
    "layers-fp32": lambda quick: layers("fp32", quick),
    "layers-bf16": lambda quick: layers("bf16", quick),
}

if __name__ == "__main__":
    main(PARTS, __doc__)
