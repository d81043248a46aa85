"""Tidy tables go to pandas and Parquet, and come back from every file that they were ever written to."""

import builtins
import math
import sys
from pathlib import Path

import pytest
from defection.activations import DefectionError, Table, read_table
from defection.activations.basics.tables import write_csv
from defection.probes.evidence.comparison import ComparisonRow
from defection.probes.evidence.sweep_table import SweepRow, read_sweep, write_sweep

ABOUT = {"model": "m", "probe": "ridge", "contrast": "six", "saw": "questions only", "test_set": "held-out"}
ROWS = Table([SweepRow(layer=3, auroc=0.75, **ABOUT), SweepRow(layer="3-5", auroc=0.5, n_positive=4, **ABOUT)])


def test_a_sweep_goes_to_pandas_and_parquet_and_back(tmp_path: Path) -> None:
    write_sweep(ROWS, tmp_path, {})
    ROWS.to_parquet(tmp_path / "sweep.parquet")
    for file in ("sweep.json", "sweep.csv", "sweep.parquet"):
        back = read_table(tmp_path / file)
        frame = back.to_pandas()
        assert list(frame.columns) == ROWS.columns
        assert frame.auroc.tolist() == [0.75, 0.5]
        assert [str(layer) for layer in frame.layer] == ["3", "3-5"]
        assert frame.n_positive.tolist() == [0, 4]
        assert frame.null_low.isna().all()
    assert read_sweep(tmp_path).to_pandas().equals(ROWS.to_pandas())
    assert ROWS.to_pandas().columns[0] == "model"  # a kind's own columns come first, as in its files


def test_a_compressed_csv_is_found_under_either_name(tmp_path: Path) -> None:
    write_csv(tmp_path / "cells.csv.gz", [{"family": "a", "auroc": 0.25}])
    for name in ("cells.csv", "cells.csv.gz"):
        assert read_table(tmp_path / name) == [{"family": "a", "auroc": 0.25}]


def test_every_stored_table_of_results_is_read() -> None:
    folder = Path(__file__).parents[3] / "results"
    for path in list(folder.rglob("*.csv.gz"))[:6]:
        table = read_table(path)
        assert len(table) > 0
        assert len(table.to_pandas()) == len(table)


def test_tables_stay_lists() -> None:
    assert ROWS[:1] + ROWS[1:] == list(ROWS)
    assert len(repr(ROWS)) < 200
    assert all(len(repr(row)) < 200 for row in ROWS)
    assert math.isnan(ROWS[0].null_low)
    assert Table().to_pandas().empty
    assert ComparisonRow.__repr__ is not object.__repr__


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    for name, said in (
        ("nothing.csv", "does not exist"),
        ("nothing.json", "does not exist"),
        ("other.json", "no rows"),
    ):
        with pytest.raises(DefectionError, match=said):
            read_table(tmp_path / name)
    with pytest.raises(DefectionError, match="mapping"):
        Table([1, 2]).to_pandas()
    with pytest.raises(DefectionError, match="holds dict"):
        Table([{"a": {"b": 1}}]).to_parquet(tmp_path / "no.parquet")
    assert not (tmp_path / "no.parquet").exists()


def test_without_pandas_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name == "pandas":
            raise ImportError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.delitem(sys.modules, "pandas", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DefectionError, match=r"defection-probes\[tables\]"):
        ROWS.to_pandas()
