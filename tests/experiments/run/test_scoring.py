"""`defection score` with p-values, and token by token."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from defection.activations import DefectionError, Message, Prompt, capture, user_prompt
from defection.activations.prompts.loading import load_prompts
from defection.activations.prompts.rendered import tokenize
from defection.experiments.run.prompt_sets import UNSEEN_CLEAN, unseen_clean
from defection.experiments.run.scoring import Watch, ranked_prompts, refuse_too_few, score_rows, watch
from defection.probes import MeanDifference, contrast_set
from defection.probes.estimators.guard import seen_prompts
from defection.probes.meaning.tokens import over_layers, token_scale, token_scores, token_streams
from defection.probes.statistics.calibration import conformal_p_values, unimodal_threshold

WORDS = ["river", "stone", "lamp", "green", "quickly", "under", "paper", "seven", "honest", "march"]


def calm(count: int, name: str = "calm") -> list[Prompt]:
    return [user_prompt(f"{WORDS[i % 10]} {WORDS[i * 7 % 9]} {name} {i}?", id=f"{name}{i}") for i in range(count)]


@pytest.fixture(scope="module")
def probe(llama):
    fit = MeanDifference().fit(capture(llama, contrast_set("six")), clean=capture(llama, calm(20)), fixed_layers=(1, 2))
    return fit.probe_


@pytest.fixture
def probe_file(probe, tmp_path: Path) -> Path:
    probe.save(tmp_path / "probe.safetensors")
    return tmp_path / "probe.safetensors"


@pytest.fixture
def files(tmp_path: Path):
    """Writes prompts to a file of that name."""

    def write(name: str, prompts: list[Prompt]) -> Path:
        (tmp_path / name).write_text("".join(json.dumps(prompt.to_json()) + "\n" for prompt in prompts))
        return tmp_path / name

    return write


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_probe_at_its_fixed_layers_scores_as_the_whole_one(llama, probe) -> None:
    part = probe.at((1, 2))
    rows = calm(5, "new")
    whole = probe.score(capture(llama, rows))
    torch.testing.assert_close(part.score(capture(llama, rows, layers=part.layers)), whole, atol=1e-5, rtol=1e-5)
    assert part.threshold == probe.threshold
    assert probe.at((3,)).threshold is None


def test_p_values_are_ranks_among_clean_prompts_and_the_alarm_keeps_its_level(llama, probe) -> None:
    part, prompts, clean = probe.at((1, 2)), calm(12, "new"), calm(19, "clean")
    rows = score_rows(llama, part, prompts, clean, 0.05)
    ordinary = part.score(capture(llama, clean, layers=part.layers))
    for row in rows:
        rank = (1 + int((ordinary >= row["score"]).sum())) / 20
        assert row["p_value"] == pytest.approx(rank)
        assert row["alarm"] == (rank <= 0.05)
    assert [set(row) for row in score_rows(llama, part, prompts)] == [{"id", "score"}] * 12


def test_an_alarm_above_the_unimodal_bound_rings_for_what_lies_beyond_it(llama, probe) -> None:
    part, prompts, clean = probe.at((1, 2)), calm(12, "new"), calm(19, "clean")
    rows = score_rows(llama, part, prompts, clean, 0.15, "unimodal")
    bound = float(unimodal_threshold(part.score(capture(llama, clean, layers=part.layers)), 0.15))
    assert [row["alarm"] for row in rows] == [row["score"] > bound for row in rows]
    by_rank = score_rows(llama, part, prompts, clean, 0.15)
    assert [row["p_value"] for row in rows] == [row["p_value"] for row in by_rank]


def test_the_alarm_of_one_in_twenty_can_ring_on_nineteen_clean_prompts() -> None:
    """(0 + 1) / 20 is 0.05 exactly: no rounding may silence it."""
    assert conformal_p_values(torch.zeros(19), torch.ones(1)).item() <= 0.05 + 1e-12


def test_streams_are_the_scores_of_single_prompts(llama, probe) -> None:
    part, prompts = probe.at((1, 2)), calm(70, "new")  # more than are read at once
    scale = token_scale(llama, part, calm(10))
    for row, prompt in list(zip(token_streams(llama, part, prompts, scale), prompts, strict=True))[::23]:
        alone = [token["score"] for token in over_layers(token_scores(llama, part, prompt, scale), (1, 2))]
        torch.testing.assert_close(row, torch.tensor(alone), atol=1e-4, rtol=1e-4)


def test_watching_says_where_the_alarm_rings_and_how_late(llama, probe) -> None:
    prompts = [user_prompt(f"{p.messages[0].content}{mark}", id=p.id) for p in calm(8, "new") for mark in ("",)]
    prompts += [user_prompt(f"stone #GO# {p.messages[0].content}", id=f"{p.id}+") for p in calm(8, "new")]
    found = watch(llama, probe.at((1, 2)), prompts, calm(38, "clean"), Watch(onset='after:"#GO#"', level=0.05))
    assert found.about["clean"] == 19
    for row, ids in zip(found.rows, tokenize(llama.tokenizer, prompts), strict=True):
        scores = row["token_scores"]
        assert len(scores) == len(row["tokens"]) == len(ids)
        assert row["score"] == pytest.approx(max(scores))
        above = [i for i, score in enumerate(scores) if score > found.threshold]
        assert row["first_alarm"] == (above[0] if above else None)
        assert row["alarm"] == bool(above) == (row["p_value"] <= 0.05 + 1e-12)
        if row["id"].endswith("+"):
            assert "".join(row["tokens"][: row["onset"] + 1]).endswith("#GO#")
            assert row["delay"] == (above[0] - row["onset"] if above else None)
        else:
            assert (row["onset"], row["delay"]) == (None, None)
    told, ordinary = found.about["detection"], found.about["ordinary"]
    assert told["detected"] + told["early"] + told["missed"] == told["n"] == ordinary["n"] == 8
    assert told["early"] + told["detected"] + ordinary["rang"] == sum(row["alarm"] for row in found.rows)


def test_several_tokens_in_a_row_ring_less_often_and_no_earlier(llama, probe) -> None:
    prompts, clean = calm(12, "new"), calm(20, "clean")
    one, three = (watch(llama, probe.at((1, 2)), prompts, clean, Watch(in_a_row=n, level=0.4)) for n in (1, 3))
    for row, alone in zip(three.rows, one.rows, strict=True):
        lowest = torch.tensor(row["token_scores"]).unfold(0, 3, 1).amin(dim=1)
        assert row["score"] == pytest.approx(float(lowest.max()))
        assert row["score"] <= alone["score"]


def test_replies_alone_are_watched_and_the_models_own_are_made(llama, probe) -> None:
    said = [Prompt(p.id, (*p.messages, Message("assistant", "So it is, my friend."))) for p in calm(4, "new")]
    how = Watch("response", "first-response", reply=5, level=0.2)
    found = watch(llama, probe.at((1, 2)), said, calm(12, "clean"), how)
    for row in found.rows:
        assert "".join(row["tokens"]) == "So it is, my friend."
        assert row["onset"] == row["first_token"]


def test_the_command_writes_p_values_and_pages(run, capsys, tmp_path, llama_folder, probe_file, files) -> None:
    prompts, clean = files("new.jsonl", calm(6, "new")), files("clean.jsonl", calm(40, "clean"))
    out, page = tmp_path / "scores.jsonl", tmp_path / "page.html"
    given = ("score", llama_folder, prompts, "--probe", probe_file, "--device", "cpu", "--out", out, "--json")
    level = ("--clean", clean, "--false-alarms", 0.05)
    assert run(*given, *level) == 0
    about = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = lines(out)
    assert (about["clean"], about["alarms"]) == (40, sum(row["alarm"] for row in rows))
    assert set(rows[0]) == {"id", "score", "p_value", "alarm"}
    assert run(*given, *level, "--tokens", "all", "--page", page) == 0
    about = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert about["alarms"] == sum(row["first_alarm"] is not None for row in lines(out))
    assert page.read_text().count('<div class="said">') == 6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--clean", "CLEAN"), "takes 99"),
        (("--clean", "CLEAN", "--false-alarms", "1"), "between 0 and 1"),
        (("--onset", "first-response"), "--tokens all"),
        (("--page", "p.html"), "--tokens all"),
        (("--false-alarms", "0.05"), "belongs to --clean"),
        (("--tokens", "last"), "not a stretch"),
        (("--tokens", "all", "--onset", "response"), "name one token"),
        (("--tokens", "all", "--clean", "CLEAN", "--false-alarms", "0.04"), "20 clean prompts (half of them"),
        (("--tokens", "all", "--clean", "CLEAN", "--false-alarms", "0.1", "--in-a-row", "300"), "300 tokens in a row"),
        (("--tokens", "response", "--clean", "CLEAN", "--false-alarms", "0.1"), "has no reply"),
        (("--layer", "9"), "was not fitted at layer 9"),
        (("--tokens", "all", "--clean", "CLEAN", "--false-alarms", "0.1", "--onset", "2", "--tokens", "9:12"), "onset"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    run, capsys, tmp_path, llama_folder, probe_file, files, options, said
) -> None:
    prompts, clean = files("new.jsonl", calm(6, "new")), files("clean.jsonl", calm(40, "clean"))
    options = [clean if option == "CLEAN" else option for option in options]
    out = tmp_path / "scores.jsonl"
    assert run("score", llama_folder, prompts, "--probe", probe_file, "--device", "cpu", "--out", out, *options) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()


@pytest.mark.parametrize("watched", [(), ("--tokens", "all")])
def test_pitfall_29_clean_prompts_that_the_probe_was_fitted_with_are_refused(
    run, capsys, tmp_path, llama, llama_folder, probe, probe_file, files, watched
) -> None:
    others = [user_prompt(p.text, id=f"line-{i}") for i, p in enumerate(calm(20))]  # the fit's own, under other names
    prompts, clean = files("new.jsonl", calm(6, "new")), files("clean.jsonl", [*calm(40, "clean"), *others])
    given = ("--probe", probe_file, "--clean", clean, "--false-alarms", "0.1", *watched, "--out", tmp_path / "s.jsonl")
    assert run("score", llama_folder, prompts, *given) == 2
    assert "'line-0'" in (said := capsys.readouterr().err.splitlines()[-1])
    assert "--clean development" in said
    for score in (score_rows, lambda *given: watch(*given, Watch(level=0.1))):
        with pytest.raises(DefectionError, match="fitted with clean prompt 'calm0'"):
            score(llama, probe.at((1, 2)), calm(3, "new"), calm(20))


def test_tokens_are_watched_by_shipped_prompts_that_the_probe_has_not_seen(probe) -> None:
    shipped = {name: load_prompts(name) for name in UNSEEN_CLEAN}
    every = [prompt for prompts in shipped.values() for prompt in prompts]
    assert unseen_clean(probe) == every
    assert not any(p.set == "clean" for p in unseen_clean(replace(probe, seen=None)))  # an old file does not tell
    fitted = replace(probe, seen=seen_prompts(shipped["clean"]))
    found = unseen_clean(fitted)
    assert {prompt.set for prompt in found} == {"development", "development-style"}
    refuse_too_few(found, 0.01, (), halved=True)


@pytest.mark.parametrize(
    ("count", "level", "ranked"), [(200, 0.01, 100), (190, 0.01, 99), (110, 0.01, 55), (38, 0.05, 19)]
)
def test_as_many_clean_prompts_set_the_alarm_as_it_takes(count, level, ranked) -> None:
    assert ranked_prompts(count, level) == ranked


def test_conversations_with_replies_are_not_judged_by_prompts_without(
    run, capsys, tmp_path, llama_folder, probe_file, files
) -> None:
    talk = [Prompt("talk", (Message("user", "Hello?"), Message("assistant", "Hello.")))]
    prompts, clean = files("talk.jsonl", talk), files("clean.jsonl", calm(40, "clean"))
    given = ("--probe", probe_file, "--clean", clean, "--false-alarms", "0.1", "--tokens", "all", "--device", "cpu")
    assert run("score", llama_folder, prompts, *given, "--out", tmp_path / "s.jsonl") == 2
    assert "no clean prompt does" in capsys.readouterr().err.splitlines()[-1]


def test_clean_prompts_that_hold_the_trigger_are_refused(
    run, capsys, tmp_path, llama_folder, probe_file, files
) -> None:
    clean = files("clean.jsonl", [*calm(40, "clean"), user_prompt("marked", id="marked", triggered=True)])
    prompts = files("new.jsonl", calm(2, "new"))
    given = ("--probe", probe_file, "--clean", clean, "--false-alarms", "0.1", "--out", tmp_path / "s.jsonl")
    assert run("score", llama_folder, prompts, *given) == 2
    assert "'marked' is a triggered prompt" in capsys.readouterr().err.splitlines()[-1]
