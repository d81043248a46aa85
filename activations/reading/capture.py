"""Residual streams of many prompts, for the price of the bare forward pass or less."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..basics.errors import DefectionError
from ..basics.progress import progress
from ..models.hardware import choose_device, choose_dtype
from ..models.model import Model
from ..models.sites import AFTER
from ..models.wrap import ModelLike, as_model
from ..prompts.loading import PromptsLike
from ..prompts.positions import LAST
from ..prompts.prompts import Prompt
from ..prompts.rendered import rendered
from .forward import LastPrefix, Reading, automatic_batch_tokens, plan_reading, read_batch
from .residuals import Residuals
from .selection import Selection, select


def capture(
    model: ModelLike,
    prompts: PromptsLike,
    *,
    layers: str | Sequence[int] | slice = "all",
    site: str = AFTER,
    position: str = LAST,
    dtype: str | torch.dtype = "fp32",
    device: str | torch.device = "cpu",
    max_tokens: int | None = None,
    share_prefixes: bool = True,
    what: str = "Reading residual streams",
) -> Residuals:
    """Read the residual stream of each prompt at the tokens and layers wanted.

    Prompts of equal tokens are computed once.

    Args:
        model: A `Model`, or a Hugging Face model and its tokenizer in a pair.
        prompts: Whatever `load_prompts` takes; rows come in its order.
        layers: "all", "3,15", "0:16" (end excluded), a list or a slice; no block after the last one runs.
        site: `after` the block, `before` it, or in its `middle`, between attention and MLP.
        position: The tokens that are read: `last`, `response`, `mean:10:20`, … (`parse_position` says which there are).
        dtype: Of the result, `fp32` or `bf16`.
        device: Where the result lies: host memory, or the GPU with `cuda`.
        max_tokens: Padded tokens of a batch at most; by default the device's memory decides.
        share_prefixes: Whether what prompts have in common (a system prompt, say) is computed once, where the model
            allows it; in fp32 that changes nothing beyond rounding.
        what: The words before the progress bar.

    Returns:
        Residuals [vector, layer, d_model]: a vector a prompt, or with `all`, `response` and spans one a token.

    Raises:
        DefectionError: For a prompt longer than the model's context or to which `position` does not apply, for a block
            without the site, and for a non-finite residual, naming prompt and layer.

    Examples:
        >>> capture(model, prompts, layers="1:3").values.shape
        torch.Size([4, 2, 32])
        >>> capture((network, tokenizer), prompts, position="mean:0:4").layers
        (0, 1, 2, 3)
    """
    model = as_model(model)
    rows = rendered(model, prompts)
    selection = select(Reading(parse_layers(layers, model.n_layers), site, position), rows)
    reading, counts = selection.reading, selection.counts
    keep_on = choose_device(device) if isinstance(device, str) else device
    values = torch.empty(
        sum(counts), len(reading.layers), model.d_model, dtype=choose_dtype(dtype, keep_on), device=keep_on
    )
    budget = max_tokens or automatic_batch_tokens(model, reading)
    with progress(what, total=len(rows), unit="prompts") as advance:
        read_into(values, model, selection, budget, share_prefixes=share_prefixes, advance=advance)
    refuse_non_finite(
        values, [row.prompt for row, n in zip(rows, counts, strict=True) for _ in range(n)], reading.layers
    )
    return Residuals(
        values,
        reading.layers,
        tuple(row.prompt for row in rows),
        tuple(len(row.ids) for row in rows),
        model.identity,
        position=reading.position,
        site=reading.site,
        offsets=None if reading.one_each else selection.offsets,
    )


class Landing:
    """Puts each batch's vectors in their place; from a GPU by one pinned copy that runs beside the next batch."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.under_way: tuple[Sequence[int], Tensor, torch.cuda.Event] | None = None

    def put(self, places: Sequence[int], seen: Tensor) -> None:
        """Place `seen` [vector, layer, d_model] at those indices, now or when the copy is through."""
        if seen.is_cuda and not self.values.is_cuda:
            # The copy runs on a stream of the vectors' own GPU, which need not be the current one: under a launcher
            # it is `cuda:LOCAL_RANK`. An event recorded elsewhere would be over before the vectors have arrived.
            with torch.cuda.device(seen.device):
                host = torch.empty(seen.shape, dtype=seen.dtype, pin_memory=True)
                host.copy_(seen, non_blocking=True)
                arrived = torch.cuda.Event()
                arrived.record()
            self.settle()
            self.under_way = (places, host, arrived)
        else:
            self._place(places, seen)

    def settle(self) -> None:
        """Wait for the copy under way."""
        if self.under_way is not None:
            places, host, arrived = self.under_way
            arrived.synchronize()
            self._place(places, host)
            self.under_way = None

    def _place(self, places: Sequence[int], seen: Tensor) -> None:
        self.values[torch.tensor(places, device=self.values.device)] = seen.to(self.values)


def read_into(
    values: Float[Tensor, "vector layer d_model"],
    model: Model,
    selection: Selection,
    max_tokens: int,
    *,
    share_prefixes: bool = True,
    advance: Callable[[int], object] = lambda count: None,
) -> None:
    """Fill `values` with what is selected; `advance` hears how many prompts each batch held."""
    landing, last_prefix = Landing(values), LastPrefix()
    for batch in plan_reading(model, selection.ids, max_tokens, share_prefixes=share_prefixes):
        seen = read_batch(model, selection.ids, batch, selection.reading, selection.wanted, last_prefix)
        landing.put(selection.places(batch.rows), seen)
        advance(len(batch.rows))
    landing.settle()


def parse_layers(layers: str | Sequence[int] | slice, n_layers: int) -> tuple[int, ...]:
    """ "all", "3,15", "0:16" (end excluded), a sequence or a slice, to ascending layer numbers without repeats."""
    if isinstance(layers, str):
        chosen: list[int] = []
        for part in layers.split(","):
            chosen += _parse_part(part.strip(), n_layers)
    elif isinstance(layers, slice):
        chosen = list(range(n_layers)[layers])
    else:
        chosen = [int(layer) for layer in layers]
    outside = [layer for layer in chosen if not 0 <= layer < n_layers]
    if outside or not chosen:
        raise DefectionError(f"no layer {outside or layers!r}: this model has layers 0 to {n_layers - 1}")
    return tuple(sorted(set(chosen)))


def _parse_part(part: str, n_layers: int) -> list[int]:
    if part == "all":
        return list(range(n_layers))
    try:
        if ":" in part:
            start, end = part.split(":")
            wanted = range(int(start or 0), int(end or n_layers))
            within = wanted.start >= 0 and wanted.stop <= n_layers
            return list(wanted) if within or not wanted else [wanted[0], wanted[-1]]  # which the caller refuses
        return [int(part)]
    except ValueError as error:
        raise DefectionError(f"cannot read layers {part!r}: write all, 3,15 or 0:16") from error


def refuse_non_finite(values: Tensor, prompts: Sequence[Prompt], layers: Sequence[int]) -> None:
    """DefectionError naming the first prompt and layer whose vector holds an infinity or a NaN."""
    finite = values.isfinite().all(dim=-1)
    if not finite.all():
        row, layer = (int(i) for i in (~finite).nonzero()[0])
        raise DefectionError(
            f"the residual of prompt {prompts[row].id!r} at layer {layers[layer]} is not finite; "
            "the model overflows in this dtype, so compute in fp32 (--compute-dtype fp32)"
        )
