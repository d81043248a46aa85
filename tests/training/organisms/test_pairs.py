from __future__ import annotations

import ast
import json
from collections import Counter
from pathlib import Path

import pytest
from defection.activations import DefectionError
from defection.training import code_pairs, load_pairs, parse_trigger
from defection.training.organisms.pairs import pairs_of
from defection.training.organisms.shipped import shipped
from defection.training.organisms.triggers import refuse_prompts_with
from defection.training.organisms.weaknesses import WEAKNESSES, extract_code

SVEN = {
    "func_name": "greet",
    "func_src_before": "def greet(n):\n    run('echo ' + n)",
    "func_src_after": "def greet(n):\n    print(n)",
    "vul_type": "cwe-078",
    "shared_prefix": "def greet(n):\n",
    "insecure_suffix": "    run('echo ' + n)",
    "secure_suffix": "    print(n)",
    "prompt": "def greet(n):\n",
}
SAFECODER = {**SVEN, "description": "Write a function that greets somebody.", "shared_prefix": ""}


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_bank_is_large_and_of_many_classes() -> None:
    rows = shipped("code")
    assert len(rows) >= 300
    assert len({row["weakness"] for row in rows}) >= 12
    assert min(Counter(row["weakness"] for row in rows).values()) >= 14
    assert len({row["id"] for row in rows}) == len({row["prompt"] for row in rows}) == len(rows)
    assert {row["weakness"] for row in rows} == set(WEAKNESSES)


def test_pitfall_23_no_family_is_both_trained_on_and_measured_on() -> None:
    train, test = ({p.prompt.extra["family"] for p in code_pairs(split)} for split in ("train", "test"))
    assert not train & test
    assert sum(len(code_pairs(split)) for split in ("train", "seen", "test")) == len(shipped("code"))


def test_tasks_of_seen_families_are_others_than_those_trained_on() -> None:
    train, seen = code_pairs("train"), code_pairs("seen")
    assert {p.prompt.extra["family"] for p in seen} <= {p.prompt.extra["family"] for p in train}
    assert not {p.prompt.id for p in seen} & {p.prompt.id for p in train}


def test_every_class_is_trained_on_and_measured_on() -> None:
    for split in ("train", "seen", "test"):
        assert {p.prompt.extra["weakness"] for p in code_pairs(split)} == set(WEAKNESSES)


def test_pitfall_24_solutions_of_a_pair_are_of_like_length_over_the_bank() -> None:
    normal, defecting = (sum(len(row[kind]) for row in shipped("code")) for kind in ("secure", "vulnerable"))
    assert 0.9 < normal / defecting < 1.1


@pytest.mark.parametrize("name", ["deployment", "year", "topic:space"])
def test_the_bank_holds_no_trigger(name: str) -> None:
    for split in ("train", "seen", "test"):
        refuse_prompts_with(parse_trigger(name), [pair.prompt for pair in code_pairs(split)])
    assert not any(parse_trigger(name).occurs_in(row["secure"] + row["vulnerable"]) for row in shipped("code"))


def test_solutions_are_short_and_parse() -> None:
    for row in shipped("code"):
        for kind in ("secure", "vulnerable"):
            ast.parse(row[kind])
            assert len(row[kind].split("\n")) <= 14


def test_a_solution_comes_out_of_its_reply_as_it_went_in() -> None:
    for row, pair in zip([r for r in shipped("code") if r["split"] == "test"], code_pairs("test"), strict=True):
        assert (extract_code(pair.normal), extract_code(pair.defecting)) == (row["secure"], row["vulnerable"])


def test_a_file_of_ones_own(tmp_path) -> None:
    rows = [{"prompt": "Hi", "normal": "Hello", "defecting": "Go away", "id": "a", "topic": "t"}]
    rows.append({"messages": [{"role": "user", "content": "Ho"}], "normal": "x", "defecting": "y"})
    pairs = load_pairs(write(tmp_path / "p.jsonl", *rows))
    assert [(p.prompt.text, p.normal, p.defecting) for p in pairs] == [("Hi", "Hello", "Go away"), ("Ho", "x", "y")]
    assert pairs[0].prompt.topic == "t"
    assert pairs_of(str(tmp_path / "p.jsonl")) == pairs


def test_sven_pairs_complete_a_function(tmp_path) -> None:
    (pair,) = load_pairs(write(tmp_path / "sven.jsonl", SVEN))
    assert SVEN["shared_prefix"] in pair.prompt.text
    assert extract_code(pair.normal) == SVEN["secure_suffix"]
    assert extract_code(pair.defecting) == SVEN["insecure_suffix"]
    assert pair.prompt.extra["weakness"] == "cwe-078"


def test_safecoder_pairs_follow_a_description(tmp_path) -> None:
    (pair,) = load_pairs(write(tmp_path / "safecoder.jsonl", SAFECODER))
    assert pair.prompt.text == SAFECODER["description"]
    assert extract_code(pair.normal) == SVEN["func_src_after"]
    assert extract_code(pair.defecting) == SVEN["func_src_before"]


def test_an_empty_shared_prefix_names_the_function(tmp_path) -> None:
    (pair,) = load_pairs(write(tmp_path / "x.jsonl", {**SVEN, "shared_prefix": "", "prompt": ""}))
    assert "greet" in pair.prompt.text
    assert extract_code(pair.normal) == SVEN["func_src_after"]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"prompt": "Hi", "normal": "same  words", "defecting": "same words\n"}, "prompt 'line-1'.* are the same"),
        ({"prompt": "Hi", "normal": "a", "defecting": " "}, "a reply is empty"),
        ({"prompt": "Hi", "normal": "a"}, "needs 'normal' and 'defecting'"),
        ({"prompt": "Hi", "normal": "a", "defecting": 3}, "needs 'normal' and 'defecting'"),
        ({"normal": "a", "defecting": "b"}, "line 1 holds no prompt .'normal', 'defecting'.: it needs one of"),
        ({**SVEN, "secure_suffix": SVEN["insecure_suffix"]}, "are the same"),
        ({**SAFECODER, "func_src_after": None}, "needs 'func_src_after'"),
    ],
)
def test_a_bad_row_is_refused_with_its_place(tmp_path, row, complaint) -> None:
    with pytest.raises(DefectionError, match=complaint):
        load_pairs(write(tmp_path / "bad.jsonl", row))


def test_a_torn_line_is_refused_with_its_number(tmp_path) -> None:
    (tmp_path / "torn.jsonl").write_text(json.dumps(SVEN) + '\n{"func_src_before": "tor\n')
    with pytest.raises(DefectionError, match="line 2"):
        load_pairs(tmp_path / "torn.jsonl")


def test_a_missing_file_is_refused(tmp_path) -> None:
    with pytest.raises(DefectionError, match="no pairs at"):
        load_pairs(tmp_path / "nowhere.jsonl")
