"""Which of an organism's directions do anything: a sweep of levers, chosen on development prompts, judged on others.

The order is the evidence: the rule and what will be tried are written down, settings are screened and chosen on
development prompts, and only then are the test prompts read, by the chosen settings and by random directions in
their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ...activations import Model, load_model
from ...activations.basics.files import Json, digest, write_json
from ...activations.basics.tables import write_rows
from ...activations.models.hardware import Hardware
from ...activations.models.locate import locate
from ...activations.prompts.prompts import texts_digest
from ...probes import Probe, load_probe
from ...probes.levers.settings import first_settings
from ...probes.pictures.levers_figure import save_levers_figure
from ...training.organisms.records import adopt, base_of, read_organism
from ..run.measure import write_once
from ..run.persistence import organism_names
from ..run.plan import BASE, TWIN, Say
from .directions import lever_directions
from .export import export_lever, held_against
from .judged import figures_of, judged, sentence
from .plan import LeverPrompts, LeverSettings
from .rows import LeverRow, Measurements
from .sweep import NOTHING, Sweep, inducers


def intervene(
    organism: str,
    probe: Path,
    out: Path,
    settings: LeverSettings,
    say: Say,
    *,
    twin: str | None = None,
    export: Path | None = None,
    beside: Sequence[str] = (),
    device: str | Hardware = "auto",
) -> Json:
    """Sweep, choose, test, judge; leave `intervene.json`, `intervene.csv`, a picture and the rule under `out`.

    Gives what `intervene.json` holds. With `export` the best lever that weights can hold is folded into them there, and
    measured again; `beside` are other versions of the organism, such as safety training makes, and are measured alike.
    A call that was cut off goes on where it was. Raises DefectionError, before anything is written, for a folder that
    holds no organism, a probe of another model, prompts that are too few, and an `export` that is taken.
    """
    about, fitted = read_organism(organism), load_probe(probe)
    prompts = LeverPrompts.of(settings, about)
    controls = ({} if twin is None else {TWIN: twin}) | {BASE: base_of(organism)}
    for other in (*beside, *([] if twin is None else [twin])):
        read_organism(other)
    locate(controls[BASE])
    model = load_model(organism, device=device)
    fitted.refuse_model(model.identity)
    registered = _registered(model, fitted, settings, prompts)
    if export is not None and export.exists():
        adopt(export, "key", (digest(registered),))  # refuses what this sweep has not put there
    write_once(out / "preregistration.json", registered)
    directions, ground = lever_directions(model, about, fitted, prompts.shown, settings, out)
    journal = Measurements(out / "measured.jsonl", digest(registered))
    sweep = Sweep(about, model, {each.name: each for each in directions}, ground, journal, settings)
    say(f"{len(directions)} directions; {len(first_settings(directions, ground))} settings are tried at first")
    screened = sweep.screen(prompts.screened)
    chosen = sweep.choose(screened, prompts.chosen_on)
    write_json(out / "choice.json", {"schema_version": 1, "chosen": [asdict(setting) for setting in chosen]})
    verdicts = judged(sweep, chosen, inducers(screened), prompts.tested, controls, device)
    record: Json = {"organism": model.identity.to_json(), "rule": settings.rule.to_json()}
    record |= {"sentence": sentence(verdicts), "verdicts": verdicts}
    if export is not None:
        record["exported"] = export_lever(sweep, screened, prompts, controls[BASE], export, journal.key, device)
    if beside:
        others = dict(zip(organism_names(beside), beside, strict=True))
        record["beside"] = held_against(sweep, prompts.tested, controls[BASE], others, NOTHING, device)
    written = write_rows(out / "intervene.json", LeverRow, sweep.rows, record)
    save_levers_figure(written["rows"], written["rule"], out / "figures")
    return written


def lever_lines(record: Json) -> list[str]:
    """A line a direction, then the sentence, for a person to read."""
    width = max(len(each["direction"]) for each in record["verdicts"])
    lines = [
        f"{each['direction']:<{width}}  {each['verdict']:<8}  {each['how']}: {figures_of(each)}"
        for each in record["verdicts"]
    ]
    lines += [
        f"{each['model']}: {figures_of(each)}" for each in (*record.get("beside", []), record.get("exported")) if each
    ]
    return [*lines, record["sentence"]]


def _registered(model: Model, probe: Probe, settings: LeverSettings, prompts: LeverPrompts) -> Json:
    directions = digest([[round(float(x), 6) for x in row] for row in probe.directions.float()])
    return {
        "schema_version": 1,
        "model": model.identity.to_json(),
        "probe": {"estimator": probe.estimator, "layers": list(probe.fixed_layers), "directions": directions},
        **asdict(settings),
        "development": list(settings.development),
        "tests": list(settings.tests),
        "prompts": {name: [prompt.id for prompt in some] for name, some in vars(prompts).items()},
        "texts": texts_digest(*vars(prompts).values()),
    }
