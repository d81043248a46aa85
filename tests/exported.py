"""Hidden states as vLLM writes them, made by Hugging Face."""

from __future__ import annotations

from pathlib import Path

import torch
from defection.activations import Model
from defection.activations.models.blocks import stream_of
from defection.activations.prompts.rendered import rendered
from safetensors.torch import save_file


def exported(model: Model, prompts, folder: Path, numbers, *, more: int = 0, dtype=torch.float32) -> None:
    """What vLLM would write, by Hugging Face's own hidden states: state `s` is what goes into block `s`."""
    for place, row in enumerate(rendered(model, prompts)):
        ids = torch.tensor([*row.ids, *range(5, 5 + more)])
        last = []
        hook = model.blocks[-1].register_forward_hook(lambda module, args, output, last=last: last.append(output))
        with torch.no_grad():
            seen = model.network(ids[None], output_hidden_states=True).hidden_states[:-1]
        hook.remove()
        states = torch.stack([*seen, stream_of(last[0])], dim=2)[0][:, list(numbers)]
        name = folder / f"request-{place}" / "states.safetensors"
        name.parent.mkdir(parents=True, exist_ok=True)
        save_file({"token_ids": ids, "hidden_states": states.to(dtype).contiguous()}, name)
