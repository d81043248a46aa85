import csv
import gzip
import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
from defection.activations.basics.errors import DefectionError
from defection.activations.basics.tables import read_rows, read_table, write_csv, write_rows
from hypothesis import given
from hypothesis import strategies as st


@dataclass(frozen=True)
class Row:
    name: str
    value: float
    low: float | None = None


values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(["a, b", 'say "x"\n'])


table_rows = st.fixed_dictionaries({"id": st.just("row"), "one": values, "other, one": values})


@given(st.lists(table_rows, min_size=1, max_size=3))
def test_a_csv_file_reads_back(tmp_path_factory, rows) -> None:
    path = tmp_path_factory.mktemp("csv") / "table.csv"
    write_csv(path, rows)
    plain = list(read_table(path))
    path.unlink()
    write_csv(path.with_name("table.csv.gz"), rows)
    for read in (plain, list(read_table(path))):
        assert read == rows
        assert [{key: type(value) for key, value in row.items()} for row in read] == [
            {key: type(value) for key, value in row.items()} for row in rows
        ]


def test_columns_are_all_keys_of_the_rows_or_those_asked_for(tmp_path) -> None:
    write_csv(tmp_path / "table.csv", [{"a": 1}, {"a": 2, "b": 3}])
    assert list(read_table(tmp_path / "table.csv")) == [{"a": 1, "b": None}, {"a": 2, "b": 3}]
    write_csv(tmp_path / "empty.csv", [], ["a", "b"])
    assert (tmp_path / "empty.csv").read_text() == "a,b\n"


def test_what_is_no_number_is_null_empty_and_nan_again(tmp_path) -> None:
    rows = [Row("a", 0.1, 0.0), Row("b", math.inf), Row("c", math.nan, math.nan)]
    about = {"what": "three rows"}
    record = write_rows(tmp_path / "table.json", Row, rows, about)
    assert record == json.loads((tmp_path / "table.json").read_text())
    assert record["what"] == "three rows"
    with open(tmp_path / "table.csv", newline="") as file:
        assert [(row["name"], row["value"], row["low"]) for row in csv.DictReader(file)] == [
            ("a", "0.1", "0.0"),
            ("b", "", ""),
            ("c", "", ""),
        ]
    read = read_rows(tmp_path / "table.json", Row)
    assert read[0] == rows[0]
    assert all(math.isnan(row.value) and math.isnan(row.low) for row in read[1:])


def test_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text('{"schema_version": 2, "rows": []}')
    with pytest.raises(DefectionError, match="schema version 2"):
        read_rows(tmp_path / "table.json", Row)


def test_a_table_that_is_named_is_read_whatever_is_packed_beside_it(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", [{"a": 2}])
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"a\n1\n"))
    assert [row["a"] for row in read_table(tmp_path / "t.csv")] == [2]
    (tmp_path / "t.csv").unlink()
    assert [row["a"] for row in read_table(tmp_path / "t.csv")] == [1]
