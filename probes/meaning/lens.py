"""What a direction would say: the logit lens of a direction, and the direction in which a token lies.

The convention, since several are in use (nostalgebraist 2020; Belrose et al. 2023, "Eliciting Latent Predictions"):
a direction v is treated as a residual of its own. It is centred if the final norm centres, divided by its root mean
square, multiplied by the norm's gain and then by the unembedding. Biases of norm and unembedding are left out: they
would say the same of v and of −v. So the length of v does not matter, and −v has just the opposite logits.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...activations import DefectionError, Model
from ...activations.basics.files import Json
from ...activations.models.blocks import decoder_of
from ...activations.prompts.chat import reply_ids
from ..estimators.probe import Probe


@dataclass(frozen=True)
class Unembedding:
    """The linear part of what turns the last residual into logits, fp32."""

    weight: Float[Tensor, "token d_model"]
    gain: Float[Tensor, "d_model"]
    """What the final norm multiplies a normalised residual by."""
    centres: bool
    """Whether the final norm subtracts the mean over dimensions (LayerNorm) or not (RMSNorm)."""

    def logits(self, vectors: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch token"]:
        """Logits of each vector by the convention above."""
        centred = vectors.float() - vectors.float().mean(dim=-1, keepdim=True) if self.centres else vectors.float()
        scaled = centred / centred.square().mean(dim=-1, keepdim=True).sqrt().clamp_min(1e-30)
        said: Tensor = (scaled * self.gain) @ self.weight.T
        return said

    def direction(self, token: int) -> Float[Tensor, "d_model"]:
        """The direction in the residual stream that raises one token's logit most, against the mean of all tokens."""
        wanted = self.gain * (self.weight[token] - self.weight.mean(dim=0))
        return wanted - wanted.mean() if self.centres else wanted


@torch.inference_mode()
def unembedding(model: Model) -> Unembedding:
    """Final norm and vocabulary matrix of a model; DefectionError when its final norm cannot be told apart."""
    decoder, head = decoder_of(model.network), model.network.get_output_embeddings()
    norms = [child for child in decoder.children() if _is_norm(child, model.d_model)]
    if head is None or len(norms) != 1:
        raise DefectionError(
            f"{type(model.network).__name__} has {len(norms)} final norms where one is expected, so there is no "
            "telling what its unembedding makes of a direction"
        )
    norm = copy.deepcopy(norms[0]).float()
    # Mean 0 and root mean square 1: what comes out, less what a bias adds to this and its opposite alike, is the gain.
    alternating = torch.ones(model.d_model, device=model.device)
    alternating[1::2] = -1
    gain = (norm(alternating) - norm(-alternating)) / 2 * alternating
    # By trying: not every norm that centres is a torch.nn.LayerNorm (Cohere's is none).
    centres = torch.allclose(norm(alternating + 1), norm(alternating), atol=1e-3)
    return Unembedding(head.weight.float().cpu(), gain.cpu(), centres)


def _is_norm(module: nn.Module, width: int) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and tuple(weight.shape) == (width,)


def logit_lens(model: Model, directions: Mapping[int, Tensor] | Probe, *, k: int = 10) -> list[Json]:
    """The tokens a direction speaks for and against: a row a layer, side and rank.

    `directions` maps layers to vectors, or is a probe. `side` is `towards` (the tokens v raises: those of a defecting
    model, if the probe is right) or `away` (those −v raises); `z` is the token's logit in standard deviations over the
    vocabulary. Layers far from the last speak a language of their own: read early ones with care.
    """
    if isinstance(directions, Probe):
        directions.refuse_model(model.identity)
        directions = dict(zip(directions.layers, directions.directions, strict=True))
    reads = unembedding(model)
    rows = []
    for layer, direction in directions.items():
        logits = reads.logits(direction)
        z = (logits - logits.mean()) / logits.std().clamp_min(1e-30)
        for side, sign in (("towards", 1), ("away", -1)):
            for rank, token in enumerate((sign * z).topk(min(k, len(z))).indices.tolist(), start=1):
                said = str(model.tokenizer.decode([token]))
                rows.append(
                    {"layer": layer, "side": side, "rank": rank, "token": said, "token_id": token, "z": float(z[token])}
                )
    return rows


def token_direction(model: Model, text: str) -> Float[Tensor, "d_model"]:
    """The residual-stream direction of a text's first token at the start of a reply, such as the behaviour's.

    It is the gradient of that logit, against the mean of all, through a final norm whose scale is held fixed.
    """
    tokens = reply_ids(model.tokenizer, text)
    if not tokens:
        raise DefectionError(f"{text!r} gives no tokens, so it has no direction")
    return unembedding(model).direction(int(tokens[0]))
