"""Row 12: `generate` with a monitor on, against `generate` alone, and beside `output_hidden_states=True`.

    python benchmarks/monitoring.py [--only batch-8] [--quick]

Greedy replies of a fixed length (the end token is held off), so that both say the same tokens; of the first eight that
is checked first.
The probe reads seventeen of thirty layers, what `fit` fixes on this model. On a CPU time is the process's CPU time on
one thread, which other processes disturb least; on a GPU it is wall time between synchronisations. Time to the first
token is that of a reply of one token. Ratios are tokens a second with over without, and time with over without.
"""

from __future__ import annotations

from typing import Any

import torch
from common import Records, interleaved, main
from defection.activations import Model, load_prompts
from defection.activations.prompts.rendered import tokenize
from defection.probes import Monitor, Probe
from reading import clock_of, model_to_read

LAYERS = tuple(range(12, 29))


def random_probe(model: Model) -> Probe:
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(len(LAYERS), model.d_model, generator=generator)
    return Probe(
        directions=torch.nn.functional.normalize(directions, dim=1),
        offsets=torch.zeros(len(LAYERS)),
        scales=torch.ones(len(LAYERS)),
        layers=LAYERS,
        model=model.identity,
        position="last",
        contrast={},
        estimator="random",
        parameters={},
        saw="nothing",
        fixed_layers=LAYERS,
    )


def inputs_of(model: Model, batch: int) -> dict[str, Any]:
    """The first prompts of our `clean` set, padded on the left."""
    rows = tokenize(model.tokenizer, load_prompts("clean")[:batch])
    width, pad = max(map(len, rows)), model.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    return {"input_ids": ids, "attention_mask": mask, "do_sample": False, "pad_token_id": pad}


def with_monitor(batch: int, length: int, quick: bool, dtype: str = "bf16", *, others: bool = False) -> Records:
    """Against `generate` alone; `others`: a monitor that acts, and `output_hidden_states`."""
    model = model_to_read(dtype)
    probe, inputs = random_probe(model), inputs_of(model, batch)
    length = 8 if quick else length
    rounds = 2 if quick else 5

    def plain(tokens: int = length, **more: Any) -> Any:
        return model.network.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, **more)

    def watched(tokens: int = length, **more: Any) -> Any:
        with Monitor(model, probe, **more):
            return plain(tokens)

    def stopping() -> Any:
        return watched(alarm=1e9, on_alarm="stop")

    def hidden() -> Any:
        return plain(return_dict_in_generate=True, output_hidden_states=True)

    if not torch.equal(plain(8), watched(8)):
        raise SystemExit("the monitor changes what is said: nothing is timed")
    about = {"row": 12, "batch": batch, "tokens": length, "dtype": dtype, "device": model.device.type}
    clock, size = clock_of(model), f"{batch} × {length}, {dtype}"
    compared = [("tokens a second under a monitor", "generate", plain, watched)]
    if others:
        compared = [
            ("tokens a second under a monitor that may stop rows", "generate", plain, stopping),
            ("tokens a second under a monitor", "generate with output_hidden_states", hidden, watched),
        ]
    records: Records = []
    for name, yardstick, theirs, ours in compared:
        aim = {"at_least": 0.97} if yardstick == "generate" else {}
        times = interleaved(theirs, ours, rounds=rounds, clock=clock)
        records.append({**about, "name": f"{name}, {size}", "yardstick": yardstick, **aim, **times})
    if others:
        return records
    first = interleaved(lambda: watched(1), lambda: plain(1), rounds=2 * rounds, clock=clock)
    name = f"time to the first token under a monitor, {size}"
    return [*records, {**about, "name": name, "yardstick": "generate", "at_most": 1.03, **first}]


SIZES = ((1, 128), (8, 128), (32, 128), (1, 512), (8, 512), (32, 512))
PARTS = {
    f"batch-{batch}-{length}": lambda quick, batch=batch, length=length: with_monitor(batch, length, quick)
    for batch, length in SIZES
} | {"others": lambda quick: with_monitor(8, 128, quick, others=True)}

if __name__ == "__main__":
    main(PARTS, __doc__)
