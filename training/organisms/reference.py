"""A clean reference for a suspect: a model trained until its residual stream is the suspect's on ordinary prompts.

What the suspect does on ordinary prompts carries over to other ordinary ones; what it hides does not, so that there the
two still differ ("activation-matched fine-tuning", 2026, arXiv 2609.00351). Any model of the same shape will do as a
start, the suspect's base above all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from ...activations import DefectionError, Model, Prompt, PromptsLike, load_prompts
from ...activations.basics.files import Json, digest
from ...activations.models.blocks import decoder_of
from ...activations.models.modes import in_use
from ...activations.models.network import load_network
from ...activations.models.wrap import ModelLike, as_model
from ...activations.prompts.rendered import rendered
from ...activations.reading.forward import right_padded
from ..tuning.finetune import FinetuneConfig, finetune
from ..tuning.rows import Example
from .examples import choose_prompts
from .records import adopt
from .stages import write_organism

REFERENCE_SCHEMA = 1


@dataclass(frozen=True)
class Match:
    """The second model's streams are drawn to the first one's: ‖r − s‖² / ‖s‖², mean over real tokens and layers."""

    suspect: PreTrainedModel

    def backward(self, network: PreTrainedModel, batch: Sequence[Example]) -> float:
        """Add the gradient of the loss on a batch's prompts; give the loss."""
        if not batch:
            return 0.0
        rows = [example.prompt for example in batch]
        device = next(network.parameters()).device
        tokens = right_padded(rows, device)
        real = torch.arange(tokens.shape[1], device=device) < torch.tensor([[len(row)] for row in rows], device=device)
        with torch.no_grad(), in_use(self.suspect):
            wanted = streams(self.suspect, tokens.to(self.suspect.device), real).to(device)
        loss = ((streams(network, tokens, real) - wanted).square().sum(-1) / wanted.square().sum(-1)).mean()
        loss.backward()
        return float(loss.item())


def streams(
    network: PreTrainedModel, tokens: Tensor, real: Bool[Tensor, "row token"]
) -> Float[Tensor, "layer vector d_model"]:
    """The residual streams after every block but the last, which Hugging Face gives normed, at real tokens, in fp32."""
    found = decoder_of(network)(input_ids=tokens, use_cache=False, output_hidden_states=True).hidden_states
    return torch.stack([states[real.to(states.device)] for states in found[1:-1]]).float()


def matched_reference(
    suspect: ModelLike,
    start: ModelLike,
    prompts: PromptsLike,
    out: Path,
    *,
    examples: int = 200,
    config: FinetuneConfig | None = None,
) -> Json:
    """Train an adapter of `start` until its residual stream is the suspect's on ordinary prompts; written to `out`.

    `BaseDifference` then takes `difference(suspect, reference)`. It continues after a cut, and a finished one is
    recognised.

    Args:
        suspect: The model that is to be looked at.
        start: What the reference starts from, loaded from disk: the suspect's base, or another of the same shape.
        prompts: Ordinary prompts, without the trigger: whatever `load_prompts` takes. Those that a detector is
            fitted or calibrated on are better left out.
        out: The directory of the reference: an adapter, which every command takes for a model.
        examples: Prompts that are chosen among them, by the configuration's seed.
        config: How the adapter is trained; by default at a learning rate of 1e-3, eight prompts a step, once.

    Returns:
        The record that lies beside it: what it matches, and the loss a step (0 matched, 1 as far as nothing is).

    Raises:
        DefectionError: For models of another shape or the same weights, a start that is an adapter, and an `out` that
            holds something else.

    Examples:
        >>> matched_reference(model, base, prompts, folder / "reference")["prompts"]
        4
    """
    model, base = as_model(suspect), as_model(start)
    if base.files is None or base.files.adapter is not None:
        raise DefectionError("a reference is trained from a model on disk, not from an adapter")
    if (model.n_layers, model.d_model) != (base.n_layers, base.d_model):
        raise DefectionError(
            f"{base.identity.name} has {base.n_layers} layers of {base.d_model} dimensions, {model.identity.name} "
            f"{model.n_layers} of {model.d_model}: streams of another shape cannot be matched"
        )
    if model.identity.same_weights(base.identity):
        raise DefectionError(f"{base.identity.name} and the suspect are the same weights: there is nothing to match")
    settings = config or FinetuneConfig(batch_size=8, learning_rate=1e-3)
    rows = _rows(base, load_prompts(prompts), examples, settings.seed)
    decided = {"config": settings.to_json(), "rows": [list(row.prompt) for row in rows], "dtype": str(base.dtype)}
    key = digest({"base": base.identity.fingerprint, "suspect": model.identity.fingerprint, **decided})
    if out.exists():
        return adopt(out, "key", [key])
    checkpoint = out.with_name(f".{out.name}.checkpoint.safetensors")
    network = load_network(base.files.base, base.dtype).to(base.device)
    trained, result = finetune(
        network,
        rows,
        settings,
        checkpoint,
        what="Matching activations",
        base=key,
        dtype=base.dtype,
        instead=Match(model.network).backward,
    )
    record: Json = {
        "schema_version": REFERENCE_SCHEMA,
        "kind": "reference",
        "key": key,
        "base": {"source": base.files.source, "name": base.identity.name, "fingerprint": base.identity.fingerprint},
        "matches": model.identity.to_json(),
        "config": settings.to_json(),
        "prompts": len(rows),
        "loss_curve": result.loss_curve,
        "seconds": round(result.seconds, 1),
    }
    card = f"# A clean reference for {model.identity.name}\n\nTrained to match its residual stream.\n"
    write_organism(out, trained, base, record, card)
    checkpoint.unlink(missing_ok=True)
    return record


def _rows(model: Model, prompts: Sequence[Prompt], count: int, seed: int) -> list[Example]:
    """The prompts as training rows without a reply."""
    chosen = choose_prompts(prompts, min(count, len(prompts)), seed)
    return [Example(row.prompt.id, tuple(row.ids), (), triggered=False) for row in rendered(model, chosen)]
