"""The conventions every kind of probe keeps: scikit-learn's, on arrays and tensors, for one layer and for many."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from defection.activations import DefectionError, Message, Prompt, Residuals
from defection.probes import (
    Evidence,
    LayerEnsemble,
    LinearProbe,
    LogisticProbe,
    LogisticProbeCV,
    MeanDifference,
    PCAProbe,
    Probe,
    QuestionEnsemble,
    RidgeProbe,
    Whitened,
    load_probe,
)
from defection.probes.estimators.diffing import LESS
from defection.probes.estimators.registry import KINDS, estimator, estimators, saveable
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

LAYERS, WIDTH = 3, 12
# What needs traffic solves all layers jointly, and keeps conventions of its own (test_traffic).
JOINT = "layer-convergence"  # has one score for all layers (test_convergence)
by_layer = {n: kind for n, kind in estimators().items() if Evidence.TRAFFIC not in kind.needs and n != JOINT}
every_kind = pytest.mark.parametrize("name", list(by_layer))
supervised = [name for name, kind in by_layer.items() if Evidence.CONTRAST in kind.needs]


def made(n: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of both classes in pairs, two pairs a topic, and clean rows."""
    rng = np.random.default_rng(seed)
    marks = np.arange(n) % 2
    rows = rng.normal(size=(n, LAYERS, WIDTH)) * np.exp(rng.normal(size=(LAYERS, WIDTH)))
    rows[..., 0] += 2 * marks[:, None]
    pairs = np.arange(n - n % 2).reshape(-1, 2)
    pairs[::2] = pairs[::2, ::-1]
    clean = rng.normal(size=(30, LAYERS, WIDTH))
    return {
        "X": rows,
        "y": marks,
        "clean": clean,
        "groups": np.arange(n) // 4,
        "pairs": pairs,
        "nuisance": rng.normal(size=n),
        "change": rng.normal(size=(LAYERS, 2, WIDTH)),
    }


def evidence(kind: str, data: dict, *, layer: int | None = None, to=lambda x: x) -> tuple[tuple, dict]:
    """What `fit` is called with for a kind: monitors take clean rows alone."""
    cut = (lambda x: x) if layer is None else (lambda x: x[:, layer])
    if kind == "weight-directions":
        return (to(cut(data["clean"])),), {"change": data["change"] if layer is None else data["change"][layer]}
    if kind not in supervised:
        return (to(cut(data["clean"])),), {}
    extra = {"groups": data["groups"], "pairs": data["pairs"], "nuisance": data["nuisance"]}
    return (to(cut(data["X"])), to(data["y"])), {"clean": to(cut(data["clean"])), **extra}


def fitted(kind: str, data: dict, **how):
    arguments, named = evidence(kind, data, **how)
    return estimators()[kind].fit(*arguments, **named)


def labelled(values: torch.Tensor, words=("no", "yes")) -> list[Prompt]:
    """A contrast set's prompts for rows in pairs: each word is the defecting answer for half of the questions."""
    prompts = []
    for row in range(len(values)):
        question, defecting = row // 2, row % 2 == 0
        answer = words[(question + defecting) % 2]
        said = (Message("user", f"question {question}?"), Message("assistant", answer))
        prompts.append(
            Prompt(f"q{row}", said, "made", {"defecting": defecting, "topic": f"q{question}", "answer": answer})
        )
    return prompts


@pytest.fixture(scope="module")
def questions(contrast) -> Residuals:
    return replace(contrast, prompts=tuple(labelled(contrast.values)))


@pytest.mark.parametrize(
    "kind",
    [
        MeanDifference(),
        Whitened(covariance="pooled"),
        LogisticProbe(),
        LogisticProbeCV(Cs=(0.01, 1.0)),
        RidgeProbe(),
        PCAProbe(),
        estimators()["erased"],
        estimators()["attention"],
        estimators()["mlp"].set_params(hidden=8, max_steps=100),
        LayerEnsemble(),
    ],
    ids=lambda kind: kind.name,
)
def test_scikit_learns_own_checks_pass(kind) -> None:
    """Not for kinds whose fit needs more than X and y: clean prompts, pairs of answers, questions."""
    check_estimator(kind, on_skip=None)


@every_kind
def test_fit_returns_the_estimator_and_leaves_the_parameters(name) -> None:
    kind = estimators()[name]
    before = kind.get_params()
    arguments, named = evidence(name, made())
    assert kind.fit(*arguments, **named) is kind
    assert kind.get_params() == before


@every_kind
def test_all_layers_at_once_equal_each_by_itself(name) -> None:
    data = made()
    together = fitted(name, data).decision_function(data["X"])
    assert together.shape == (40, LAYERS)
    for layer in range(LAYERS):
        alone = fitted(name, data, layer=layer).decision_function(data["X"][:, layer])
        assert alone.shape == (40,)
        loose = 1e-3 if name == "mlp" else 1e-6  # rounding may end a long descent a step earlier
        np.testing.assert_allclose(together[:, layer], alone, rtol=1e-5, atol=loose)


@every_kind
def test_tensors_give_what_arrays_give_and_stay_tensors(name) -> None:
    data = made()
    arrays, tensors = fitted(name, data), fitted(name, data, to=torch.as_tensor)
    scores = tensors.decision_function(torch.as_tensor(data["X"]))
    assert isinstance(scores, torch.Tensor)
    np.testing.assert_array_equal(scores.numpy(), arrays.decision_function(data["X"]))
    np.testing.assert_array_equal(np.asarray(tensors.predict(torch.as_tensor(data["X"]))), arrays.predict(data["X"]))
    if arrays.linear:
        assert isinstance(arrays.coef_, np.ndarray)
        assert isinstance(tensors.coef_, torch.Tensor)
        assert arrays.coef_.shape == (LAYERS, WIDTH)


@every_kind
def test_fits_are_deterministic_and_clones_and_pickles_agree(name) -> None:
    data = made()
    first = fitted(name, data)
    arguments, named = evidence(name, data)
    torch.manual_seed(5)  # a global seed must not matter
    again = clone(first).fit(*arguments, **named)
    assert np.array_equal(first.decision_function(data["X"]), again.decision_function(data["X"]))
    restored = pickle.loads(pickle.dumps(first))
    assert np.array_equal(first.decision_function(data["X"]), restored.decision_function(data["X"]))


@pytest.mark.parametrize("name", supervised)
def test_pitfall_17_separable_rows_fewer_than_dimensions_give_finite_probes_that_tell_them_apart(name) -> None:
    data = made(n=8)
    data["X"][..., 0] += 40 * data["y"][:, None]
    scores = fitted(name, data).decision_function(data["X"])
    assert np.isfinite(scores).all()
    if name not in ("ccs", "pair-pca", "erased"):  # these do not aim at the classes' distance alone
        assert ((scores > 0) == data["y"][:, None].astype(bool)).all()


@pytest.mark.parametrize("name", [name for name in supervised if name != "logistic-cv"])
def test_two_rows_are_enough(name) -> None:
    data = made(n=2)
    data["groups"] = np.zeros(2)
    assert np.isfinite(fitted(name, data).decision_function(data["X"])).all()


@every_kind
def test_pitfall_16_a_layer_without_variance_is_finite_and_spares_the_others(name) -> None:
    data = made()
    whole = fitted(name, data).decision_function(data["X"])
    dead = {**data, "X": data["X"].copy(), "clean": data["clean"].copy()}
    dead["X"][:, 1] = dead["clean"][:, 1] = np.linspace(-3, 3, WIDTH)
    scores = fitted(name, dead).decision_function(dead["X"])
    assert np.isfinite(scores).all()
    assert np.ptp(scores[:, 1]) < 1e-9
    np.testing.assert_allclose(scores[:, [0, 2]], whole[:, [0, 2]], rtol=1e-5, atol=1e-6)


@every_kind
def test_pitfall_14_large_bf16_rows_are_fitted_as_the_numbers_they_are(name) -> None:
    data = made()
    for key in ("X", "clean"):
        data[key] = torch.as_tensor(data[key] * 40 + 3000).bfloat16()
    rough = fitted(name, data, to=torch.as_tensor)
    exact = fitted(name, {**data, "X": data["X"].double(), "clean": data["clean"].double()}, to=torch.as_tensor)
    scores = (kind.decision_function(data["X"]) for kind in (rough, exact))
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-4)


@settings(max_examples=25)
@given(
    n=st.integers(1, 12),
    d=st.integers(1, 14),
    ties=st.booleans(),
    name=st.sampled_from(supervised),
    seed=st.integers(0, 99),
)
def test_any_shape_and_any_ties_give_finite_scores(n, d, ties, name, seed) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(-1, 2, size=(2 * n, 2, d)).astype(float) if ties else rng.normal(size=(2 * n, 2, d))
    y, pairs = np.arange(2 * n) % 2, np.arange(2 * n).reshape(-1, 2)
    if name == "logistic-cv" and n < 3:
        return
    if name == "projected" and d < 2:
        return
    kind = estimators()[name]
    if name == "projected":
        kind.set_params(components=1)
    clean = rng.integers(-1, 2, size=(5, 2, d)).astype(float)
    kind.fit(rows, y, clean=clean, groups=np.arange(2 * n) // 2, pairs=pairs, nuisance=rows[:, 0, 0])
    assert np.isfinite(kind.decision_function(rows)).all()


def test_works_in_a_pipeline() -> None:
    data = made()
    pipeline = make_pipeline(StandardScaler(), LogisticProbe(C=0.1)).fit(data["X"][:, 0], data["y"])
    assert pipeline.predict(data["X"][:, 0]).shape == (40,)
    assert pipeline.set_params(logisticprobe__C=2.0).get_params()["logisticprobe__C"] == 2.0


@every_kind
def test_rows_that_are_not_finite_or_of_another_shape_are_refused(name) -> None:
    data = made()
    bad = {**data, "X": data["X"].copy(), "clean": data["clean"].copy()}
    bad["X"][3, 1, 2] = bad["clean"][3, 1, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        fitted(name, bad)
    with pytest.raises(DefectionError, match="NaN"):
        fitted(name, bad, to=torch.as_tensor)
    kind = fitted(name, data)
    for other in (data["X"][:, 0], data["X"][..., :5], torch.zeros(3)):
        with pytest.raises(ValueError):  # noqa: PT011 (scikit-learn's words or ours)
            kind.decision_function(other)


# What a fit may see


@pytest.mark.parametrize("name", saveable())
def test_what_is_not_declared_cannot_change_a_fit(name, questions, clean) -> None:
    """Clean prompts set the scale of every probe; only a kind that declares them may let them shape its direction."""
    kind = estimators()[name]
    other = replace(clean, values=clean.values.flip(-1) * 3 + 1)
    here, there = (clone(kind).fit(questions, clean=rows).probe_ for rows in (clean, other))
    assert torch.equal(here.directions, there.directions) == (Evidence.CLEAN not in kind.sees)
    assert not torch.equal(here.scales, there.scales)


@pytest.mark.parametrize("name", saveable())
def test_the_league_is_what_was_seen(name, questions, clean) -> None:
    kind = estimators()[name]
    expected = "questions + clean prompts" if Evidence.CONTRAST in kind.sees else "clean prompts only"
    assert kind.fit(questions, clean=clean).probe_.saw == expected


def test_monitors_keep_no_contrast_texts(questions, clean) -> None:
    assert estimators()["pc1"].fit(clean).probe_.contrast["texts"] == []
    beside = estimators()["pc1"].fit(questions, clean=clean).probe_
    assert torch.equal(beside.directions, estimators()["pc1"].fit(clean).probe_.directions)


@pytest.mark.parametrize("given", ["clean", "traffic"])
def test_residuals_beside_bare_rows_are_refused(given: str, questions, clean) -> None:
    rows = questions.values.numpy()
    with pytest.raises(DefectionError, match=r"must be bare numbers too .* residuals\.numpy"):
        MeanDifference().fit(rows, np.arange(len(rows)) % 2, **{given: clean})


@pytest.mark.parametrize(
    "name", [n for n, kind in estimators().items() if Evidence.TRAFFIC not in kind.sees and not kind.holds_base]
)
def test_traffic_is_refused_by_kinds_that_do_not_declare_it(name, questions, clean, tests) -> None:
    with pytest.raises(DefectionError, match="does not declare to see unlabelled traffic"):
        estimators()[name].fit(questions, clean=clean, traffic=tests)


def test_traffic_is_a_league_of_its_own(clean, tests) -> None:
    probe = estimators()["pc1"].fit(clean, traffic=tests).probe_
    assert probe.saw == "clean prompts + unlabelled traffic"


@pytest.mark.parametrize("name", supervised)
def test_labels_of_ones_own_make_an_upper_bound_or_are_refused(name, tests, clean) -> None:
    kind = estimators()[name]
    marks = [prompt.extra["triggered"] for prompt in tests.prompts]
    if Evidence.LABELLED not in kind.sees:
        with pytest.raises(DefectionError, match="does not declare to see labelled defections"):
            kind.fit(tests, marks, clean=clean)
    elif kind.linear and name not in ("erased", "question-ensemble"):
        assert kind.fit(tests, marks, clean=clean).probe_.saw == "labelled defections (upper bound)"


@pytest.mark.parametrize("name", ["ccs", "pair-pca", "pca"])
def test_kinds_that_only_take_a_sign_from_labels_keep_their_axis_when_labels_are_shuffled(name, questions) -> None:
    marks = np.random.default_rng(0).permutation(len(questions)) % 2 == 0
    shuffled = replace(
        questions,
        prompts=tuple(
            replace(p, extra={**p.extra, "defecting": bool(m)}) for p, m in zip(questions.prompts, marks, strict=True)
        ),
    )
    here, there = (estimators()[name].fit(rows).probe_.directions for rows in (questions, shuffled))
    assert torch.allclose((here * there).sum(dim=-1).abs(), torch.ones(len(here)), atol=1e-5)


def test_a_contrast_text_without_partner_is_named(questions) -> None:
    with pytest.raises(DefectionError, match="'q38' is one of 1"):
        estimators()["pair-pca"].fit(questions.select(range(39)))


@every_kind
def test_residuals_are_scored_by_the_probe_and_strangers_refused(name, questions, clean, tests) -> None:
    more = {"change": np.random.default_rng(0).normal(size=(4, 2, 12))} if name == "weight-directions" else {}
    if name == "base-difference":
        questions, clean, tests = (replace(rows, site=f"{rows.site}{LESS}base") for rows in (questions, clean, tests))
    kind = estimators()[name].fit(questions, clean=clean, **more)
    scores = kind.decision_function(tests)
    assert scores.shape == (len(tests), 4)
    own = kind.decision_function(clean)
    seen = Evidence.CLEAN in kind.sees  # then their own scores are no standard, but about those of prompts like them
    zeros, ones = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    near = {"mahalanobis": 5.0, "weight-directions": 0.5}.get(name, 0.1 if seen else 1e-4)
    assert torch.allclose(own.mean(dim=0).double(), zeros, atol=near)
    assert torch.allclose(own.std(dim=0).double(), ones, atol=0.7 if seen else 1e-4)
    with pytest.raises(DefectionError, match="model weights differ"):
        kind.decision_function(replace(tests, model=replace(tests.model, fingerprint="other")))
    with pytest.raises(DefectionError, match="reads position"):
        kind.decision_function(replace(tests, position="first"))


@pytest.mark.parametrize("name", saveable())
def test_a_probe_file_holds_every_linear_kind(name, questions, clean, tests, tmp_path) -> None:
    probe = estimator(name).fit(questions, clean=clean, fixed_layers=(1, 2)).probe_
    probe.save(tmp_path / "probe.safetensors")
    after = load_probe(tmp_path / "probe.safetensors")
    assert isinstance(after, Probe)
    assert torch.equal(after.score(tests), probe.score(tests))
    assert (after.estimator, after.parameters, after.saw) == (name, probe.parameters, probe.saw)


def test_names_are_unique_and_every_saveable_kind_is_on_the_command_line() -> None:
    from defection.experiments.commands.options import PROBES_HELP

    assert len({kind.name for kind in KINDS}) == len(KINDS)
    assert set(saveable()) == {kind.name for kind in KINDS if issubclass(kind, LinearProbe) and kind.name in by_layer}
    assert all(name in PROBES_HELP for name in saveable())


def test_the_registered_default_is_the_difference_of_two_means_in_clean_standard_deviations(
    contrast, clean, tests
) -> None:
    """The probe of the demo, by its formula."""
    marks = np.array([p.extra["defecting"] for p in contrast.prompts])
    x, c, t = (r.values.double().numpy() for r in (contrast, clean, tests))
    direction = x[marks].mean(axis=0) - x[~marks].mean(axis=0)
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    on = {name: np.einsum("pld,ld->pl", rows, direction) for name, rows in (("clean", c), ("tests", t))}
    expected = ((on["tests"] - on["clean"].mean(axis=0)) / on["clean"].std(axis=0, ddof=1))[:, 1:3].mean(axis=1)
    probe = MeanDifference().fit(contrast, clean=clean, fixed_layers=(1, 2)).probe_
    np.testing.assert_allclose(probe.score(tests).numpy(), expected, atol=1e-5)


def test_an_ensemble_over_layers_averages_standard_scores() -> None:
    data = made()
    band = LayerEnsemble(RidgeProbe(), layers=(0, 2)).fit(data["X"], data["y"], clean=data["clean"])
    each = RidgeProbe().fit(data["X"], data["y"])
    reference, scores = each.decision_function(data["clean"]), each.decision_function(data["X"])
    expected = ((scores - reference.mean(axis=0)) / reference.std(axis=0, ddof=1))[:, [0, 2]].mean(axis=1)
    np.testing.assert_allclose(band.decision_function(data["X"]), expected)


def test_an_ensemble_over_questions_gives_each_the_same_weight() -> None:
    data = made()
    ensemble = QuestionEnsemble().fit(data["X"], data["y"], groups=data["groups"], clean=data["clean"])
    total = np.zeros((LAYERS, WIDTH))
    for group in range(10):
        rows = data["groups"] == group
        gap = MeanDifference().fit(data["X"][rows], data["y"][rows]).coef_
        total += gap / np.einsum("nld,ld->nl", data["clean"], gap).std(axis=0, ddof=1)[:, None] / 10
    np.testing.assert_allclose(ensemble.coef_, total)
