"""What knows nothing, held against a probe: the null bands and p-values of a table, drawn once for all its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from ...activations.basics.files import Json
from ...activations.reading.residuals import Residuals
from .nulls import covariance_directions, null_aurocs, null_band, null_scores
from .outcomes import Outcomes
from .shuffles import QuestionEffects, label_shuffle_null, unrelated_question_null

UNMOVED = "no p_label_shuffle: of each two words the same one defects in every question, so a shuffle moves no label"
Columns = tuple[int, ...]


class Chance:
    """What random directions reach on one model and test set, read at several layers or bands of layers.

    A set on which only one outcome occurs has no bands.
    """

    def __init__(
        self,
        tests: Residuals,
        clean: Residuals,
        outcomes: Outcomes,
        wanted: Iterable[Sequence[int]],
        *,
        seed: int = 0,
    ) -> None:
        """Drawn on `tests` [prompt, layer, d_model], standardised on `clean`; `wanted` are columns of layers."""
        self.tests, self.clean, self.outcomes, self.seed = tests, clean, outcomes, seed
        self.wanted = {tuple(each) for each in wanted} if outcomes.both else set[Columns]()

    # Drawn when asked for, one kind after the other: each is a score for every direction, layer and prompt.

    @cached_property
    def isotropic(self) -> dict[Columns, Float[Tensor, "direction"]]:
        """The AUROC of each direction drawn from a sphere, at the wanted layers."""
        return self._aurocs(lambda: None)

    @cached_property
    def covariance(self) -> dict[Columns, Float[Tensor, "direction"]]:
        """The same of directions drawn in the clean prompts' covariance."""
        return self._aurocs(lambda: covariance_directions(self.clean.values, seed=self.seed))

    def _aurocs(
        self, drawn: Callable[[], Float[Tensor, "layer direction d_model"] | None]
    ) -> dict[Columns, Float[Tensor, "direction"]]:
        if not self.wanted:
            return {}
        scores = null_scores(self.tests, self.clean, directions=drawn(), seed=self.seed)
        return {columns: null_aurocs(scores, self.outcomes.labels, columns) for columns in self.wanted}

    def band(self, columns: Sequence[int]) -> dict[str, float]:
        """The central 95% of both kinds of directions on the mean over these layers, under the names of `Figures`."""
        found = {}
        for name, drawn in (("null", self.isotropic), ("null_covariance", self.covariance)):
            if (areas := drawn.get(tuple(columns))) is not None:
                found[f"{name}_low"], found[f"{name}_high"] = null_band(areas)
        return found

    def best_high(self) -> float:
        """97.5% of isotropic directions, one a layer, have a best layer below this."""
        return null_band(
            torch.stack([areas for columns, areas in self.isotropic.items() if len(columns) == 1]).amax(0)
        )[1]

    def of_questions(self, own: QuestionEffects | None, others: QuestionEffects | None, columns: Sequence[int]) -> Json:
        """The p-values of a probe made of questions, whose effects are given at these layers alone.

        None where the probe is no sum over questions. `others` are questions about other things.
        """
        if own is None or not self.outcomes.both:
            return {}
        chosen, places = list(columns), range(len(columns))
        read = (self.tests.values[:, chosen], self.outcomes.labels, self.clean.values[:, chosen])
        found: Json = {}
        if own.can_be_shuffled:
            found["p_label_shuffle"] = label_shuffle_null(
                own, *read, columns=places, each_layer=False, seed=self.seed
            ).band_p_value
        else:
            found["note"] = UNMOVED
        if others is not None:
            null = unrelated_question_null(own, others, *read, columns=places, each_layer=False, seed=self.seed)
            low, high = null_band(null.band_null)
            found |= {"p_unrelated": null.band_p_value, "null_unrelated_low": low, "null_unrelated_high": high}
        return found
