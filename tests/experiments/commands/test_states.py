"""`score --states`: what vLLM read is scored as if it had been read here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from defection.activations import capture, load_model, user_prompt
from defection.probes import MeanDifference, contrast_set

from ...exported import exported

PROMPTS = [user_prompt(text, id=f"p{n}") for n, text in enumerate(("Hi", "How do I boil an egg?", "Who are you then?"))]


def test_states_are_scored_like_the_model(run, llama_folder: Path, tmp_path: Path, capsys) -> None:
    model = load_model(llama_folder, device="cpu", dtype="fp32")
    fit = MeanDifference().fit(capture(model, contrast_set("six")), fixed_layers=(1, 2))
    fit.probe_.save(tmp_path / "probe.safetensors")
    lines = [json.dumps({"prompt": prompt.text, "id": prompt.id}) + "\n" for prompt in PROMPTS]
    (tmp_path / "prompts.jsonl").write_text("".join(lines))
    exported(model, PROMPTS, tmp_path / "states", [2, 3])
    place = tmp_path / "scores.jsonl"
    asked = ["score", llama_folder, tmp_path / "prompts.jsonl", "--probe", tmp_path / "probe.safetensors"]
    asked += ["--compute-dtype", "fp32", "--out", place]

    def scores() -> list[float]:
        return [json.loads(line)["score"] for line in place.read_text().splitlines()]

    assert run(*asked) == 0
    own = scores()
    place.unlink()
    assert run(*asked, "--states", tmp_path / "states", "--state-numbers", "2:4") == 0
    assert scores() == pytest.approx(own, rel=1e-4)
    place.unlink()
    for numbers in ("2", "x", "2:3:4:5", "3,2"):
        assert run(*asked, "--states", tmp_path / "states", "--state-numbers", numbers) == 2
    assert "layers [2], which vLLM calls [3]" in capsys.readouterr().err
    assert run(*asked, "--states", tmp_path / "states") == 2
    assert run(*asked, "--states", tmp_path / "states", "--state-numbers", "2,3", "--tokens", "all") == 2
    assert not place.exists()
