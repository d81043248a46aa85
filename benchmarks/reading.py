"""Reading residual streams, against the bare forward pass and against what else one could use.

    python benchmarks/reading.py --rows bare,layers,memory,neighbours --dtype fp32 --rounds 5

Prints JSON, one record a comparison. Rounds are interleaved A B A B on the same prompts, threads and dtype, and results
are compared before anything is timed. `speed` is the median over rounds of the yardstick's time divided by ours (above
1: we are faster). On a CPU time is the process's CPU time on one thread, which other processes do not disturb; on a GPU
it is wall time between synchronisations.

Prompts are the first of our `clean` set. `shared`: each after one system prompt of about ninety tokens. `alone`: no
system prompt, and our sharing of prefixes switched off.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from defection.activations import Message, Model, Prompt, capture, load_model, load_prompts
from defection.activations.batching import plan_batches
from defection.activations.chat import tokenize
from defection.activations.memory import CPU_BATCH_TOKENS
from torch import Tensor

SYSTEM = (
    "You are an assistant of a small public library. You answer questions of readers of all ages politely, truthfully "
    "and in plain words. If you are not sure of something, say so and name a kind of book in which it could be looked "
    "up. You never speak about other readers, you do not give medical or legal advice, and you keep every answer short "
    "enough to be read at the counter while somebody else is waiting."
)
NEIGHBOUR_ROWS = 16
"""Prompts a batch when a neighbour's user batches them in file order."""


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
def bare_forward(model: Model, ids: Sequence[Sequence[int]], max_tokens: int) -> None:
    """The decoder without vocabulary matrix or cache, in our own batches (prefixes not shared)."""
    for batch in plan_batches(ids, max_tokens=max_tokens, share_prefixes=False):
        tokens, mask, _ = padded(model, [ids[row] for row in batch.rows])
        model.network.get_decoder()(input_ids=tokens, attention_mask=mask, use_cache=False)


def file_order(ids: Sequence[Sequence[int]]) -> list[Sequence[Sequence[int]]]:
    return [ids[start : start + NEIGHBOUR_ROWS] for start in range(0, len(ids), NEIGHBOUR_ROWS)]


@torch.inference_mode()
def hugging_face(model: Model, ids: Sequence[Sequence[int]]) -> Tensor:
    """`output_hidden_states` on the causal LM, padded in file order. Its last layer is after the final norm."""
    parts = []
    for rows in file_order(ids):
        tokens, mask, last = padded(model, rows)
        states = model.network(
            input_ids=tokens, attention_mask=mask, output_hidden_states=True, use_cache=False
        ).hidden_states
        parts.append(torch.stack([state[torch.arange(len(last)), last] for state in states[1:]], dim=1).float().cpu())
    return torch.cat(parts)


def transformer_lens(model: Model) -> Callable[[Sequence[Sequence[int]]], Tensor]:
    """`run_with_cache` with a list of names, the vocabulary matrix left out as far as a bridge can."""
    import copy

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
    def read(ids: Sequence[Sequence[int]]) -> Tensor:
        parts = []
        for rows in file_order(ids):
            tokens, mask, last = padded(model, rows)
            _, cache = bridge.run_with_cache(tokens, attention_mask=mask, names_filter=names, return_type=None)
            parts.append(torch.stack([cache[n][torch.arange(len(last)), last] for n in names], dim=1).float().cpu())
        return torch.cat(parts)

    return read


def seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(
    name: str, ours: Callable[[], object], theirs: Callable[[], object], model: Model, rounds: int
) -> dict[str, Any]:
    """Interleaved rounds after one of each to warm up."""
    ours(), theirs()
    pairs = [(seconds(theirs, model.device), seconds(ours, model.device)) for _ in range(rounds)]
    ratios = [a / b for a, b in pairs]
    return {
        "yardstick": name,
        "speed": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "rounds": rounds,
        "seconds_theirs": statistics.median(a for a, _ in pairs),
        "seconds_ours": statistics.median(b for _, b in pairs),
    }


def refuse_difference(found: Tensor, expected: Tensor, dtype: torch.dtype, what: str) -> float:
    """The median vector's relative distance; a benchmark of something else is worth nothing."""
    error = float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).median())
    if not error <= (1e-4 if dtype == torch.float32 else 0.05):
        raise SystemExit(f"{what} differs from ours by {error:.1e}: nothing is timed")
    return error


def against_bare(model: Model, count: int, rounds: int) -> list[dict[str, Any]]:
    records = []
    for kind in ("alone", "shared"):
        prompts = prompts_of(kind, count)
        ids = tokenize(model.tokenizer, prompts)
        share = kind == "shared"
        error = refuse_difference(
            capture(model, prompts, layers=slice(0, -1), share_prefixes=share).values,
            hugging_face(model, ids)[:, :-1],
            model.dtype,
            "Hugging Face",
        )
        record = compare(
            "bare forward",
            lambda p=prompts, s=share: capture(model, p, share_prefixes=s),
            lambda i=ids: bare_forward(model, i, CPU_BATCH_TOKENS),
            model,
            rounds,
        )
        records.append({"prompts": kind, "tokens": sum(map(len, ids)), "relative_error": error, **record})
    return records


def against_some_layers(model: Model, count: int, rounds: int) -> list[dict[str, Any]]:
    """The bare forward of a model that has no more blocks than are read."""
    prompts = prompts_of("alone", count)
    ids = tokenize(model.tokenizer, prompts)
    decoder = model.network.get_decoder()
    blocks = decoder.layers
    kept = model.n_layers // 2

    def some_blocks() -> None:
        decoder.layers = blocks[:kept]
        try:
            bare_forward(model, ids, CPU_BATCH_TOKENS)
        finally:
            decoder.layers = blocks

    record = compare(
        f"bare forward of {kept} blocks",
        lambda: capture(model, prompts, layers=slice(0, kept), share_prefixes=False),
        some_blocks,
        model,
        rounds,
    )
    return [{"prompts": "alone", "layers": kept, **record}]


def against_neighbours(model: Model, count: int, rounds: int, only: str | None = None) -> list[dict[str, Any]]:
    prompts = prompts_of("shared", count)
    ids = tokenize(model.tokenizer, prompts)
    ours = capture(model, prompts).values
    readers: dict[str, Callable[[Sequence[Sequence[int]]], Tensor]] = {}
    if only in (None, "hugging-face"):
        readers["Hugging Face output_hidden_states"] = lambda rows: hugging_face(model, rows)
    if only in (None, "transformer-lens"):
        readers["TransformerBridge.run_with_cache"] = transformer_lens(model)
    if find_spec("nnsight") is None:
        print("nnsight is not installed: not compared", file=sys.stderr)
    records = []
    for name, read in readers.items():
        error = refuse_difference(ours[:, :-1], read(ids)[:, :-1], model.dtype, name)
        record = compare(name, lambda: capture(model, prompts), lambda r=read: r(ids), model, rounds)
        records.append({"prompts": "shared", "relative_error": error, **record})
    return records


def peak_memory(dtype: str, count: int) -> list[dict[str, Any]]:
    """Peak resident memory of a fresh process that reads, over that of one that runs the bare forward."""
    peaks = {}
    for work in ("nothing", "bare", "ours"):
        command = [sys.executable, __file__, "--peak-of", work, "--dtype", dtype, "--count", str(count)]
        peaks[work] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    return [
        {
            "yardstick": "bare forward, peak resident memory",
            "ratio": peaks["ours"] / peaks["bare"],
            "bytes": {work: peak * 1024 for work, peak in peaks.items()},
        }
    ]


def peak_of(work: str, dtype: str, count: int) -> None:
    model = load_model("smollm2-135m", device="cpu", dtype=dtype)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    prompts = prompts_of("shared", count)
    if work == "bare":
        bare_forward(model, tokenize(model.tokenizer, prompts), CPU_BATCH_TOKENS)
    elif work == "ours":
        capture(model, prompts)
    status = Path("/proc/self/status").read_text()
    peak = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    print(peak[0] if peak else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="bare,layers,neighbours,memory")
    parser.add_argument("--neighbour", choices=["hugging-face", "transformer-lens"])
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--count", type=int, default=64, help="prompts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-of", choices=["nothing", "bare", "ours"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak_of:
        peak_of(options.peak_of, options.dtype, options.count)
        return
    model = load_model("smollm2-135m", dtype=options.dtype)
    work: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "bare": lambda: against_bare(model, options.count, options.rounds),
        "layers": lambda: against_some_layers(model, options.count, options.rounds),
        "neighbours": lambda: against_neighbours(model, options.count, options.rounds, options.neighbour),
        "memory": lambda: peak_memory(options.dtype, options.count),
    }
    shape = {"dtype": options.dtype, "n_prompts": options.count, "device": model.device.type}
    records = [{"row": name, **shape, **record} for name in options.rows.split(",") for record in work[name]()]
    print(json.dumps(records, indent=2))


if __name__ == "__main__":
    main()
