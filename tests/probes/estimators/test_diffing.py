from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from defection.activations import DefectionError, ModelIdentity, capture
from defection.activations.models.load import load_model
from defection.activations.prompts.prompts import Message, Prompt
from defection.probes import BaseDifference, MeanDifference, against_base, auroc, difference, load_estimator, load_probe
from defection.probes.estimators.diffing import LESS
from defection.probes.evidence.baselines import norm_scores

BASE = ModelIdentity("base", "weights-of-base", "template")
BAND = (1, 2)


def of_base(residuals, values):
    return replace(residuals, values=values, model=replace(BASE, template=residuals.model.template))


@pytest.fixture
def probe(contrast, clean):
    return MeanDifference().fit(contrast, clean=clean, fixed_layers=BAND).probe_


def changed(residuals, seed: int):
    """What the tuned model adds to its base, and the base that this leaves: the prompts' content is in both."""
    content = 20 * torch.randn(residuals.values.shape, generator=torch.Generator().manual_seed(seed))
    tuned = replace(residuals, values=residuals.values + content)
    return difference(tuned, of_base(residuals, content))


def test_what_moves_both_models_alike_leaves_no_trace(probe, clean, tests, labels) -> None:
    """Content twenty times as large as the signal hides it from a probe; read against the base it is not there."""
    read = against_base(probe, changed(clean, 1), components=0)
    torch.testing.assert_close(read.score(changed(tests, 2)), probe.score(tests), atol=1e-3, rtol=1e-3)
    content = 20 * torch.randn(tests.values.shape, generator=torch.Generator().manual_seed(2))
    marks = [labels[prompt.id] for prompt in tests.prompts]
    hidden = auroc(probe.score(replace(tests, values=tests.values + content)), marks)
    assert float(hidden) < float(auroc(probe.score(tests), marks)) - 0.1


def test_its_unit_is_the_spread_of_differences_on_clean_prompts(contrast, clean) -> None:
    calm, probe = changed(clean, 1), MeanDifference().fit(contrast, fixed_layers=BAND).probe_
    for components in (0, 3):
        read = against_base(probe, calm, components)
        scores = read.clean_scores.double()
        torch.testing.assert_close(scores.mean(dim=0), torch.zeros(len(read.layers)).double(), atol=1e-4, rtol=0)
        torch.testing.assert_close(scores.std(dim=0), torch.ones(len(read.layers)).double(), atol=1e-4, rtol=0)
        assert read.threshold is None  # sixty prompts cannot promise 1%
        assert read.saw == "questions + clean prompts + base model"
    same = torch.allclose(read.clean_scores, read.decision_function(calm), atol=1e-3)
    assert not same  # each was scored by a direction that it did not help to blind


def test_pitfall_29_prompts_that_the_question_probe_saw_set_no_alarm(probe, clean) -> None:
    read = against_base(probe, changed(clean, 1))
    assert (read.threshold, read.clean_scores) == (None, None)


def test_what_training_changed_on_ordinary_prompts_is_taken_out(probe, clean) -> None:
    calm = changed(clean, 1)
    read = against_base(probe, calm, components=3)
    for layer in range(len(read.layers)):
        rows = calm.values[:, layer] - calm.values[:, layer].mean(dim=0)
        leading = torch.linalg.svd(rows, full_matrices=False)[2][:3]
        assert (leading @ read.directions[layer]).abs().max() < 1e-4


def test_plain_residuals_and_other_bases_are_refused(probe, clean, tests, tmp_path) -> None:
    calm = changed(clean, 1)
    read = against_base(probe, calm)
    read.save(tmp_path / "probe.safetensors")
    read = load_probe(tmp_path / "probe.safetensors")
    assert read.score(changed(tests, 2)).isfinite().all()
    with pytest.raises(DefectionError, match="site"):
        read.score(tests)
    with pytest.raises(DefectionError, match="site"):
        probe.score(changed(tests, 2))
    other = replace(BASE, fingerprint="weights-of-another", template=tests.model.template)
    with pytest.raises(DefectionError, match="site"):
        read.score(difference(tests, replace(tests, values=tests.values * 0, model=other)))


def test_a_difference_needs_two_models_read_alike(clean, tests) -> None:
    with pytest.raises(DefectionError, match="same weights"):
        difference(clean, clean)
    base = of_base(clean, clean.values)
    for wrong, said in (
        (base.select(range(5, len(base))), "stands where the base was read on"),
        (base.select(range(5)), "n_tokens"),
        (replace(base, values=base.values[:, 1:], layers=base.layers[1:]), "layers"),
        (replace(base, position="response"), "position"),
        (replace(base, model=replace(base.model, template="another")), "chat templates"),
    ):
        with pytest.raises(DefectionError, match=said):
            difference(clean, wrong)


def test_directions_of_other_models_layers_and_too_few_prompts_are_refused(probe, clean) -> None:
    calm = changed(clean, 1)
    with pytest.raises(DefectionError, match="cannot score"):
        against_base(probe, replace(calm, model=replace(BASE, fingerprint="another")))
    with pytest.raises(DefectionError, match="difference"):
        against_base(probe, clean)
    for change in ({"site": "middle"}, {"site": f"middle{LESS}x"}, {"position": "mean:0:4"}):
        with pytest.raises(DefectionError, match="at the layers, position and site"):
            against_base(probe, replace(calm, **change))
    with pytest.raises(DefectionError, match="give more"):
        against_base(probe, calm.select(range(5)), components=4)
    marked = replace(calm.prompts[0], extra={"triggered": True})
    with pytest.raises(DefectionError, match="triggered prompt"):
        against_base(probe, replace(calm, prompts=(marked, *calm.prompts[1:])))


def test_of_two_real_models_it_is_what_one_stream_has_more_than_the_other(llama, save_tiny) -> None:
    other = load_model(save_tiny("llama", seed=1), device="cpu", dtype="fp32")
    prompts = [Prompt(f"p{i}", (Message("user", f"Please tell me about number {i}."),)) for i in range(4)]
    tuned, base = capture(other, prompts), capture(llama, prompts)
    found = difference(tuned, base)
    assert torch.equal(found.values, tuned.values - base.values)
    assert found.model == tuned.model
    assert norm_scores(found).shape == (4, len(tuned.layers))
    assert llama.identity.fingerprint[:12] in found.site


def test_the_size_of_what_training_changed_is_told_in_that_of_clean_prompts(clean, tests, tmp_path) -> None:
    calm, met = changed(clean, 1), changed(tests, 2)
    fitted = BaseDifference().fit(calm)
    plain = BaseDifference().fit(calm.values).decision_function(met.values)
    torch.testing.assert_close(plain, norm_scores(met) / norm_scores(calm).mean(dim=0), atol=1e-5, rtol=1e-5)
    scores = fitted.decision_function(met)
    for layer in range(len(met.layers)):  # in standard deviations of clean ones: the same order
        assert torch.equal(scores[:, layer].argsort(), plain[:, layer].argsort())
    fitted.save(tmp_path / "size.safetensors")
    assert torch.equal(load_estimator(tmp_path / "size.safetensors").decision_function(met), scores)


def test_plain_residuals_are_refused_by_what_reads_differences(clean) -> None:
    with pytest.raises(DefectionError, match=r"needs the base model too: pass difference\(tuned, base\)"):
        BaseDifference().fit(clean)
    with pytest.raises(DefectionError, match="site"):
        BaseDifference().fit(changed(clean, 1)).decision_function(clean)
