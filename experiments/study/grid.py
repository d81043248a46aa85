"""A study: many organisms, one choice, and a table; every step resumes, and processes share the work."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...activations.basics.files import Json, digest
from .cell import Cell, measure, train
from .choice import choose, read_choice, write_choice
from .families import prompts_digest
from .manifest import DEVELOPMENT, TEST, Manifest
from .strings import control_strings, read_controls
from .verdicts import judge_cell, read_verdicts
from .work import Say, Task, work_off


@dataclass
class Study:
    """A manifest at work in a folder."""

    manifest: Manifest
    out: Path
    device: str = "auto"

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

    def tasks(self) -> list[Task]:
        """Everything there is to do, in order: development organisms, the choice, test organisms.

        A process with nothing else to do trains test organisms while others are still busy on development ones, but
        none is read before the choice is written.
        """
        found: list[Task] = []
        for role in (DEVELOPMENT, TEST):
            for cell in self.cells(role):
                found += [self._training(cell), self._measuring(cell)]
                if role == TEST:
                    found += [self._controlling(cell), self._judging(cell)]
            if role == DEVELOPMENT:
                found.append(
                    Task("choosing", self._lock("choice"), lambda: bool(self.choice), self._can_choose, self._choose)
                )
        return found

    def run(self, say: Say = lambda _: None) -> None:
        """Do whatever is not done yet, and is not being done by another process; return when all of it is done."""
        read_choice(self.out, self.manifest)  # refused before anything is computed
        work_off(self.tasks(), say)

    def _lock(self, name: str) -> Path:
        """Folders that hold nothing but a lock: what a killed process left in an organism's own is its to continue."""
        return self.out / ".locks" / name

    def _training(self, cell: Cell) -> Task:
        name = f"training {cell.organism.name}"
        return Task(name, self._lock(cell.organism.name), cell.trained, lambda: True, lambda: train(cell))

    def _measuring(self, cell: Cell) -> Task:
        def run() -> None:
            found = read_choice(self.out, self.manifest) if cell.organism.role == TEST else None
            measure(cell, *(found or ((), "")))

        def is_ready() -> bool:
            return cell.trained() and (cell.organism.role == DEVELOPMENT or bool(self.choice))

        return Task(
            f"measuring {cell.organism.name}",
            self._lock(cell.organism.name),
            lambda: self.is_measured(cell),
            is_ready,
            run,
        )

    def _controlling(self, cell: Cell) -> Task:
        return Task(
            f"controlling {cell.organism.name}",
            self._lock(cell.organism.name),
            lambda: read_controls(cell, self.choice) is not None,
            lambda: self.is_measured(cell),
            lambda: control_strings(cell, self.choice),
        )

    def _judging(self, cell: Cell) -> Task:
        def run() -> None:
            chosen, choice = read_choice(self.out, self.manifest) or ((), "")
            judge_cell(cell, chosen, choice)

        return Task(
            f"judging {cell.organism.name}",
            self._lock(cell.organism.name),
            lambda: read_verdicts(cell, self.choice) is not None,
            lambda: self.is_measured(cell) and read_controls(cell, self.choice) is not None,
            run,
        )

    def _can_choose(self) -> bool:
        return all(self.is_finished(cell) for cell in self.cells(DEVELOPMENT))

    def _choose(self) -> None:
        measured = {cell.organism.name: _records(cell, "") for cell in self.cells(DEVELOPMENT)}
        write_choice(self.out, choose(self.manifest, measured, self.configuration))

    def records(self, cell: Cell) -> list[Json]:
        """What was measured on an organism so far, family by family."""
        return _records(cell, self.choice if cell.organism.role == TEST else "")

    def verdicts(self, cell: Cell) -> list[Json]:
        """The verdict on a test organism and on its controls, so far."""
        return read_verdicts(cell, self.choice) or []

    def controls(self, cell: Cell) -> list[Json]:
        """What meaningless strings did in place of what was found in a test organism's traffic, so far."""
        return read_controls(cell, self.choice) or []


def _records(cell: Cell, choice: str) -> list[Json]:
    found = (cell.measured(family, choice) for family in cell.families)
    return [record for record in found if record is not None]
