"""What is made of a run that lies there (pictures, a page, a shared probe): from damaged files too, or one sentence."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from defection.experiments.run.evaluation import plot_folder
from defection.experiments.run.measure import measure

from ...damage import Damage, as_gzip, as_json, as_jsonl, as_tensors, torn

TRIES = int(os.environ.get("DEFECTION_DAMAGED", "60")) // 60
RESULTS = Path(__file__).parents[3] / "results" / "third"
KINDS: dict[str, Damage] = {
    ".json": as_json,
    ".jsonl": as_jsonl,
    ".svg": torn,
    ".safetensors": as_tensors,
    ".gz": as_gzip,
}


def tried(run, capsys, files: list[Path], commands: list[tuple[object, ...]]) -> list[str]:
    """What went wrong, each file being damaged in turn and every command run on it."""
    rng, wrong = random.Random(0), []
    for path in files:
        whole = path.read_bytes()
        for _ in range(TRIES):
            damaged = KINDS[path.suffix](whole, rng)
            for command in commands:
                path.write_bytes(damaged)
                capsys.readouterr()
                try:
                    status = run(*command)
                except Exception as error:  # what is looked for
                    wrong.append(f"{command[0]}, {path.name}: {type(error).__name__}: {error}"[:300])
                    continue
                said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("defection: ")]
                if status not in (0, 2) or (status == 2) != (len(said) == 1):
                    wrong.append(f"{command[0]}, {path.name}: status {status}, {said}")
        path.write_bytes(whole)
    return wrong


def test_a_run_of_one_organism(run, capsys, tmp_path: Path, sources, plan) -> None:
    folder = tmp_path / "run"
    measure(sources, plan, folder, lambda _: None)
    plot_folder(folder)
    shared = ("share", folder, "--name", "mine", "--out", tmp_path / "shared")
    for command in (("report", folder), shared):
        assert run(*command) == 0
    names = ("verdict.json", "evaluation.json", "sweep.json", "completions.jsonl", "preregistration.json")
    files = [folder / name for name in names]
    files += [next((folder / "figures").glob("*.svg")), folder / "probes" / "whitened.six.safetensors"]
    wrong = tried(run, capsys, files, [("report", folder), shared])
    wrong += tried(run, capsys, files[:4:3], [("plot", folder)])
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_the_results_of_a_study(run, capsys, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    shutil.copytree(RESULTS, folder)
    assert run("report", folder) == 0
    files = [path for path in sorted(folder.iterdir()) if path.suffix in KINDS]
    wrong = tried(run, capsys, files, [("report", folder)])
    assert not wrong, "\n".join(wrong)
