"""Row 12: `generate` with a monitor on, against `generate` alone, and beside `output_hidden_states=True`.

    python benchmarks/monitoring.py [--only batch-8-128] [--quick]

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


def beside_undercurrent(quick: bool, dtype: str = "bf16") -> Records:
    """One row, with a probe of as many layers that may stop it: undercurrent 0.1 takes one row at a time."""
    from undercurrent.core import Probe as Watcher
    from undercurrent.core import ProbeAction, ProbeResult, ProbeSignal
    from undercurrent.model import ProbedModel

    model = model_to_read(dtype)
    probe, inputs = random_probe(model), inputs_of(model, 1)
    directions = dict(zip(LAYERS, probe.directions.to(model.device, model.network.dtype), strict=True))
    length, rounds = (8, 2) if quick else (128, 5)
    text = model.tokenizer.decode(inputs["input_ids"][0])
    seen: list[int] = []

    class Running(Watcher):
        """The mean over layers and tokens, against a threshold that nothing reaches."""

        probe_kind = "trajectory"

        def on_start(self, request_ctx: Any) -> None:
            self.total, self.count = 0.0, 0

        def on_activation(self, record: Any) -> Any:
            self.total += float(record.tensor @ directions[record.layer])
            self.count += 1
            rings = self.total / self.count > 1e9
            return ProbeSignal(action=ProbeAction.ABORT, confidence=1.0) if rings else None

        def on_end(self, request_ctx: Any) -> Any:
            seen.append(self.count)
            return ProbeResult(request_ctx.request_id, self.extraction_point_name, self.total)

    point = {"name": "reply", "layers": list(LAYERS), "tensor_type": "residual_stream", "position": "generated[*]"}
    point |= {"probe_type": "running", "probe_kind": "trajectory", "execution_mode": "inline"}
    spec = {"version": "1", "extraction_points": [point]}
    probed = ProbedModel(model.network, tokenizer=model.tokenizer, spec=spec, probes={"running": Running})
    more: dict[str, Any] = {"max_new_tokens": length, "min_new_tokens": length}

    def theirs() -> Any:
        return probed.generate(text, temperature=0, **more)

    def ours() -> Any:
        with Monitor(model, probe, alarm=1e9, on_alarm="stop"):
            return model.network.generate(**inputs, **more)

    said = model.tokenizer.decode(ours()[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    if theirs().text != said or seen[0] < (length - 1) * len(LAYERS):
        raise SystemExit("the two say or read different things: nothing is timed")
    about = {"row": 12, "batch": 1, "tokens": length, "dtype": dtype, "device": model.device.type}
    times = interleaved(theirs, ours, rounds=rounds, clock=clock_of(model))
    probed.close()
    name = f"tokens a second under a monitor that may stop rows, 1 × {length}, {dtype}"
    return [{**about, "name": name, "yardstick": "undercurrent 0.1, the same layers of every token said", **times}]


SIZES = ((1, 128), (8, 128), (32, 128), (1, 512), (8, 512), (32, 512))
PARTS = {
    f"batch-{batch}-{length}": lambda quick, batch=batch, length=length: with_monitor(batch, length, quick)
    for batch, length in SIZES
} | {"others": lambda quick: with_monitor(8, 128, quick, others=True), "undercurrent": beside_undercurrent}

if __name__ == "__main__":
    main(PARTS, __doc__)
