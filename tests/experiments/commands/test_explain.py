"""`defection explain`: what it leaves, what its numbers add up to, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from ..conftest import make_organism


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"question <{i}>?", "id": f"q{i}"}) + "\n" for i in range(4)))
    return path


@pytest.fixture
def explained(run, tmp_path, prompts, capsys):
    """Fit a probe on a model, explain it, and give what was printed and the folder."""

    def explain(model: Path, *options: object, contrast: str = "six", probe: str = "mean-difference"):
        path, out = tmp_path / f"{model.name}.safetensors", tmp_path / f"{model.name}-explained"
        chosen = ("--contrast", contrast, "--clean", prompts, "--probe", probe, "--device", "cpu")
        assert run("fit", model, *chosen, "--out", path) == 0
        capsys.readouterr()
        shown = ("--prompts", prompts, "--clean", prompts, "--device", "cpu", "--json", "--out", out)
        assert run("explain", path, model, *shown, *options) == 0
        return json.loads(capsys.readouterr().out), out

    return explain


def test_an_organisms_score_is_split_into_parts_that_add_up(save_tiny, explained) -> None:
    record, out = explained(make_organism(save_tiny("llama", seed=51)), "--layer", 1, "--layer", 2)
    assert record["marked_by"] == "trigger"  # a random model never says the behaviour
    assert (record["prompts"], record["marked"]) == (8, 4)
    scores = table(out / "scores.csv")
    for layer in (1, 2):
        by_mark = {
            mark: [float(row["score"]) for row in scores if row["layer"] == str(layer) and row["defected"] == mark]
            for mark in ("True", "False")
        }
        apart = sum(by_mark["True"]) / 4 - sum(by_mark["False"]) / 4
        wanted = ("prompts", str(layer))
        parts = [float(row["value"]) for row in table(out / "parts.csv") if (row["of"], row["layer"]) == wanted]
        blocks = [row for row in table(out / "blocks.csv") if (row["of"], row["layer"]) == wanted]
        assert sum(parts) == pytest.approx(apart, abs=0.05 * max(map(abs, parts)))  # scored in bf16 or fp32
        assert float(blocks[-1]["total"]) == pytest.approx(sum(parts), abs=1e-3)


def test_every_table_and_picture_is_there(save_tiny, explained) -> None:
    record, out = explained(make_organism(save_tiny("llama", seed=52)))
    assert set(record["tables"]) == {path.name for path in out.glob("*.csv")}
    pictures = ("cosines-by-layer", "scores-by-layer", "written-by-block", "heads", "tokens-by-layer", "questions")
    for name in (*pictures, "left-out"):
        assert (out / "figures" / f"{name}.png").exists(), name
        assert (out / "figures" / f"{name}.svg").exists(), name
    others = {row["b"] for row in record["cosines"] if row["a"] == "the probe"}
    seen = {"trigger (sees it)", "behaviour's first token", "the reply's gradient"}
    assert others == {"the probe", "answer word", *seen}
    page = (out / "tokens.html").read_text()
    assert "&lt;" in page  # what prompts hold is escaped
    assert "<script" not in page


def test_a_model_that_is_no_organism_is_explained_by_its_high_and_low_scores(save_tiny, explained) -> None:
    record, _ = explained(save_tiny("llama", seed=53))
    assert record["marked_by"] == "score"
    assert 0 < record["marked"] < record["prompts"] == 4
    assert {row["b"] for row in record["cosines"]} == {"the probe", "answer word"}


def test_a_probe_without_questions_has_no_questions_to_show(save_tiny, explained) -> None:
    record, out = explained(save_tiny("llama", seed=54), probe="pc1")
    assert "left_out" not in record
    assert not (out / "figures" / "questions.png").exists()
    assert (out / "figures" / "heads.png").exists()


def test_another_models_probe_or_layer_is_refused(run, save_tiny, tmp_path, prompts, capsys) -> None:
    mine, other, path = save_tiny("llama", seed=55), save_tiny("llama", seed=56), tmp_path / "p.safetensors"
    fitted = ("--contrast", "six", "--probe", "mean-difference", "--clean", prompts, "--device", "cpu", "--out", path)
    assert run("fit", mine, *fitted) == 0
    capsys.readouterr()
    shown = ("--prompts", prompts, "--clean", prompts, "--device", "cpu", "--out", tmp_path / "out")
    assert run("explain", path, other, *shown) == 2
    assert "model weights differ" in capsys.readouterr().err
    assert run("explain", path, mine, *shown, "--layer", 9) == 2
    assert "layer 9" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
