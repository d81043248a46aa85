from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from defection.activations import DefectionError
from defection.activations.prompts.prompts import last_user, replace_last_user
from defection.activations.prompts.rendered import tokenize
from defection.activations.reading.generate import greedy_replies
from defection.training import replies_to

LENGTH = 6


@pytest.fixture
def many(prompts):
    """Enough prompts for several batches."""
    return [
        replace(replace_last_user(p, f"{last_user(p)} ({copy})"), id=f"{p.id}-{copy}")
        for copy in range(6)
        for p in prompts
    ]


def crashing(after: int):
    """Generation that dies after some batches."""

    def generate(*args, **kwargs):
        for number, batch in enumerate(greedy_replies(*args, **kwargs)):
            if number == after:
                raise KeyboardInterrupt
            yield batch

    return generate


def reply(model, prompts, path: Path | None = None, length: int = LENGTH):
    return replies_to(model, prompts, path, max_new_tokens=length, what="Replying")


@torch.inference_mode()
def test_replies_are_the_greedy_ones_of_a_prompt_alone(model, prompts, replies) -> None:
    end = model.tokenizer.eos_token_id
    for ids, found in zip(tokenize(model.tokenizer, prompts), replies, strict=True):
        said: list[int] = []
        while len(said) < LENGTH and end not in said:
            said.append(int(model.network(torch.tensor([ids + said])).logits[0, -1].argmax()))
        assert list(found.tokens) == [token for token in said if token != end]
        assert found.finished == (end in said)


def test_replies_come_in_the_order_of_the_prompts(prompts, replies) -> None:
    assert [r.id for r in replies] == [p.id for p in prompts]


def test_pitfall_3_a_reply_never_holds_end_or_pad(model, replies) -> None:
    for found in replies:
        assert model.tokenizer.eos_token_id not in found.tokens
        assert len(found.tokens) <= LENGTH


def test_kept_replies_are_read_and_not_made_again(model, prompts, replies, tmp_path, monkeypatch) -> None:
    assert reply(model, prompts, tmp_path / "replies.jsonl") == replies
    monkeypatch.setattr("defection.training.organisms.replies.greedy_replies", crashing(0))
    assert reply(model, prompts, tmp_path / "replies.jsonl") == replies


@pytest.mark.parametrize("torn", [False, True])
def test_pitfall_26_a_crashed_run_is_continued_with_the_same_result(model, many, tmp_path, monkeypatch, torn) -> None:
    whole = reply(model, many, tmp_path / "whole.jsonl")
    path = tmp_path / "replies.jsonl"
    monkeypatch.setattr("defection.training.organisms.replies.greedy_replies", crashing(2))
    with pytest.raises(KeyboardInterrupt):
        reply(model, many, path)
    assert not path.exists()
    if torn:
        partial = path.with_name("replies.jsonl.partial")
        partial.write_bytes(partial.read_bytes()[:-7])
    skipped = []

    def continuing(*args, skip, **kwargs):
        skipped.extend(skip)
        return greedy_replies(*args, skip=skip, **kwargs)

    monkeypatch.setattr("defection.training.organisms.replies.greedy_replies", continuing)
    assert reply(model, many, path) == whole
    assert skipped
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert [p.name for p in tmp_path.glob("*.partial")] == []


def test_what_is_left_of_a_run_over_other_prompts_is_not_used(model, many, tmp_path, monkeypatch) -> None:
    path = tmp_path / "replies.jsonl"
    monkeypatch.setattr("defection.training.organisms.replies.greedy_replies", crashing(2))
    with pytest.raises(KeyboardInterrupt):
        reply(model, many, path)
    monkeypatch.setattr("defection.training.organisms.replies.greedy_replies", greedy_replies)
    assert reply(model, many[::-1], path) == reply(model, many[::-1])


@pytest.mark.parametrize("changed", ["prompts", "length", "model"])
def test_pitfall_12_kept_replies_of_something_else_are_refused(model, prompts, tmp_path, changed) -> None:
    path = tmp_path / "replies.jsonl"
    reply(model, prompts, path)
    stranger = replace(model, identity=replace(model.identity, fingerprint="other"))
    call = {"prompts": (model, prompts[1:]), "length": (model, prompts, path, 3), "model": (stranger, prompts)}[changed]
    with pytest.raises(DefectionError, match="replies of another model, to other prompts or of another length"):
        reply(*call[:2], path, *call[3:])


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x1c"])
def test_replies_may_hold_any_line_break(model, prompts, replies, tmp_path, monkeypatch, character) -> None:
    path = tmp_path / "replies.jsonl"
    reply(model, prompts, path)
    head, *rows = path.read_text(encoding="utf-8").split("\n")[:-1]
    texts = [json.loads(row) | {"text": f"a{character}b"} for row in rows]
    path.write_text("\n".join([head, *(json.dumps(t, ensure_ascii=False) for t in texts)]) + "\n", encoding="utf-8")
    assert [r.text for r in reply(model, prompts, path)] == [f"a{character}b"] * len(prompts)
