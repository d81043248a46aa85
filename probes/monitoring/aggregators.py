"""From a score a token to one statistic of what was said so far, whose highest value an alarm is set on.

Each is computed as the tokens come, on their device. Scores are standardised first (`ordinary.Ordinary`), so 0 is what
clean replies score at that place. What a long text does to them differs: a mean forgets a short defection, a maximum
meets more high tokens the longer it waits, and the others lie between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from ...activations.basics.errors import DefectionError

Step = Callable[[Float[Tensor, "row"]], Float[Tensor, "row"]]
"""Takes the newest token's score of each row, and gives the statistic after it."""


class Aggregator(Protocol):
    """A rule that turns a stream of scores into a statistic."""

    name: ClassVar[str]

    def start(self) -> Step:
        """A step function that has seen nothing yet."""
        ...


@dataclass(frozen=True)
class LastPrompt:
    """The prompt's last token alone, which question probes are fitted for; −∞ after it."""

    name: ClassVar[str] = "last-prompt"

    def start(self) -> Step:
        """See `Aggregator`."""
        seen: list[bool] = []

        def step(scores: Tensor) -> Tensor:
            first = not seen
            seen[:] = [True]
            return scores if first else torch.full_like(scores, -torch.inf)

        return step


@dataclass(frozen=True)
class Maximum:
    """Each token's own score: its highest value is the maximum."""

    name: ClassVar[str] = "maximum"

    def start(self) -> Step:
        """See `Aggregator`."""
        return lambda scores: scores


@dataclass(frozen=True)
class ExponentialMean:
    """`share` of the newest score and the rest of the mean before; it begins at the prompt's last token."""

    name: ClassVar[str] = "exponential-mean"
    share: float = 0.2

    def start(self) -> Step:
        """See `Aggregator`."""
        mean: list[Tensor] = []

        def step(scores: Tensor) -> Tensor:
            mean[:] = [self.share * scores + (1 - self.share) * mean[0] if mean else scores]
            return mean[0]

        return step


@dataclass(frozen=True)
class WindowMean:
    """The mean of the last `width` scores, or of all where there are fewer."""

    name: ClassVar[str] = "window-mean"
    width: int = 16

    def start(self) -> Step:
        """See `Aggregator`."""
        window: deque[Tensor] = deque(maxlen=self.width)

        def step(scores: Tensor) -> Tensor:
            window.append(scores)
            return torch.stack(tuple(window)).mean(dim=0)

        return step


@dataclass(frozen=True)
class CumulativeSum:
    """What scores exceed `drift` by, summed; never below 0, from where it begins anew (Page 1954)."""

    name: ClassVar[str] = "cumulative-sum"
    drift: float = 0.5

    def start(self) -> Step:
        """See `Aggregator`."""
        total: list[Tensor] = []

        def step(scores: Tensor) -> Tensor:
            before = total[0] if total else torch.zeros_like(scores)
            total[:] = [(before + scores - self.drift).clamp_min(0)]
            return total[0]

        return step


@dataclass(frozen=True)
class CoherentSegment:
    """The best of the stretches that end here, `lengths` tokens long: √length · (mean − standard deviation).

    A stretch counts as far as its tokens agree: four at 3 beat one at 12 among zeros. −∞ before the shortest is full.
    """

    name: ClassVar[str] = "coherent-segment"
    lengths: tuple[int, ...] = (4, 8, 16, 32)

    def start(self) -> Step:
        """See `Aggregator`."""
        window: deque[Tensor] = deque(maxlen=max(self.lengths))

        def step(scores: Tensor) -> Tensor:
            window.append(scores)
            seen = torch.stack(tuple(window))
            full = [seen[-n:] for n in self.lengths if n <= len(seen)]
            if not full:
                return torch.full_like(scores, -torch.inf)
            values = [len(s) ** 0.5 * (s.mean(dim=0) - s.std(dim=0, correction=0)) for s in full]
            # Of a stretch with an infinite score the spread is not a number; it is anything but ordinary.
            return torch.stack(values).nan_to_num(nan=torch.inf, neginf=-torch.inf, posinf=torch.inf).amax(dim=0)

        return step


AGGREGATORS: dict[str, type[Aggregator]] = {
    kind.name: kind for kind in (LastPrompt, ExponentialMean, WindowMean, Maximum, CumulativeSum, CoherentSegment)
}


def parse_aggregator(name: str | Aggregator) -> Aggregator:
    """An aggregator by its name, with its defaults, or as it is; DefectionError lists the names."""
    if not isinstance(name, str):
        return name
    if name not in AGGREGATORS:
        raise DefectionError(f"unknown aggregator {name!r}: choose one of {', '.join(AGGREGATORS)}")
    return AGGREGATORS[name]()


def running(aggregator: Aggregator, scores: Float[Tensor, "row token"]) -> Float[Tensor, "row token"]:
    """The statistic after each token, of scores that are there already; NaN where a row has ended."""
    step = aggregator.start()
    if not scores.shape[1]:
        return scores
    values = torch.stack([step(column) for column in scores.nan_to_num(0.0, torch.inf, -torch.inf).unbind(1)], dim=1)
    return values.masked_fill(scores.isnan(), torch.nan)
