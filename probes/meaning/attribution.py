"""Which parts of the model write the score: its direct attribution to the embedding, each head and each MLP.

The residual stream is a sum, so the projection of the residual on a direction is the sum of the projections of what
each part added to it (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"). This is what a part
writes *directly* along the direction; what it does by way of later parts is counted under those.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoTokenizer

from ...activations import DefectionError, Model, PromptsLike
from ...activations.basics.files import Json
from ...activations.basics.progress import progress
from ...activations.models.sites import AFTER, BEFORE
from ...activations.prompts.positions import wanted_tokens
from ...activations.prompts.rendered import rendered
from ..estimators.probe import Probe

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

TOLERANCE = 1e-3
"""Largest error of the sum of all parts, relative to the largest part; fp32 leaves about a hundredth of it."""


@dataclass(frozen=True)
class Part:
    """What adds to the residual stream."""

    name: str
    """`embedding`, `L3.H2`, `L3.bias` (of the attention's output), `L3.mlp`, or `offset`: the probe's own."""
    kind: str
    """`embedding`, `head`, `bias`, `mlp` or `offset`."""
    block: int
    """−1 for what comes before the blocks."""
    head: int | None = None


@dataclass(frozen=True)
class Attribution:
    """A probe's score at one layer of some prompts, part by part."""

    layer: int
    ids: tuple[str, ...]
    parts: tuple[Part, ...]
    values: Float[Tensor, "prompt part"]
    """Standard deviations of clean prompts, as scores are; each row sums to the prompt's score."""

    @property
    def scores(self) -> Float[Tensor, "prompt"]:
        """The sum over parts: what `decision_function` gives for an fp32 model."""
        return self.values.sum(dim=1)

    def table(self) -> list[Json]:
        """A row a prompt and part."""
        return [
            {"prompt": prompt, "layer": self.layer, **asdict(part), "value": float(self.values[row, column])}
            for row, prompt in enumerate(self.ids)
            for column, part in enumerate(self.parts)
        ]

    def separating(self, marks: Sequence[bool]) -> list[Json]:
        """Mean over the marked prompts minus mean over the others, a row a part, largest first.

        The rows sum to the difference of the two mean scores. DefectionError unless both kinds are there.
        """
        difference = self._apart(marks)
        rows = [
            {"layer": self.layer, **asdict(part), "value": float(v)}
            for part, v in zip(self.parts, difference, strict=True)
        ]
        return sorted(rows, key=lambda row: -abs(float(row["value"])))

    def cumulative(self, marks: Sequence[bool]) -> list[Json]:
        """How the difference of the mean scores grows: a row a block (−1: the embedding), up to the probe's layer.

        `attention` and `mlp` are what the block's two halves add, `total` all that is there after the block.
        """
        difference = self._apart(marks)
        rows: list[Json] = []
        total = 0.0
        for block in range(-1, self.layer + 1):
            row = {"layer": self.layer, "block": block, "embedding": 0.0, "attention": 0.0, "mlp": 0.0}
            for part, value in zip(self.parts, difference, strict=True):
                if part.block == block and part.kind != "offset":
                    half = "attention" if part.kind in ("head", "bias") else part.kind
                    row[half] += float(value)
                    total += float(value)
            rows.append(row | {"total": total})
        return rows

    def _apart(self, marks: Sequence[bool]) -> Float[Tensor, "part"]:
        chosen = torch.tensor(list(marks), dtype=torch.bool)
        if len(chosen) != len(self.ids) or chosen.all() or not chosen.any():
            raise DefectionError(f"{len(chosen)} marks for {len(self.ids)} prompts; some must be marked and some not")
        return self.values[chosen].mean(dim=0) - self.values[~chosen].mean(dim=0)


@torch.no_grad()
def attribute(model: Model, probe: Probe, prompts: PromptsLike, *, layer: int | None = None) -> Attribution:
    """Split a probe's score of each prompt into what the embedding, every head and every MLP wrote.

    The stream is that which the probe reads: before, in the middle of or after the block, at its own position.

    `layer` is one of the probe's; by default the middle one of its fixed layers. A copy of the model runs in fp32, one
    prompt at a time, through TransformerLens's bridge, which would otherwise change the model it is given. A norm
    between a block's half and the stream (Gemma) is taken at the scale it has on that prompt.
    Raises DefectionError for another model's probe, a family the bridge does not know, and when the parts do not add
    up to the residual.
    """
    probe.refuse_model(model.identity)
    chosen = probe.fixed_layers[len(probe.fixed_layers) // 2] if layer is None else layer
    (column,) = probe.columns([chosen])
    scale, offset = float(probe.scales[column]), float(probe.offsets[column])
    given = rendered(model, prompts)
    wanted = wanted_tokens(probe.position, given)
    reader = _Reader(model, chosen, probe.site, probe.directions[column].float().to(model.device))
    rows = []
    with progress("Attributing scores", total=len(given), unit="prompts") as advance:
        for row, tokens in zip(given, wanted, strict=True):
            rows.append(reader.projections(row.ids, tokens, row.prompt.id))
            advance(1)
    values = torch.cat([torch.stack(rows), torch.full((len(rows), 1), -offset)], dim=1) / scale
    parts = (*reader.parts, Part("offset", "offset", -1))
    return Attribution(chosen, tuple(row.prompt.id for row in given), parts, values)


class _Reader:
    """A bridged copy of a model, and where in it the parts of one layer's residual are found."""

    def __init__(self, model: Model, layer: int, site: str, direction: Float[Tensor, "d_model"]) -> None:
        self.bridge, self.layer, self.site, self.direction = bridged(model), layer, site, direction
        self.attending = range(layer + (site != BEFORE))
        self.post = [f"blocks.{block}.ln1_post.hook_out" in self.bridge.hook_dict for block in range(layer + 1)]
        wanted = ["blocks.0.hook_in", f"blocks.{layer}.hook_in", f"blocks.{layer}.hook_out"]
        for block in range(layer + 1):
            wanted += [f"blocks.{block}.{name}" for name in ("attn.hook_z", "attn.hook_out")]
            wanted += [f"blocks.{block}.ln1_post.hook_out"] if self.post[block] else []
            wanted.append(f"blocks.{block}.{self._mlp_name(block)}")
        if missing := sorted(set(wanted) - set(self.bridge.hook_dict)):
            raise DefectionError(
                f"{model.identity.name} has no {missing[0]!r}: its heads and MLPs cannot be told apart"
            )
        self.wanted = tuple(dict.fromkeys(wanted))
        self.parts: tuple[Part, ...] = (Part("embedding", "embedding", -1),)
        for block in self.attending:
            heads = self.bridge.blocks[block].attn.W_O.shape[0]
            self.parts += tuple(Part(f"L{block}.H{head}", "head", block, head) for head in range(heads))
            self.parts += (Part(f"L{block}.bias", "bias", block),)
            self.parts += (Part(f"L{block}.mlp", "mlp", block),) if self._adds_mlp(block) else ()

    def _mlp_name(self, block: int) -> str:
        post = "ln2_post.hook_out"
        return post if f"blocks.{block}.{post}" in self.bridge.hook_dict else "mlp.hook_out"

    def _adds_mlp(self, block: int) -> bool:
        """Whether the block's MLP has written before the stream is read."""
        return block < self.layer or self.site == AFTER

    def projections(self, ids: Sequence[int], tokens: Sequence[int], prompt: str) -> Float[Tensor, "part"]:
        """What each part puts along the direction, on average over those tokens of a prompt."""
        seen = self._seen(torch.tensor([list(ids[: tokens[-1] + 1])], device=self.direction.device), tokens)
        each = [self._written({name: values[i] for name, values in seen.items()}, prompt) for i in range(len(tokens))]
        return torch.stack(each).mean(dim=0)

    def _written(self, seen: dict[str, Tensor], prompt: str) -> Float[Tensor, "part"]:
        """The same at one token."""
        found = [(seen["blocks.0.hook_in"] @ self.direction)[None]]
        for block in self.attending:
            found.append(self._attention(seen, block))
            if self._adds_mlp(block):
                found.append((seen[f"blocks.{block}.{self._mlp_name(block)}"] @ self.direction)[None])
        written = torch.cat(found)
        whole = self._stream(seen) @ self.direction
        error = float((written.sum() - whole).abs() / written.abs().max().clamp_min(1e-30))
        if error > TOLERANCE:
            raise DefectionError(
                f"the parts of prompt {prompt!r} do not add up to its residual at layer {self.layer} (off by "
                f"{error:.1%} of the largest): this family writes to its residual stream in some other way"
            )
        return written.cpu()

    def _stream(self, seen: dict[str, Tensor]) -> Float[Tensor, "d_model"]:
        """The stream that the probe reads; in the middle, what comes out of the block without its MLP's part."""
        if self.site == BEFORE:
            return seen[f"blocks.{self.layer}.hook_in"]
        out = seen[f"blocks.{self.layer}.hook_out"]
        return out if self.site == AFTER else out - seen[f"blocks.{self.layer}.{self._mlp_name(self.layer)}"]

    def _seen(self, ids: Int[Tensor, "1 token"], tokens: Sequence[int]) -> dict[str, Tensor]:
        """What passes each hook at those tokens; no block after the last one wanted runs."""
        from transformer_lens.model_bridge.exceptions import StopAtLayerException

        seen: dict[str, Tensor] = {}

        def keeping(name: str) -> Callable[..., None]:
            def keep(values: Tensor, hook: object) -> None:
                seen[name] = values[0, list(tokens)].float()
                if name == f"blocks.{self.layer}.hook_out":
                    raise StopAtLayerException(values)

            return keep

        self.bridge.run_with_hooks(ids, fwd_hooks=[(name, keeping(name)) for name in self.wanted])
        return seen

    def _attention(self, seen: dict[str, Tensor], block: int) -> Float[Tensor, "head+1"]:
        """Each head, and what their sum lacks to the attention's output: the output matrix's bias."""
        raw = seen[f"blocks.{block}.attn.hook_out"]
        direction = self.direction
        if self.post[block]:
            direction = direction * self._gain(block, raw, seen[f"blocks.{block}.ln1_post.hook_out"])
        z = seen[f"blocks.{block}.attn.hook_z"]
        outputs: Tensor = self.bridge.blocks[block].attn.W_O.float()  # [head, d_head, d_model]
        heads = torch.einsum("hd,hdm,m->h", z.view(outputs.shape[:2]), outputs, direction)
        return torch.cat([heads, (raw @ direction - heads.sum())[None]])

    def _gain(self, block: int, before: Tensor, after: Tensor) -> Float[Tensor, "d_model"]:
        """What a norm between attention and stream multiplies each dimension by, at the scale it has on this prompt."""
        alternating = torch.ones_like(before)
        alternating[1::2] = -1
        weight = self.bridge.blocks[block].ln1_post(alternating[None, None])[0, 0] * alternating
        gained = weight * before
        factors: Tensor = weight * (gained @ after) / gained.square().sum().clamp_min(1e-30)
        return factors


def bridged(model: Model) -> TransformerBridge:
    """A copy of the model in fp32 behind TransformerLens's `TransformerBridge`; the model itself is left alone.

    No weights are folded or centred. Give it token ids, never strings.
    Raises DefectionError when TransformerLens is missing or does not know the family.
    """
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError as error:
        raise DefectionError(
            "attribution needs TransformerLens: install it with `pip install 'defection-probes[lens]'`"
        ) from error
    network = copy.deepcopy(model.network).float().eval()
    network.config.architectures = [type(network).__name__]  # which the bridge knows a family by
    with TemporaryDirectory() as folder:
        model.tokenizer.save_pretrained(folder)  # the bridge loads a tokenizer again, from wherever it came
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        try:
            return TransformerBridge.boot_transformers(
                model.identity.name,
                hf_model=network,
                tokenizer=tokenizer,
                device=str(model.device),
                dtype=torch.float32,
            )
        except (ValueError, KeyError, AttributeError, NotImplementedError) as error:
            raise DefectionError(
                f"TransformerLens cannot bridge {type(model.network).__name__}: {' '.join(str(error).split())[:200]}"
            ) from error
