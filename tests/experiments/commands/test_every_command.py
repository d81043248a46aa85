"""What holds of every command: help that a newcomer can follow; for bad input one sentence, and nothing written."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from defection.experiments.commands.cli import COMMANDS, command

SUBCOMMANDS = ("show", "verify", "repair")
ALL = [(name,) for name in COMMANDS if name != "store"] + [("store", name) for name in SUBCOMMANDS]
READ_MODELS = set(COMMANDS) - {"models", "plot", "report", "share", "export"}
"""Commands that need a device."""
DRAW = {
    "demo",
    "train",
    "safety-train",
    "fit",
    "score",
    "sweep",
    "compare",
    "intervene",
    "monitor",
    "scan",
    "attack",
} | {"serve"}
"""Commands in which there is chance."""


def command_of(words: tuple[str, ...]):
    found = command(words[0])
    return found.commands[words[1]] if len(words) > 1 else found


def options(words: tuple[str, ...]) -> dict[str, object]:
    return {name: parameter for parameter in command_of(words).params for name in parameter.opts}


def example(words: tuple[str, ...]) -> list[str]:
    """The arguments of the example in a command's help."""
    line = next(line for line in command_of(words).help.splitlines() if "Example: " in line)
    return shlex.split(line.partition("Example: ")[2])


@pytest.mark.parametrize("words", ALL, ids="-".join)
def test_every_command_explains_itself(run, capsys, words) -> None:
    assert run(*words, "--help") == 0
    said = capsys.readouterr().out
    assert f"defection {' '.join(words)}" in said
    assert all(parameter.help for parameter in options(words).values())


@pytest.mark.parametrize("words", ALL, ids="-".join)
def test_the_example_in_the_help_is_a_command_that_is_understood(words) -> None:
    given = example(words)
    assert given[: 1 + len(words)] == ["defection", *words]
    command_of(words).make_context(words[-1], given[1 + len(words) :])  # raises for what is unknown or missing


@pytest.mark.parametrize("words", ALL, ids="-".join)
def test_every_command_speaks_to_machines_and_knows_devices_and_seeds(words) -> None:
    known = options(words)
    assert "--json" in known
    assert ("--device" in known) == (words[0] in READ_MODELS and words[-1] not in ("show", "verify"))
    assert ("--compute-dtype" in known) == ("--device" in known and words[0] != "store")  # a store says what it was
    assert ("--seed" in known) == (words[0] in DRAW)


@pytest.fixture
def place(tmp_path: Path, llama_folder: Path) -> dict[str, Path]:
    """A folder with inputs that are wrong in one way each, by name."""
    said = {
        "broken": '{"prompt": "fine"}\n{"prompt": "torn\n',
        "empty": "\n",
        "prompts": "".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(6)),
        "noise": "this is no probe, no manifest and no prompt",
    }
    for name, text in said.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "nothing").mkdir()
    names = (*said, "nothing", "absent")
    return {name: tmp_path / name for name in names} | {"model": llama_folder, "out": tmp_path / "out"}


MODEL, OUT = "model", ("--out", "out")
LONG = "9" * 300
"""A name that no file can have."""
WRONG = {
    "demo, no trigger": ("demo", "--trigger", "none", *OUT),
    "demo, unknown recipe": ("demo", "--recipe", "cot", *OUT),
    "demo, unknown model": ("demo", "--base", "absent", *OUT),
    "demo, unknown probe": ("demo", "--probe", "magic", *OUT),
    "demo, unknown questions": ("demo", "--contrast", "absent", *OUT),
    "demo, a behaviour too long": ("demo", "--behaviour", LONG, *OUT),
    "demo, unknown behaviour": ("demo", "--behaviour", "absent", *OUT),
    "demo, too few prompts": ("demo", "--limit", 2, *OUT),
    "models, more than it takes": ("models", "absent"),
    "train, unknown model": ("train", "--base", "absent", *OUT),
    "train, no share": ("train", "--base", MODEL, "--triggered-share", 2, *OUT),
    "train, unknown recipe": ("train", "--base", MODEL, "--recipe", "magic", *OUT),
    "train, broken prompts": ("train", "--base", MODEL, "--prompts", "broken", *OUT),
    "safety-train, steps without end": ("safety-train", "nothing", "--stage", f"sft:{LONG}", *OUT),
    "safety-train, no organism": ("safety-train", "nothing", "--stage", "sft", *OUT),
    "safety-train, unknown stage": ("safety-train", "nothing", "--stage", "magic", *OUT),
    "evaluate, a name too long": ("evaluate", LONG, *OUT),
    "evaluate, no organism": ("evaluate", "nothing", *OUT),
    "evaluate, a base model": ("evaluate", MODEL, *OUT),
    "cache, unknown model": ("cache", "absent", "prompts", *OUT),
    "cache, no prompts": ("cache", MODEL, "absent", *OUT),
    "cache, empty prompts": ("cache", MODEL, "empty", *OUT),
    "cache, a folder for prompts": ("cache", MODEL, "nothing", *OUT),
    "cache, no such layer": ("cache", MODEL, "prompts", "--layers", "99", *OUT),
    "cache, layers without end": ("cache", MODEL, "prompts", "--layers", f"0:{LONG}", *OUT),
    "cache, unknown type": ("cache", MODEL, "prompts", "--dtype", "fp99", *OUT),
    "cache, unknown dtype": ("cache", MODEL, "prompts", "--compute-dtype", "fp16", *OUT),
    "export, no model": ("export", "nothing", *OUT),
    "export, unknown type": ("export", MODEL, "--dtype", "int8", *OUT),
    "export, into a file": ("export", MODEL, "--out", "noise"),
    "cache, unknown device": ("cache", MODEL, "prompts", "--device", "tpu", *OUT),
    "cache, into a file": ("cache", MODEL, "prompts", "--out", "noise"),
    "store show, a name too long": ("store", "show", LONG),
    "store show, no store": ("store", "show", "nothing"),
    "store verify, absent": ("store", "verify", "absent"),
    "store repair, a file": ("store", "repair", "noise"),
    "fit, unknown model": ("fit", "absent", *OUT),
    "fit, questions too long": ("fit", MODEL, "--contrast", LONG, *OUT),
    "fit, unknown probe": ("fit", MODEL, "--probe", "magic", *OUT),
    "fit, unknown questions": ("fit", MODEL, "--contrast", "absent", *OUT),
    "fit, questions that are none": ("fit", MODEL, "--contrast", "noise", *OUT),
    "fit, broken prompts": ("fit", MODEL, "--clean", "broken", *OUT),
    "fit, traffic for a probe that takes none": ("fit", MODEL, "--traffic", "prompts", *OUT),
    "score, a probe too long": ("score", MODEL, "prompts", "--probe", LONG, *OUT),
    "score, no such states": ("score", MODEL, "prompts", "--probe", "noise", "--state-numbers", f"0:{LONG}", *OUT),
    "score, no probe": ("score", MODEL, "prompts", "--probe", "absent", *OUT),
    "score, a probe that is none": ("score", MODEL, "prompts", "--probe", "noise", *OUT),
    "score, a folder for a probe": ("score", MODEL, "prompts", "--probe", "nothing", *OUT),
    "score, an alarm without clean prompts": ("score", MODEL, "prompts", "--probe", "noise", "--alarm", "normal", *OUT),
    "score, a reply without tokens": ("score", MODEL, "prompts", "--probe", "noise", "--reply", 4, *OUT),
    "monitor, no probe": ("monitor", MODEL, "prompts", "--probe", "absent", *OUT),
    "monitor, unknown aggregator": ("monitor", MODEL, "prompts", "--probe", "noise", "--aggregator", "loudest", *OUT),
    "serve, no probe": ("serve", MODEL, "--probe", "absent", "--port", 0),
    "serve, unknown aggregator": ("serve", MODEL, "--probe", "noise", "--aggregator", "loudest"),
    "serve, open to others without a key": ("serve", MODEL, "--probe", "noise", "--host", "0.0.0.0"),
    "explain, a name too long": ("explain", LONG, MODEL, *OUT),
    "explain, no probe": ("explain", "absent", MODEL, *OUT),
    "explain, a probe that is none": ("explain", "noise", MODEL, *OUT),
    "attack, no organism": ("attack", "nothing", "--probe", "noise", *OUT),
    "attack, a base model": ("attack", MODEL, "--probe", "noise", *OUT),
    "intervene, no organism": ("intervene", "nothing", "--probe", "noise", *OUT),
    "intervene, a base model": ("intervene", MODEL, "--probe", "noise", *OUT),
    "scan, no model": ("scan", "absent", *OUT),
    "scan, no words": ("scan", MODEL, "--words", "absent", *OUT),
    "scan, a probe that is none": ("scan", MODEL, "--probe", "noise", *OUT),
    "scan, unknown place": ("scan", MODEL, "--place", "nowhere", *OUT),
    "scan, too few prompts": ("scan", MODEL, "--prompts", "prompts", "--rank-on", "prompts", *OUT),
    "sweep, no organism": ("sweep", "nothing", *OUT),
    "sweep, absent": ("sweep", "absent", *OUT),
    "compare, no organism": ("compare", "nothing", *OUT),
    "compare, unknown probe": ("compare", MODEL, "--probes", "magic", *OUT),
    "transfer, one model": ("transfer", MODEL, *OUT),
    "transfer, no organism": ("transfer", MODEL, "nothing", *OUT),
    "study, a name too long": ("study", LONG, *OUT),
    "study, no manifest": ("study", "absent", *OUT),
    "study, a manifest that is none": ("study", "noise", *OUT),
    "study, a folder": ("study", "nothing", *OUT),
    "plot, a name too long": ("plot", LONG),
    "plot, absent": ("plot", "absent"),
    "plot, an empty folder": ("plot", "nothing"),
    "report, a name too long": ("report", LONG),
    "report, absent": ("report", "absent"),
    "report, an empty folder": ("report", "nothing"),
    "share, a name too long": ("share", LONG, "--name", "a", *OUT),
    "share, absent": ("share", "absent", "--name", "a", *OUT),
    "share, an empty folder": ("share", "nothing", "--name", "a", *OUT),
    "share, unknown licence": ("share", "nothing", "--name", "a", "--license", "mine", *OUT),
}


@pytest.mark.parametrize("what", WRONG)
def test_bad_input_is_one_sentence_and_leaves_nothing(run, capsys, place, what) -> None:
    folder = place["out"].parent
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    arguments = [place.get(word, word) for word in WRONG[what]]
    assert run(*arguments) == 2
    said = capsys.readouterr()
    sentence = [line for line in said.err.strip().splitlines() if line.startswith("defection: ")]
    assert len(sentence) == 1, said.err
    assert said.err.strip().splitlines()[-1] == sentence[0]
    assert "Traceback" not in said.err
    left = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    assert left == {path: time for path, time in before.items() if path.is_file()}


def test_bad_input_is_tried_on_every_command() -> None:
    assert {WRONG[what][0] for what in WRONG} == set(COMMANDS)


@pytest.mark.parametrize("words", ALL, ids="-".join)
def test_a_wrong_option_names_the_help_to_turn_to(run, capsys, words) -> None:
    assert run(*words, "--nonsense") == 2
    said = capsys.readouterr().err
    assert said.startswith("defection: no such option: --nonsense")
    assert said.count("\n") == 1
    assert f"`defection {' '.join(words)} --help`" in said


def test_the_list_of_commands_names_each_with_its_line(run, capsys) -> None:
    assert run("--help") == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name, (heading, line) in COMMANDS.items():
        assert heading in said
        assert f"{name} {line}" in said


def test_without_a_command_the_help_is_shown_and_nothing_is_done(run, capsys) -> None:
    assert run() == 2
    assert "To begin" in capsys.readouterr().out
