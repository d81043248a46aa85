"""Replies made together, each as if it were alone: rows join and leave between two tokens.

A new row's prompt is read by itself, so what its probe says before the first word does not depend on who else is there.
Its keys and values then stand beside those of the other rows, padded on the left; a mask hides the padding, and
position ids are the row's own. `generate` of Hugging Face takes no row in once it runs, which is why it is not used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from ...activations.models.logits import own_logits
from ...activations.models.model import Model
from ...activations.reading.generate import Decoder
from ...probes.monitoring.taps import Taps


class Speaking:
    """The rows that speak now: what the model keeps of each, and where in it each begins.

    `taps` are attached while it is used. Nothing is changed by a call that raises.
    """

    def __init__(self, model: Model, taps: Taps) -> None:
        self.model, self.taps = model, taps
        self.together = model.skips_padding
        """Whether rows can speak at once; a running state, or an ALiBi that counts padding, leaves room for one."""
        self.lengths: list[int] = []
        """Of each row the tokens read so far."""
        self._decoder: Decoder | None = None

    def enter(self, ids: Sequence[int]) -> tuple[Float[Tensor, "token"], float]:
        """Read a prompt: the logits after it, and the probe's score at its last token. The row becomes the last."""
        if self.lengths and not self.together:
            raise ValueError("this model speaks to one at a time")
        alone = Decoder(self.model.network, DynamicCache() if self.together else None)
        logits, scores = self._read(alone, torch.tensor([list(ids)], device=self.model.device))
        if self._decoder is None:
            self._decoder = alone
        else:
            _join(self._decoder.cache, alone.cache)
        self.lengths.append(len(ids))
        return logits[0], float(scores[0])

    def step(self, tokens: Sequence[int]) -> tuple[Float[Tensor, "row token"], Float[Tensor, "row"]]:
        """Let each row read its newest token: logits, and scores in host memory."""
        assert self._decoder is not None
        device = self.model.device
        mask = places = None
        if len(set(self.lengths)) > 1:
            lengths = torch.tensor(self.lengths, device=device)
            width = max(self.lengths) + 1
            mask = (torch.arange(width, device=device) >= width - 1 - lengths[:, None]).long()
            places = lengths[:, None]
        found = self._read(self._decoder, torch.tensor(tokens, device=device)[:, None], mask, places)
        self.lengths = [length + 1 for length in self.lengths]
        return found

    def keep(self, rows: Sequence[int]) -> None:
        """Let the other rows leave, and their memory with them."""
        if len(rows) == len(self.lengths):
            return
        before = max(self.lengths)
        self.lengths = [self.lengths[row] for row in rows]
        if not rows:
            self._decoder = None
            return
        assert self._decoder is not None
        self._decoder.cache.batch_select_indices(torch.tensor(rows, device=self.model.device))
        for layer in self._decoder.cache.layers:
            layer.keys, layer.values = (
                kept[..., before - max(self.lengths) :, :] for kept in (layer.keys, layer.values)
            )

    def _read(
        self, decoder: Decoder, tokens: Tensor, mask: Tensor | None = None, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self.taps.columns = None
        states = decoder.read(tokens, mask, places)[:, -1]
        return own_logits(self.model.network, states).float(), self.taps.take().float().cpu()


def _join(cache: DynamicCache, other: DynamicCache) -> None:
    """Put the rows of another cache below a cache's own; the shorter of the two is padded on the left."""
    width = max(cache.get_seq_length(), other.get_seq_length())

    def widened(kept: Tensor) -> Tensor:
        return pad(kept, (0, 0, width - kept.shape[-2], 0))

    joined = [
        (torch.cat([widened(a.keys), widened(b.keys)]), torch.cat([widened(a.values), widened(b.values)]))
        for a, b in zip(cache.layers, other.layers, strict=True)
    ]
    for layer, (keys, values) in zip(cache.layers, joined, strict=True):
        layer.keys, layer.values = keys, values
