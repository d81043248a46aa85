from __future__ import annotations

import pytest
from defection.experiments.run.verdict_calibration import (
    NULLS,
    WORLDS,
    Geometry,
    gap_once,
    level_rows,
    level_table,
    verdicts,
)

SMALL = Geometry(d=48, anisotropic=False, shift=2.0, families=2)


@pytest.fixture(scope="module")
def rows():
    return {row["world"]: row for row in level_rows(40, (SMALL,))}


def test_every_world_has_a_row_whose_rates_lie_in_their_intervals(rows) -> None:
    assert tuple(rows) == WORLDS
    for row in rows.values():
        for name in (*NULLS, "largest"):
            assert row[f"{name} low"] <= row[name] <= row[f"{name} high"]
        # The largest p is at most 0.05 where all of them are, and nowhere else.
        assert row["largest"] <= min(row[name] for name in NULLS)


def test_answers_that_move_the_residual_beat_directions_and_no_shuffle(rows) -> None:
    either = rows["any answer moves"]
    assert either["random"] > either["label_shuffle"]
    assert rows["signal"]["auroc"] > rows["nothing"]["auroc"]


def test_the_same_seed_gives_the_same_organism() -> None:
    assert verdicts(SMALL, "signal", 3) == verdicts(SMALL, "signal", 3)
    assert verdicts(SMALL, "signal", 3) != verdicts(SMALL, "signal", 4)


def test_a_control_that_shows_all_of_it_is_no_alarm_and_one_that_shows_nothing_leaves_it() -> None:
    assert not any(gap_once(0.95, 1.0, 2, seed) for seed in range(5))
    assert all(gap_once(0.95, 0.0, 2, seed) for seed in range(5))


def test_the_table_holds_each_world_once(rows) -> None:
    lines = level_table(list(rows.values())).split("\n")
    assert len(lines) == 2 + len(WORLDS)
    assert all(line.count("|") == lines[0].count("|") for line in lines)
