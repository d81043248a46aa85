"""Every kind of probe, fitted on bare numbers or on residuals, comes back from its file and scores as it did."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from defection.activations import DefectionError, Message, ModelIdentity, Prompt, Residuals, user_prompt
from defection.probes import (
    AttentionProbe,
    Evidence,
    LayerEnsemble,
    LinearProbe,
    MeanDifference,
    MLPProbe,
    ProbeEstimator,
    QuestionEnsemble,
    Ragged,
    RidgeProbe,
    UnlabelledTraffic,
    load_estimator,
    load_probe,
)
from defection.probes.estimators.registry import estimators
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

RNG = np.random.default_rng(0)
ROWS, MARKS = RNG.normal(size=(40, 3, 8)), np.arange(40) % 2
ROWS[MARKS == 1, :, 0] += 2
CLEAN, TRAFFIC, NEW = (RNG.normal(size=(n, 3, 8)) for n in (40, 30, 7))
KINDS = {**estimators(), "layer-ensemble": LayerEnsemble(RidgeProbe(), layers=(0, 2))}
IDENTITY = ModelIdentity("mine", "weights", "template")


def fitted(estimator: ProbeEstimator, to=lambda rows: rows) -> ProbeEstimator:
    """On bare numbers, with whatever rows the kind sees."""
    given = {Evidence.CLEAN: "clean", Evidence.TRAFFIC: "traffic"}
    rows = {"clean": to(CLEAN), "traffic": to(TRAFFIC)}
    kinds = {name: rows[name] for kind, name in given.items() if kind in estimator.sees | estimator.needs}
    pairs = np.arange(40).reshape(-1, 2)
    about = {"groups": np.arange(40) // 4, "pairs": pairs, "nuisance": RNG.normal(size=40)}
    if estimator.name == "weight-directions":
        return estimator.fit(to(CLEAN), change=NEW.transpose(1, 0, 2))
    if estimator._is_monitor:
        return estimator.fit(to(CLEAN), **({"traffic": rows["traffic"]} if "traffic" in kinds else {}))
    return estimator.fit(to(ROWS), MARKS, **kinds, **about)


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize("to", [np.asarray, torch.as_tensor], ids=["array", "tensor"])
def test_a_fit_on_bare_numbers_comes_back(name: str, to, tmp_path: Path) -> None:
    probe = fitted(KINDS[name], to)
    probe.save(tmp_path / "probe.safetensors")
    back = load_estimator(tmp_path / "probe.safetensors")
    assert type(back) is type(probe)
    assert repr(back) == repr(probe)
    one, other = probe.decision_function(to(NEW)), back.decision_function(to(NEW))
    assert type(one) is type(other)
    assert (one == other).all()
    assert (np.asarray(probe.predict(to(NEW))) == np.asarray(back.predict(to(NEW)))).all()
    assert len(repr(back)) < 200


def read(values: np.ndarray, name: str, *, asked: bool = False, layers: tuple[int, ...] = (3, 5, 8)) -> Residuals:
    prompts = []
    for row in range(len(values)):
        if asked:
            said = (Message("user", f"Question {row // 2}?"), Message("assistant", ("no", "yes")[row % 2]))
            extra = {"defecting": bool(MARKS[row]), "topic": f"q{row // 2}", "answer": said[1].content}
            prompts.append(Prompt(f"{name}{row}", said, name, extra))
        else:
            prompts.append(user_prompt(f"{name} {row}", id=f"{name}{row}"))
    return Residuals(torch.from_numpy(values).float(), layers, tuple(prompts), (4,) * len(values), IDENTITY)


@pytest.mark.parametrize("probe", [MeanDifference(), MLPProbe(), QuestionEnsemble(), UnlabelledTraffic()], ids=repr)
def test_a_fit_on_residuals_comes_back_and_still_vouches(probe: ProbeEstimator, tmp_path: Path) -> None:
    traffic = {"traffic": read(TRAFFIC, "t")} if Evidence.TRAFFIC in probe.needs else {}
    probe.fit(read(ROWS, "q", asked=True), clean=read(CLEAN, "c"), **traffic)
    probe.save(tmp_path / "probe.safetensors")
    back = load_estimator(tmp_path / "probe.safetensors")
    assert torch.equal(probe.decision_function(read(NEW, "n")), back.decision_function(read(NEW, "n")))
    other = replace(read(NEW, "n"), model=ModelIdentity("other", "other weights", "template"))
    with pytest.raises(DefectionError, match="model weights"):
        back.decision_function(other)
    if isinstance(probe, LinearProbe):
        assert back.probe_.to_parts()[0] == probe.probe_.to_parts()[0]


def test_classes_in_words_and_tokens_of_an_attention_probe_come_back(tmp_path: Path) -> None:
    words = np.array(["calm", "plotting"])[MARKS]
    MeanDifference().fit(ROWS[:, 0], words).save(tmp_path / "words")
    assert set(load_estimator(tmp_path / "words").predict(NEW[:, 0])) <= {"calm", "plotting"}
    tokens = Ragged(torch.from_numpy(ROWS), torch.arange(0, 41, 4))
    probe = AttentionProbe().fit(tokens, np.arange(10) % 2)
    probe.save(tmp_path / "attention")
    assert torch.equal(
        load_estimator(tmp_path / "attention").decision_function(tokens), probe.decision_function(tokens)
    )


def test_directions_of_bare_numbers_become_a_probe_of_a_model(tmp_path: Path) -> None:
    """So that it is saved, scored and explained like one that was fitted on residuals."""
    bare, clean = RidgeProbe().fit(ROWS, MARKS), read(CLEAN, "c")
    probe = bare.as_probe(clean, fixed_layers=(5, 8))
    probe.save(tmp_path / "probe.safetensors")
    back = load_probe(tmp_path / "probe.safetensors")
    unit = bare.coef_ / np.linalg.norm(bare.coef_, axis=-1, keepdims=True)
    np.testing.assert_allclose(back.directions.numpy(), unit, atol=1e-6)
    scores = back.decision_function(read(NEW, "n"))
    bare_scores = bare.decision_function(NEW)
    for layer in range(3):  # a scale and an offset apart
        assert np.corrcoef(scores[:, layer], bare_scores[:, layer])[0, 1] == pytest.approx(1, abs=1e-5)
    assert torch.allclose(back.decision_function(clean).mean(dim=0), torch.zeros(3), atol=1e-5)
    assert back.saw == "labelled defections (upper bound)"
    assert (back.layers, back.fixed_layers, back.model) == ((3, 5, 8), (5, 8), IDENTITY)
    with pytest.raises(DefectionError, match="3, 8"):
        bare.as_probe(read(CLEAN[:, :2], "c", layers=(3, 5)))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DefectionError, match="no estimator at"):
        load_estimator(tmp_path / "nothing")
    (tmp_path / "words").write_text("no tensors")
    with pytest.raises(DefectionError, match="no estimator written"):
        load_estimator(tmp_path / "words")
    MeanDifference().fit(ROWS, MARKS).as_probe(read(CLEAN, "c")).save(tmp_path / "probe")
    with pytest.raises(DefectionError, match="no estimator written"):
        load_estimator(tmp_path / "probe")


@pytest.mark.parametrize("name", ["mean-difference", "ridge", "logistic", "mlp"])
def test_scikit_learns_own_searches_take_the_estimators(name: str) -> None:
    rows, groups = ROWS[:, 0], np.arange(40) // 4
    probe = estimators()[name]
    areas = cross_val_score(probe, rows, MARKS, groups=groups, cv=GroupKFold(5), scoring="roc_auc")
    assert areas.mean() > 0.75
    inside = cross_val_score(make_pipeline(StandardScaler(), probe), rows, MARKS, cv=5, scoring="roc_auc")
    assert np.isfinite(inside).all()
    parameter = {"ridge": "alpha", "logistic": "C", "mlp": "hidden"}.get(name)
    if parameter is not None:
        search = GridSearchCV(probe, {parameter: [1, 2]}, scoring="roc_auc", cv=3).fit(rows, MARKS)
        assert search.best_params_[parameter] in (1, 2)
        assert search.best_score_ > 0.75
