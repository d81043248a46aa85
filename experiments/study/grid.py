"""A study: many organisms, one choice, and a table. Organisms are jobs of their own; every step resumes from files."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from ...activations.basics.errors import DefectionError
from ...activations.basics.files import Json, digest
from ...activations.basics.progress import progress
from ...activations.models.hardware import Hardware
from ...activations.stores.locking import room
from ..run.plan import Say
from ..run.side_by_side import LOCAL, Workers, workers
from .candidates import Candidate
from .cell import Cell, measure_cell, train
from .choice import CHOICE, choose, read_choice, write_choice
from .detectors import detect_cell, read_detectors
from .families import prompts_digest
from .manifest import DEVELOPMENT, ROLES, TEST, StudyManifest
from .strings import control_strings, read_controls
from .verdicts import judge_cell, read_verdicts


@dataclass
class Study:
    """A manifest at work in a folder."""

    manifest: StudyManifest
    out: Path
    device: str | Hardware = "auto"

    @cached_property
    def configuration(self) -> str:
        """SHA-256 of the whole manifest as it was resolved, and of the prompts it names; files' paths play no part."""
        families = [family for family in self.manifest.families if family.prompts]
        record = self.manifest.to_json()
        for family in record["families"]:
            del family["prompts"]
        record["prompts"] = {family.name: prompts_digest(family, self.manifest.folder) for family in families}
        return digest(record)

    def cells(self, role: str) -> list[Cell]:
        """Development or test organisms."""
        return [Cell(each, self.manifest, self.out, self.device) for each in self.manifest.of_role(role)]

    @property
    def choice(self) -> str:
        """SHA-256 of `choice.json`; empty before there is one."""
        found = read_choice(self.out, self.manifest)
        return found[1] if found else ""

    def is_finished(self, cell: Cell) -> bool:
        """Whether an organism was trained and measured, and, of a test organism, put to the string test and judged."""
        if cell.organism.role != TEST:
            return self.is_measured(cell)
        known = (read_controls(cell, self.choice), read_verdicts(cell, self.choice))
        return self.is_measured(cell) and None not in known

    def is_measured(self, cell: Cell) -> bool:
        """Whether an organism was trained and measured; a test organism under the choice that stands."""
        if cell.organism.role == TEST and not self.choice:
            return False
        return cell.finished(self.choice if cell.organism.role == TEST else "")

    def named(self, names: Sequence[str] = ()) -> list[Cell]:
        """The organisms of these names, or all; DefectionError for a name that the study does not have."""
        cells = {cell.organism.name: cell for role in ROLES for cell in self.cells(role)}
        if unknown := [name for name in names if name not in cells]:
            raise DefectionError(f"study {self.manifest.name!r} has no organism {unknown[0]!r}; --list names them all")
        return [cell for name, cell in cells.items() if not names or name in names]

    def run(self, say: Say = lambda _: None, backend: str = LOCAL, only: Sequence[str] = ()) -> None:
        """Do whatever is not done yet: development organisms, then the choice, then test organisms.

        `backend` says where (`run.side_by_side.workers`); on a GPU of this machine one organism at a time. With `only`
        these organisms alone; of test organisms then no more than their training, as long as the choice waits for
        others. Several processes may be at it: whoever comes second to an organism waits, and finds it done.

        Raises DefectionError before anything is computed when `choice.json` or an organism that is there does not
        belong to this manifest, and for an unknown backend or name.
        """
        read_choice(self.out, self.manifest)
        left = [cell for cell in self.named(only) if not (cell.trained() and self.is_finished(cell))]
        development, test = ([cell for cell in left if cell.organism.role == role] for role in ROLES)
        if backend == LOCAL and Hardware.of(self.device).place.type != "cpu":
            backend = f"{LOCAL}=1"
        with workers(backend) as them:
            missing = set(self._choice_waits_for()) - {cell.organism.name for cell in development}
            # Those without a development organism train a test organism, but none is read before the choice.
            spare = len(test) if missing else -len(development) % them.count
            training = [cell for cell in test if not cell.trained()][:spare]
            jobs = [(cell, partial(complete, cell, (), "")) for cell in development]
            jobs += [(cell, partial(prepare, cell)) for cell in training]
            _work_off(them, jobs, say)
            if missing:
                say(f"the choice, and what comes after it, waits for {', '.join(sorted(missing))}")
                return
            chosen, choice = self._choose()
            _work_off(them, [(cell, partial(complete, cell, chosen, choice)) for cell in test], say)

    def _choice_waits_for(self) -> list[str]:
        """Development organisms that are not done; none once the choice is made."""
        cells = [] if self.choice else self.cells(DEVELOPMENT)
        return [cell.organism.name for cell in cells if not self.is_finished(cell)]

    def _choose(self) -> tuple[tuple[Candidate, ...], str]:
        """The choice and its SHA-256; it is made here if it has not been made."""
        with room(self.out, CHOICE):  # several processes may have measured the last development organisms
            if not self.choice:
                if unseen := self._choice_waits_for():
                    raise DefectionError(f"what was measured on {', '.join(unseen)} cannot be seen here; run it again")
                measured = {cell.organism.name: self.records(cell) for cell in self.cells(DEVELOPMENT)}
                write_choice(self.out, choose(self.manifest, measured, self.configuration))
        found = read_choice(self.out, self.manifest)
        assert found is not None
        return found

    def records(self, cell: Cell) -> list[Json]:
        """What was measured on an organism so far, family by family."""
        choice = self.choice if cell.organism.role == TEST else ""
        found = (cell.measured(family, choice) for family in cell.families)
        return [record for record in found if record is not None]

    def verdicts(self, cell: Cell) -> list[Json]:
        """The verdict on a test organism and on its controls, so far."""
        return read_verdicts(cell, self.choice) or []

    def controls(self, cell: Cell) -> list[Json]:
        """What meaningless strings did in place of what was found in a test organism's traffic, so far."""
        return read_controls(cell, self.choice) or []


def prepare(cell: Cell) -> None:
    """Train an organism and its twin, unless they are there."""
    with room(cell.out, cell.organism.name):
        if not cell.trained():
            train(cell)


def complete(cell: Cell, chosen: Sequence[Candidate], choice: str) -> None:
    """Do whatever is left to do of an organism, from training to its verdict; a job of its own for any process.

    `choice` is the hash of the choice, and `chosen` its candidates; of a development organism there are none.
    """
    prepare(cell)
    with room(cell.out, cell.organism.name):
        if not cell.finished(choice):
            measure_cell(cell, chosen, choice)
        if cell.organism.role == TEST and read_controls(cell, choice) is None:
            control_strings(cell, choice)
        if cell.organism.role == TEST and read_verdicts(cell, choice) is None:
            if read_detectors(cell, choice) is None:
                detect_cell(cell, choice)
            judge_cell(cell, chosen, choice)


def _work_off(them: Workers, jobs: Sequence[tuple[Cell, Callable[[], None]]], say: Say) -> None:
    """Do the jobs: in turn and here, with the bars of each, or elsewhere at once, with a line for each that ends."""
    names, started = [cell.organism.name for cell, _ in jobs], time.monotonic()
    if them.in_turn(len(jobs)):
        for number, (_, job) in enumerate(jobs):
            say(f"{number + 1} of {len(jobs)}: {names[number]}")
            job()
        return
    say(f"{len(jobs)} organisms, {them.count} at once")
    with progress("Organisms", len(jobs)) as bar:
        for ended, (number, _) in enumerate(them.as_finished([job for _, job in jobs]), 1):
            minutes = (time.monotonic() - started) / 60
            say(f"{ended} of {len(jobs)}, after {minutes:.1f} min: {names[number]}")
            bar(1)
