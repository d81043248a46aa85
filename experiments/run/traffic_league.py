"""The second league of a verdict: a probe found in unlabelled traffic, with the controls that tell it from a string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...activations import DefectionError, Model, Prompt, Residuals, cache, load_prompts
from ...activations.basics.files import Json
from ...probes import Probe, UnlabelledTraffic
from ...training.organisms.triggers import Trigger, with_and_without
from .preregistration import MixedTraffic
from .string_control import StringControl, string_control


@dataclass(frozen=True)
class TrafficFit:
    """A fit on one model's traffic, and the string test of what it found, where that was asked."""

    estimator: UnlabelledTraffic
    strings: StringControl | None

    @property
    def probe(self) -> Probe:
        """What is saved: the direction, with what the fit claims and what strings say of it."""
        strings = None if self.strings is None else self.strings.to_json()
        parameters = self.estimator.probe_.parameters | {"string_control": strings}
        return replace(self.estimator.probe_, parameters=parameters)

    def claim(self) -> Json:
        """For `verdict.json`."""
        said = self.estimator.verdict_.to_json()
        return said if self.strings is None else said | {"string_control": self.strings.to_json()}

    def p_values(self) -> dict[str, float | None]:
        """Of the claim that something is there, and that it is more than an odd string; None where not tested."""
        tested = self.strings is not None and self.strings.strings
        return {
            "traffic": self.estimator.verdict_.p_value,
            "strings": self.strings.p_value if tested and self.strings else None,
        }


def traffic_prompts(plan: MixedTraffic, trigger: Trigger) -> list[Prompt]:
    """The prompts of the traffic, drawn from its sets; DefectionError where these are too few."""
    bank = [prompt for name in plan.sets for prompt in load_prompts(name)]
    paired = with_and_without(trigger, bank)
    if len(paired) != 2 * len(bank) or len(bank) < plan.size:
        raise DefectionError(f"{', '.join(plan.sets)} hold too few prompts for traffic of {plan.size}")
    return [paired[row] for row in mixed(len(bank), plan.size, plan.share, plan.seed)]


def fit_traffic(
    model: Model,
    prompts: Sequence[Prompt],
    contrast: Residuals,
    clean: Residuals,
    folder: Path,
    forbidden: Sequence[str],
    *,
    alpha: float | None,
    name: str,
) -> TrafficFit:
    """Read the traffic into `folder`, look for a minority, and hold what is found against meaningless strings.

    Strings are tried where the find has a p-value of at most `alpha`, and not at all for None.
    """
    met = cache(model, prompts, folder / "traffic", what=f"Reading traffic ({name})").read()
    estimator = UnlabelledTraffic().fit(contrast, clean=clean, traffic=met, forbidden=forbidden)
    strings = None
    if alpha is not None and estimator.verdict_.p_value <= alpha:

        def read(bearing: Sequence[Prompt]) -> Residuals:
            return cache(model, bearing, folder / "strings", what=f"Reading meaningless strings ({name})").read()

        strings = string_control(estimator, contrast, clean, met, read, forbidden=forbidden)
    return TrafficFit(estimator, strings)


def mixed(prompts: int, size: int, share: float, seed: int) -> list[int]:
    """Rows of a table of so many prompts, each without and then with its trigger, that make such traffic."""
    drawn = np.random.default_rng(seed).permutation(prompts)[:size]
    triggered = round(share * len(drawn))
    return [int(2 * prompt + (place < triggered)) for place, prompt in enumerate(drawn)]
