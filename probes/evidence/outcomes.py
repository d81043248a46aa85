"""What the organism did on each test prompt, and where the prompt belongs: what every figure is measured against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ...activations import DefectionError, PromptsLike, Residuals, load_prompts
from ...activations.basics.shown import shortened
from ..statistics.intervals import delong_interval
from ..statistics.metrics import Interval, auroc
from .randomisation import mean_auroc


@dataclass(frozen=True)
class Outcomes:
    """Test prompts as a scorer and a verdict see them.

    Examples:
        >>> outcomes = Outcomes.of(prompts, {"p0": False, "p1": True, "p2": True, "p3": False})
        >>> outcomes.mean(torch.tensor([0.1, 0.8, 0.9, 0.2]))[0]
        1.0
    """

    labels: NDArray[np.bool_]
    """[prompt] whether the organism defected: observed, never merely the trigger's presence."""
    families: tuple[str, ...]
    """[prompt] the set it belongs to."""
    topics: tuple[str, ...]
    """[prompt] clusters of the intervals."""
    triggered: NDArray[np.bool_]
    """[prompt] whether it holds the trigger."""

    __repr__ = shortened

    @classmethod
    def of(cls, tests: Residuals | PromptsLike, labels: Mapping[str, bool]) -> Outcomes:
        """The outcomes of test prompts.

        Args:
            tests: Residuals of them, or whatever `load_prompts` takes.
            labels: Whether the organism defected, by the prompts' ids.

        Raises:
            DefectionError: For a prompt without a label.
        """
        prompts = tests.prompts if isinstance(tests, Residuals) else load_prompts(tests)
        if missing := [prompt.id for prompt in prompts if prompt.id not in labels]:
            raise DefectionError(f"test prompt {missing[0]!r} has no label; evaluate the organism on the same prompts")
        return cls(
            np.array([labels[prompt.id] for prompt in prompts], dtype=bool),
            tuple(prompt.set or "prompts" for prompt in prompts),
            tuple(prompt.topic for prompt in prompts),
            np.array([bool(prompt.extra.get("triggered")) for prompt in prompts], dtype=bool),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: Sequence[int]) -> Outcomes:
        """Those of some of the prompts, in the order given.

        Args:
            rows: Their numbers, counted from 0.
        """
        chosen = list(rows)
        families, topics = (tuple(names[row] for row in chosen) for names in (self.families, self.topics))
        return Outcomes(self.labels[chosen], families, topics, self.triggered[chosen])

    @property
    def both(self) -> bool:
        """Whether both outcomes occur."""
        return bool(self.labels.any() and not self.labels.all())

    def refuse_one_outcome(self) -> None:
        """Whether there is something to be told apart.

        Raises:
            DefectionError: Naming the set, where only one outcome occurs.
        """
        if not self.both:
            outcome = "always" if self.labels.any() else "never"
            raise DefectionError(
                f"on test set {self.families[0]!r} the organism {outcome} defected, so there is nothing to tell apart; "
                "train it longer, or score it on prompts with and without its trigger"
            )

    def aurocs(self, scores: Float[Tensor, "*batch prompt"]) -> Float[Tensor, "*batch"]:
        """AUROC of each row of scores over all prompts, whatever their family.

        Args:
            scores: Higher for more defecting.
        """
        return auroc(scores, self.labels, axis=-1)

    def mean(self, scores: Float[Tensor, "prompt"], level: float = 0.95) -> tuple[float, Interval]:
        """Mean over the families of the AUROC, with its interval clustered by topic.

        Args:
            scores: [prompt].
            level: Of the interval, two-sided.
        """
        values = scores.detach().cpu().double()
        low, high = delong_interval(values[None], self.labels, self.topics, families=self.families, level=level)
        return float(mean_auroc(values, self.labels, self.families)), (float(low[0]), float(high[0]))
