"""Which probes a study reads on an organism: the paper's, the candidates, and for the chosen one its controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...probes.questions.contrast_sets import SHIPPED, STUDIED
from .manifest import PAPER, Candidate, Manifest

PAPERS, CANDIDATE, CONTROL = "paper", "candidate", "control"


@dataclass(frozen=True)
class Line:
    """A line of the tables: one probe, and why it is there."""

    candidate: Candidate
    part: str
    """`paper`: MacDiarmid et al. 2024; `candidate`; `control`: the same recipe with another question set."""
    is_choice: bool = False


def lines_of(manifest: Manifest, chosen: Sequence[Candidate]) -> list[Line]:
    """The paper's recipe, every candidate, and the controls of the paper's and of the chosen ones.

    Without a choice, as on development organisms, there are no controls: nothing is to be judged yet.
    """
    found = [Line(PAPER, PAPERS, PAPER in chosen)]
    found += [Line(each, CANDIDATE, each in chosen) for each in manifest.candidates if each != PAPER]
    asking = [main for main in (PAPER, *chosen) if not main.sees_traffic]  # traffic is what counts there, not questions
    if chosen:
        found += [Line(each, CONTROL) for main in asking for each in controls_of(main, manifest.controls)]
    first: dict[Candidate, Line] = {}
    for line in found:
        first.setdefault(line.candidate, line)
    return list(first.values())


def controls_of(main: Candidate, names: Sequence[str]) -> list[Candidate]:
    """The main probe with other question sets, put in the same format and read at the same layers."""
    return [replace(main, contrast=f"{name}{format_of(main.contrast)}") for name in names]


def format_of(contrast: str) -> str:
    """What follows a shipped set's name: `-sentence-carried` of `forty-sentence-carried`; empty for a file's."""
    sets = (*SHIPPED, *STUDIED)
    known = [name for name in sets if contrast == name or contrast.startswith(f"{name}-")]
    return contrast.removeprefix(max(known, key=len)) if known else ""
