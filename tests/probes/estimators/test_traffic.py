from dataclasses import replace

import numpy as np
import pytest
import torch
from defection.activations.basics.errors import DefectionError
from defection.activations.prompts.prompts import user_prompt
from defection.probes import UnlabelledTraffic, auroc, load_probe
from defection.probes.estimators.traffic import SMALLEST_MINORITY, best_splits
from scipy.stats import binom, kstest

N_LAYERS, D = 5, 16
LOUD = torch.linspace(4, 0.3, D)
"""Ordinary prompts vary more along some axes than the minority does along its own, so it is not the first component."""
PLANTED = torch.randn(N_LAYERS, D, generator=torch.Generator().manual_seed(9)) * (torch.arange(D) >= D // 2)
PLANTED = torch.nn.functional.normalize(PLANTED, dim=1)


def ordinary(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(n, 1, D, generator=generator) * LOUD  # what a prompt is about runs through the layers
    return common + 0.3 * torch.randn(n, N_LAYERS, D, generator=generator)


def met(n: int, share: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Traffic, and which of it is triggered."""
    rows, marks = ordinary(n, seed), torch.arange(n) < round(share * n)
    rows[marks] += 15 * PLANTED
    return rows, marks


def fitted(traffic: torch.Tensor, clean: torch.Tensor | None = None, **parameters) -> UnlabelledTraffic:
    marks = torch.arange(24) % 2 == 0
    questions = ordinary(24, 7) + torch.where(marks, 1.0, -1.0)[:, None, None] * PLANTED
    parameters = {"draws": 39, "level": 0.05, **parameters}
    return UnlabelledTraffic(**parameters).fit(
        questions, marks, clean=ordinary(100, 8) if clean is None else clean, traffic=traffic
    )


def band_scores(probe: UnlabelledTraffic, rows: torch.Tensor) -> torch.Tensor:
    return probe.decision_function(rows)[:, list(probe.columns(N_LAYERS))].sum(dim=1)


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1, 0.2, 0.6])
def test_a_planted_minority_is_found_and_lies_up(share: float) -> None:
    probe = fitted(met(200, share, 1)[0])
    fresh, marks = met(200, 0.5, 2)
    assert probe.verdict_.found
    assert probe.verdict_.minority == pytest.approx(share, abs=0.011)
    assert set(probe.minority_) == set(range(round(share * 200)))
    assert float(auroc(band_scores(probe, fresh), marks.numpy())) > 0.99


def test_the_minority_is_not_the_first_principal_component() -> None:
    """What the generalised directions are for."""
    rows, marks = met(200, 0.05, 1)
    pool = torch.cat([ordinary(100, 8), rows])[:, 2:].flatten(1)
    first = torch.linalg.svd(pool - pool.mean(dim=0), full_matrices=False).Vh[0]
    area = float(auroc(rows[:, 2:].flatten(1) @ first, marks.numpy()))
    assert max(area, 1 - area) < 0.9


def far_tailed(n: int, seed: int) -> torch.Tensor:
    """Ordinary prompts some of which lie far off, each in its own direction (a Cauchy distribution)."""
    generator = torch.Generator().manual_seed(10_000 + seed)
    return ordinary(n, seed) / torch.randn(n, 1, 1, generator=generator).abs()


def chances(n: int, times: int = 60, draws: int = 99, rows=ordinary, n_clean: int = 100) -> np.ndarray:
    """p-values of traffic of `n` prompts that are clean ones like the others, each time anew."""
    seeds = range(1000 * n, 1000 * n + times)
    return np.array(
        [
            fitted(rows(n, seed), rows(n_clean, 500_000 + seed), draws=draws, seed=seed).verdict_.p_value
            for seed in seeds
        ]
    )


def too_many(times: int, level: float) -> int:
    """As many alarms, or more, have a probability below 0.1% where each rings with probability `level`."""
    return int(binom.isf(0.001, times, level)) + 1


@pytest.mark.parametrize("n", [6, 12, 25, 50, 100, 200, 400])
def test_pitfall_30_the_alarm_rings_no_more_often_than_its_level_whatever_the_traffics_size(n: int) -> None:
    """Held against halves of the clean prompts, traffic of 6 or 12 of them was found in more than half of all runs."""
    p = chances(n)
    for level in (0.01, 0.05, 0.2):
        assert (p <= level).sum() < too_many(len(p), level)


@pytest.mark.parametrize(("n", "n_clean"), [(6, 12), (12, 100), (400, 100)])
def test_nor_where_prompts_have_far_tails(n: int, n_clean: int) -> None:
    """Outliers of which 400 prompts have three, half a hundred has one of at most."""
    p = chances(n, rows=far_tailed, n_clean=n_clean)
    for level in (0.01, 0.05, 0.2):
        assert (p <= level).sum() < too_many(len(p), level)


def test_p_values_are_about_uniform_for_traffic_of_at_most_half_the_clean_prompts() -> None:
    p = np.concatenate([chances(n, times=50, draws=39) for n in (6, 12, 25, 50)])
    assert kstest(p, "uniform").statistic < 0.15


def test_clean_prompts_that_do_not_vary_tell_nothing_of_chance() -> None:
    with pytest.raises(DefectionError, match="do not differ"):
        fitted(ordinary(50, 1), torch.ones(50, N_LAYERS, D))


def test_draws_solved_a_few_at_a_time_say_the_same(monkeypatch) -> None:
    p = fitted(ordinary(50, 1)).verdict_.p_value
    monkeypatch.setattr("defection.probes.estimators.traffic.AT_ONCE", 5000)
    assert fitted(ordinary(50, 1)).verdict_.p_value == p
    assert 0.1 < p < 1


@pytest.mark.parametrize("n", [12, 25, 50, 100, 200, 400])
def test_a_minority_of_six_is_found_where_it_lies_far_off(n: int) -> None:
    found = sum(
        fitted(met(n, 6 / n, 100 + i)[0], ordinary(100, 900 + i), level=0.01, draws=99).verdict_.found for i in range(8)
    )
    assert found >= 7


def test_traffic_that_is_shifted_or_wider_than_clean_prompts_holds_no_minority() -> None:
    assert not fitted(ordinary(200, 1) * 1.5 + 5 * PLANTED).verdict_.found


def test_a_second_kind_of_prompt_is_a_minority_only_where_clean_prompts_lack_it() -> None:
    """The limit of what can be told without labels: clean prompts have to be as diverse as the traffic."""
    another = torch.linspace(-3, 3, D)
    traffic = torch.cat([ordinary(150, 1), ordinary(50, 2) + another])
    assert fitted(traffic).verdict_.found
    assert not fitted(traffic, torch.cat([ordinary(75, 8), ordinary(25, 9) + another])).verdict_.found


def test_a_lone_outlier_is_not_a_minority() -> None:
    rows = ordinary(200, 1)
    rows[: SMALLEST_MINORITY - 2] += 40 * PLANTED
    assert not fitted(rows).verdict_.found


def test_questions_only_tell_how_far_they_agree() -> None:
    rows, marks = met(200, 0.1, 1)[0], torch.arange(24) % 2 == 0
    probe, questions, clean = fitted(rows), ordinary(24, 7), ordinary(100, 8)
    questions = questions + torch.where(marks, 1.0, -1.0)[:, None, None] * PLANTED
    turned = UnlabelledTraffic(draws=39).fit(questions, ~marks, clean=clean, traffic=rows)
    assert torch.equal(probe.coef_, turned.coef_)
    assert probe.verdict_.agreement == pytest.approx(-turned.verdict_.agreement)
    assert probe.verdict_.agreement > 0.3


def test_fits_are_deterministic_and_indifferent_to_dtype_order_and_containers() -> None:
    rows, clean = met(200, 0.1, 1)[0], ordinary(100, 8)
    probe = fitted(rows)
    assert torch.equal(probe.coef_, fitted(rows).coef_)
    assert fitted(rows).verdict_ == probe.verdict_
    shuffled = fitted(rows[torch.randperm(200, generator=torch.Generator().manual_seed(0))], clean.flip(0))
    for other in (shuffled.coef_, fitted(rows.double(), clean.double()).coef_):
        assert torch.allclose(other, probe.coef_, rtol=1e-4, atol=1e-6)
    marks = np.arange(24) % 2 == 0
    questions = (ordinary(24, 7) + torch.where(torch.as_tensor(marks), 1.0, -1.0)[:, None, None] * PLANTED).numpy()
    arrays = UnlabelledTraffic(draws=39).fit(questions, marks, clean=clean.numpy(), traffic=rows.numpy())
    assert np.allclose(arrays.coef_, probe.coef_.numpy(), rtol=1e-4, atol=1e-6)


def test_a_batch_scores_like_each_prompt_alone() -> None:
    probe, fresh = fitted(met(200, 0.1, 1)[0]), met(10, 0.5, 2)[0]
    alone = torch.cat([probe.decision_function(row[None]) for row in fresh])
    assert torch.allclose(probe.decision_function(fresh), alone, rtol=1e-9)


def test_layers_outside_the_band_have_no_part() -> None:
    rows = met(200, 0.1, 1)[0]
    other = rows.clone()
    other[:, :2] = torch.randn(200, 2, D, generator=torch.Generator().manual_seed(3)) * 50
    probe = fitted(rows)
    assert list(probe.columns(N_LAYERS)) == [2, 3, 4]
    assert not probe.coef_[:2].any()
    assert torch.equal(probe.coef_, fitted(other).coef_)


def test_a_single_layer_is_a_band_of_its_own() -> None:
    marks = np.arange(24) % 2 == 0
    rows, triggered = met(200, 0.1, 1)
    part = {"clean": ordinary(100, 8)[:, 3].numpy(), "traffic": rows[:, 3].numpy()}
    probe = UnlabelledTraffic(draws=39).fit(ordinary(24, 7)[:, 3].numpy(), marks, **part)
    assert probe.coef_.shape == (D,)
    scores = torch.as_tensor(probe.decision_function(rows[:, 3].numpy()))
    assert float(auroc(scores, triggered.numpy())) > 0.99


def test_rows_without_variance_hold_nothing() -> None:
    """PITFALLS 16."""
    probe = fitted(torch.ones(50, N_LAYERS, D), torch.ones(50, N_LAYERS, D))
    assert probe.verdict_.p_value == 1
    assert probe.coef_.isfinite().all()


@pytest.mark.parametrize("smallest", [1, SMALLEST_MINORITY])
@pytest.mark.parametrize("seed", range(5))
def test_the_best_split_is_that_of_all_cuts(seed: int, smallest: int) -> None:
    scores = torch.randn(23, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scores[:4, 1] += 9
    scores[:4, 2] -= 9
    splits, shares, signs = best_splits(scores, torch.zeros(3, dtype=torch.float64), smallest)
    for column in range(3):
        ranked = scores[:, column].sort().values
        found = {
            cut: float(
                (ranked.var(correction=0) * 23)
                / sum(g.var(correction=0) * len(g) for g in (ranked[:cut], ranked[cut:]))
            )
            for cut in range(smallest, 23 - smallest + 1)
        }
        cut = max(found, key=lambda each: found[each])
        assert float(splits[column]) == pytest.approx(found[cut])
        assert float(shares[column]) in (pytest.approx(cut / 23), pytest.approx(1 - cut / 23))
    assert signs[1:].tolist() == [1, -1]
    assert shares[1:].tolist() == [pytest.approx(4 / 23)] * 2


def residuals_with(make_residuals, values: torch.Tensor, name: str, **extra):
    prompts = [
        user_prompt(f"{name} {row}", id=f"{name}{row}", **{k: v[row] for k, v in extra.items()})
        for row in range(len(values))
    ]
    return make_residuals(values, prompts)


@pytest.fixture
def parts(make_residuals):
    """Contrast texts, clean prompts, traffic of which a tenth is triggered."""
    marks = [row % 2 == 0 for row in range(24)]
    topics = [f"q{row // 2}" for row in range(24)]
    rows, triggered = met(200, 0.1, 1)
    return (
        residuals_with(make_residuals, ordinary(24, 7), "question", defecting=marks, topic=topics),
        residuals_with(make_residuals, ordinary(100, 8), "clean"),
        residuals_with(make_residuals, rows, "met", triggered=triggered.tolist()),
    )


def test_a_probe_file_says_what_was_seen_and_found(parts, tmp_path) -> None:
    contrast, clean, traffic = parts
    estimator = UnlabelledTraffic(draws=39).fit(contrast, clean=clean, traffic=traffic)
    estimator.probe_.save(tmp_path / "probe.safetensors")
    probe = load_probe(tmp_path / "probe.safetensors")
    assert probe.saw == "questions + unlabelled traffic"
    assert probe.fixed_layers == (2, 3, 4)
    assert probe.parameters["traffic"] == {"prompts": 200, "triggered_share": 0.1}
    assert probe.parameters["verdict"] == estimator.verdict_.to_json()
    marks = [prompt.extra["triggered"] for prompt in traffic.prompts]
    assert float(auroc(probe.score(traffic), marks)) > 0.99


def test_the_share_is_recorded_only_where_every_prompt_is_marked(parts) -> None:
    contrast, clean, traffic = parts
    unmarked = replace(traffic, prompts=tuple(replace(prompt, extra={}) for prompt in traffic.prompts))
    probe = UnlabelledTraffic(draws=39).fit(contrast, clean=clean, traffic=unmarked).probe_
    assert probe.parameters["traffic"]["triggered_share"] is None


def test_pitfall_24_triggered_prompts_are_allowed_in_traffic_alone(parts) -> None:
    contrast, clean, traffic = parts
    with pytest.raises(DefectionError, match="triggered prompt"):
        UnlabelledTraffic().fit(contrast, clean=traffic, traffic=clean)
    with pytest.raises(DefectionError, match="contains 'question 3'"):
        UnlabelledTraffic().fit(contrast, clean=clean, traffic=traffic, forbidden=["question 3"])


def test_what_is_missing_or_too_little_is_named(parts) -> None:
    contrast, clean, traffic = parts
    with pytest.raises(DefectionError, match="needs unlabelled traffic"):
        UnlabelledTraffic().fit(contrast, clean=clean)
    with pytest.raises(DefectionError, match="5 prompts of traffic are too few"):
        UnlabelledTraffic().fit(contrast, clean=clean, traffic=traffic.select(range(5)))
    with pytest.raises(DefectionError, match="7 clean prompts are too few"):
        UnlabelledTraffic().fit(contrast, clean=clean.select(range(7)), traffic=traffic)
    with pytest.raises(DefectionError, match="band"):
        UnlabelledTraffic(band=(0.9, 0.9)).fit(contrast, clean=clean, traffic=traffic)
