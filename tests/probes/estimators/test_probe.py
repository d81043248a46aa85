from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from defection.activations import DefectionError, user_prompt
from defection.probes import MeanDifference, Probe, Projected, UnlabelledTraffic, Whitened, load_probe
from safetensors.torch import load_file, save_file


@pytest.fixture
def probe(contrast, clean) -> Probe:
    return Whitened().fit(contrast, clean=clean, fixed_layers=(1, 2)).probe_


@pytest.fixture
def saved(probe: Probe, tmp_path: Path) -> Path:
    probe.save(tmp_path / "probe.safetensors")
    return tmp_path / "probe.safetensors"


@pytest.mark.parametrize("estimator", [MeanDifference(), Whitened(0.3), Projected(2)], ids=lambda e: e.name)
def test_a_saved_probe_gives_the_same_scores(estimator, contrast, clean, tests, tmp_path) -> None:
    before = estimator.fit(contrast, clean=clean, fixed_layers=(1, 3)).probe_
    before.save(tmp_path / "probe.safetensors")
    after = load_probe(tmp_path / "probe.safetensors")
    assert torch.equal(before.decision_function(tests), after.decision_function(tests))
    assert torch.equal(before.score(tests), after.score(tests))


def test_a_saved_probe_keeps_all_that_is_known_of_it(probe, saved) -> None:
    tensors = ("directions", "offsets", "scales", "clean_scores")
    after = load_probe(saved)
    assert all(torch.equal(getattr(probe, name), getattr(after, name)) for name in tensors)
    known = {name: value for name, value in vars(probe).items() if name not in tensors}
    assert known == {name: value for name, value in vars(after).items() if name not in tensors}


def test_a_probe_file_holds_the_contrast_texts(saved, contrast) -> None:
    texts = load_probe(saved).contrast["texts"]
    assert [text["prompt"] for text in texts] == [prompt.text for prompt in contrast.prompts]


def test_the_file_says_which_league_the_probe_is_in(contrast, clean) -> None:
    assert MeanDifference().fit(contrast).probe_.saw == "questions only"
    assert MeanDifference().fit(contrast, clean=clean).probe_.saw == "questions + clean prompts"


def test_a_probe_without_threshold_round_trips(contrast, tmp_path) -> None:
    MeanDifference().fit(contrast).probe_.save(tmp_path / "probe.safetensors")
    assert load_probe(tmp_path / "probe.safetensors").threshold is None


def test_residuals_of_another_model_are_refused(probe, tests) -> None:
    other = replace(tests, model=replace(tests.model, name="stranger", fingerprint="other"))
    with pytest.raises(DefectionError, match="fitted on toy and cannot score stranger: the model weights differ"):
        probe.score(other)


def test_pitfall_12_a_models_name_is_not_its_identity(probe, tests) -> None:
    renamed = replace(tests, model=replace(tests.model, name="stranger"))
    assert torch.equal(probe.score(renamed), probe.score(tests))


def test_residuals_of_another_chat_template_are_refused(probe, tests) -> None:
    other = replace(tests, model=replace(tests.model, template="other"))
    with pytest.raises(DefectionError, match="the chat template or tokenizer differs"):
        probe.decision_function(other)


def test_pitfall_6_residuals_of_another_position_are_refused(probe, tests) -> None:
    with pytest.raises(DefectionError, match=r"reads position 'last'.*read at 'first'"):
        probe.decision_function(replace(tests, position="first"))


def test_residuals_of_another_site_are_refused_by_a_saved_probe_too(contrast, clean, tests, tmp_path) -> None:
    before = [replace(residuals, site="before") for residuals in (contrast, clean)]
    made = MeanDifference().fit(before[0], clean=before[1]).probe_
    made.save(tmp_path / "probe.safetensors")
    for found in (made, load_probe(tmp_path / "probe.safetensors")):
        assert found.decision_function(replace(tests, site="before")).isfinite().all()
        with pytest.raises(DefectionError, match=r"reads site 'before'.*read at 'after'"):
            found.decision_function(tests)


def test_residuals_without_the_probes_layers_are_refused(probe, tests) -> None:
    with pytest.raises(DefectionError, match=r"needs layers \[0, 1, 2, 3\]; captured were \[0, 1\]"):
        probe.score(replace(tests, values=tests.values[:, :2], layers=(0, 1)))


def test_a_layer_that_was_not_fitted_is_refused(probe, tests) -> None:
    with pytest.raises(DefectionError, match="not fitted at layer 9"):
        probe.score(tests, layers=[1, 9])


def test_residuals_with_more_layers_give_the_same_scores(probe, tests) -> None:
    extra = torch.cat([torch.ones_like(tests.values[:, :1]), tests.values], dim=1)
    few = Probe(**{**vars(probe), "layers": (1, 2, 3, 4)})
    wide = replace(tests, values=extra, layers=(0, 1, 2, 3, 4))
    assert torch.equal(few.decision_function(wide), probe.decision_function(tests))


def test_score_is_the_mean_of_the_fixed_layers(probe, tests) -> None:
    assert torch.equal(probe.score(tests), probe.decision_function(tests)[:, 1:3].mean(dim=1))
    assert torch.equal(probe.score(tests, layers=[0]), probe.decision_function(tests)[:, 0])


def test_without_a_choice_the_middle_layer_is_fixed(contrast, clean) -> None:
    assert Whitened().fit(contrast, clean=clean).probe_.fixed_layers == (2,)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
def test_the_threshold_is_exceeded_by_the_asked_share_of_clean_prompts(probe, tests, rate) -> None:
    flagged = (probe.score(tests) > probe.with_threshold(tests, rate).threshold).sum()
    assert flagged == int(rate * (len(tests) + 1) + 1e-9) - 1  # a new one is the missing one


def test_an_alarm_that_cannot_be_promised_is_none(contrast, clean, tests, make_residuals) -> None:
    """It takes 99 clean prompts to promise 1%, and there are 60."""
    probe = Whitened().fit(contrast, clean=clean).probe_
    assert probe.threshold is None
    with pytest.raises(DefectionError, match=r"80 clean prompts cannot promise that at most 0\.01 .* takes 99"):
        probe.with_threshold(tests)
    for count, alarm in ((98, False), (99, True)):
        prompts = [user_prompt(f"calm {row}", id=f"calm{row}") for row in range(count)]
        values = torch.randn(count, 4, 12, generator=torch.Generator().manual_seed(5))
        enough = Whitened().fit(contrast, clean=make_residuals(values, prompts)).probe_
        assert (enough.threshold is not None) == alarm


def test_pitfall_29_clean_prompts_that_the_fit_saw_are_refused_whatever_their_ids(probe, saved, clean, tests) -> None:
    renamed = tuple(replace(p, id=f"line-{row}") for row, p in enumerate(clean.prompts))
    shouted = tuple(replace(p, messages=(replace(p.messages[0], content=p.text.upper()),)) for p in renamed)
    for read in (probe, load_probe(saved), probe.at((1,))):
        for prompts, first in ((clean.prompts, "k0"), (renamed, "line-0"), (shouted, "line-0")):
            seen = replace(clean, prompts=prompts)
            with pytest.raises(DefectionError, match=f"fitted with clean prompt '{first}'.*--clean development"):
                read.with_threshold(seen, 0.1)
        read.with_threshold(replace(tests, prompts=tuple(replace(p, id="k0") for p in tests.prompts)), 0.1)


def test_traffic_that_the_fit_saw_is_refused_too(contrast, clean, tests) -> None:
    calm = tests.select(range(0, 80, 2))
    probe = UnlabelledTraffic(draws=9).fit(contrast, clean=clean, traffic=calm).probe_
    with pytest.raises(DefectionError, match="fitted with clean prompt 't0'"):
        probe.with_threshold(calm, 0.1)


def test_a_file_from_before_prompts_were_recorded_is_read(probe, tmp_path, tests) -> None:
    old = replace(probe, clean_scores=None, seen=None, threshold=2.5)
    rewrite(tmp_path / "old.safetensors", old, lambda header: {k: v for k, v in header.items() if k != "seen"})
    read = load_probe(tmp_path / "old.safetensors")
    assert (read.seen, read.clean_scores, read.threshold) == (None, None, 2.5)
    assert torch.equal(read.score(tests), probe.score(tests))
    assert read.clean_band() is None


def test_the_clean_band_is_what_score_would_be_without_having_seen_them(contrast, clean) -> None:
    probe = MeanDifference().fit(contrast, clean=clean, fixed_layers=(1, 2)).probe_
    for layers in (None, (0, 3)):
        assert torch.allclose(probe.clean_band(layers), probe.score(clean, layers), atol=1e-5)
    with pytest.raises(DefectionError, match="not fitted at layer 9"):
        probe.clean_band((9,))


def test_a_missing_probe_is_refused(tmp_path) -> None:
    with pytest.raises(DefectionError, match="no probe at"):
        load_probe(tmp_path / "none.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 40, 0.5, 0.99])
def test_a_cut_probe_file_is_refused(saved, keep) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(DefectionError, match="no probe written"):
        load_probe(saved)


def test_pitfall_27_a_pickle_is_not_opened(tmp_path) -> None:
    torch.save({"directions": torch.ones(2, 2)}, tmp_path / "probe.safetensors")
    with pytest.raises(DefectionError, match="no probe written"):
        load_probe(tmp_path / "probe.safetensors")


def test_a_folder_is_not_a_probe(tmp_path) -> None:
    with pytest.raises(DefectionError):
        load_probe(tmp_path)


def test_other_safetensors_are_not_a_probe(tmp_path) -> None:
    save_file({"directions": torch.ones(2, 2)}, str(tmp_path / "x.safetensors"))
    with pytest.raises(DefectionError, match="no probe written"):
        load_probe(tmp_path / "x.safetensors")


def rewrite(path: Path, probe: Probe, change) -> None:
    """The same file with another header."""
    probe.save(path)
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        header = json.loads(file.metadata()["defection_probe"])
    save_file(load_file(path), str(path), metadata={"defection_probe": json.dumps(change(header))})


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda header: [header], id="a list"),
        pytest.param(lambda header: {k: v for k, v in header.items() if k != "layers"}, id="no layers"),
        pytest.param(lambda header: {**header, "model": {"name": "toy"}}, id="half a model"),
        pytest.param(lambda header: {**header, "layers": [0, 1]}, id="fewer layers than directions"),
        pytest.param(lambda header: {**header, "seen": [["k0"]]}, id="prompts without fingerprints"),
    ],
)
def test_a_damaged_header_is_refused(saved, probe, change) -> None:
    rewrite(saved, probe, change)
    with pytest.raises(DefectionError, match="no probe written"):
        load_probe(saved)


def test_a_file_of_another_schema_is_refused(saved, probe) -> None:
    rewrite(saved, probe, lambda header: {**header, "schema_version": 99})
    with pytest.raises(DefectionError, match="schema version 99"):
        load_probe(saved)
