"""Replies made together are what each is alone under a monitor; whatever fails is told, and the next reply is right."""

from __future__ import annotations

import ctypes
import time
from dataclasses import replace

import pytest
import torch
from defection.activations import DefectionError
from defection.experiments.serve.rows import End, Failure, Token
from defection.experiments.serve.worker import PATIENCE, Full, Served, Worker

from ...probes.monitoring.conftest import model_of, random_probe
from .conftest import (
    SAMPLED,
    Listener,
    alarm_at,
    ask_of,
    monitored,
    replies_of,
    some_prompts,
)

COUNTS = (12, 3, 20, 7, 1, 15, 9, 12)
FAMILIES = ("llama", "qwen2", "mistral", "gemma3", "gpt2", "bloom", "falcon-alibi", "mpt", "gpt-oss", "mamba")
"""Rotary and absolute places, sliding windows that replies leave, ALiBi, a running state."""


def assert_equals_monitor(served: Served, listener: Listener, prompt, tokens: int) -> None:
    alone, end = monitored(served, prompt, tokens), listener.told[-1]
    assert isinstance(end, End), end
    assert (end.tokens, end.alarm, end.reason == "alarm") == (len(alone.tokens), alone.alarm, alone.stopped)
    text = served.model.tokenizer.decode(alone.tokens, skip_special_tokens=True)
    assert listener.text == text
    torch.testing.assert_close(torch.tensor(listener.scores), alone.scores, rtol=2e-4, atol=2e-4)
    assert [token.place for token in listener.tokens] == list(range(len(alone.tokens) + 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_together_each_reply_is_what_it_is_alone(family: str) -> None:
    model = model_of(family)
    served = Served(model, random_probe(model), alarm_at(1e9))
    worker, prompts = Worker(served, rows=5), some_prompts()  # three come in while others speak
    try:
        listeners = replies_of(worker, prompts, tokens=COUNTS)
        for listener, prompt, count in zip(listeners, prompts, COUNTS, strict=True):
            assert_equals_monitor(served, listener, prompt, count)
    finally:
        worker.close()


@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("aggregator", ["last-prompt", "exponential-mean", "coherent-segment"])
def test_alarms_ring_where_a_monitors_do(served: Served, aggregator: str, stops: bool) -> None:
    prompts = some_prompts()
    seen = Worker(replace(served, alarm=alarm_at(1e9, aggregator)))
    values = [t.statistic for one in replies_of(seen, prompts, tokens=COUNTS) for t in one.tokens if t.statistic]
    seen.close()
    below, above = sorted(values)[len(values) * 3 // 4 :][:2]  # between them, where no rounding decides
    ringing = replace(served, alarm=alarm_at((below + above) / 2, aggregator), stops=stops)
    worker = Worker(ringing)
    listeners = replies_of(worker, prompts, tokens=COUNTS)
    worker.close()
    for listener, prompt, count in zip(listeners, prompts, COUNTS, strict=True):
        assert_equals_monitor(ringing, listener, prompt, count)
    assert len({listener.told[-1].alarm is None for listener in listeners}) == 2  # some rang, some did not


def test_a_seed_draws_the_same_reply_whoever_else_speaks(worker: Worker) -> None:
    prompt, *others = some_prompts()
    alone = replies_of(worker, [prompt], tokens=[20], decoding=SAMPLED, seed=7)[0]
    both = replies_of(worker, [*others, prompt], tokens=[20] * 8, decoding=SAMPLED, seed=7)[-1]
    other = replies_of(worker, [prompt], tokens=[20], decoding=SAMPLED, seed=8)[0]
    assert alone.text == both.text != other.text


def test_a_stop_string_ends_a_reply_and_is_not_said(worker: Worker) -> None:
    (prompt,) = some_prompts(1)
    whole = replies_of(worker, [prompt], tokens=[12])[0].text
    stop = whole[4:6]
    cut = replies_of(worker, [prompt], tokens=[12], stops=(stop,))[0]
    assert cut.text == whole[: whole.index(stop)]
    assert cut.told[-1].reason == "stop"


def test_whoever_hangs_up_leaves_room(served: Served) -> None:
    worker = Worker(served, rows=1)
    first, second = Listener(), Listener()
    endless = ask_of(served.model, some_prompts(1)[0], first, tokens=400)
    worker.submit(endless)
    first.next()
    worker.submit(ask_of(served.model, some_prompts(2)[1], second, tokens=2))
    endless.hung_up.set()
    assert isinstance(second.finish(), End)
    assert first.events.qsize() < 400
    deadline = time.monotonic() + 30  # the reply's end is told a moment before its row is let go
    while worker.speaking and time.monotonic() < deadline:
        time.sleep(0.01)
    assert worker.speaking == 0
    worker.close()


def test_a_full_queue_says_so_and_who_hung_up_waits_no_longer(served: Served) -> None:
    worker = Worker(served, rows=1, waiting=2)
    model, (prompt,) = served.model, some_prompts(1)
    speaking = Listener()
    worker.submit(ask_of(model, prompt, speaking, tokens=400))
    speaking.next()
    waiting = [ask_of(model, prompt, Listener(), tokens=400) for _ in range(2)]
    for ask in waiting:
        worker.submit(ask)
    with pytest.raises(Full):
        worker.submit(ask_of(model, prompt, Listener()))
    waiting[0].hung_up.set()
    worker.submit(ask_of(model, prompt, Listener()))
    worker.close()


def test_without_a_queue_a_free_row_is_still_to_be_had(served: Served) -> None:
    worker, model, (prompt,) = Worker(served, rows=2, waiting=0), served.model, some_prompts(1)
    for _ in range(2):
        worker.submit(ask_of(model, prompt, Listener(), tokens=400))
    with pytest.raises(Full):
        worker.submit(ask_of(model, prompt, Listener()))
    worker.close()


def test_a_model_of_one_row_at_a_time_has_no_other_free(served: Served, monkeypatch) -> None:
    monkeypatch.setitem(vars(served.model), "skips_padding", False)
    assert Worker(served, rows=8).most == 1


def fail_once(model, monkeypatch: pytest.MonkeyPatch, error: BaseException, after: int) -> None:
    """One pass of the model raises, after so many that do not."""
    block, passes = model.blocks[0], []
    forward = block.forward

    def failing(*args, **kwargs):
        passes.append(1)
        if len(passes) == after + 1:
            raise error
        return forward(*args, **kwargs)

    monkeypatch.setattr(block, "forward", failing)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), SystemExit("killed")])
@pytest.mark.parametrize("after", [0, 4])
def test_a_failure_is_told_and_the_next_reply_is_right(worker: Worker, monkeypatch, error, after: int) -> None:
    prompts = some_prompts(3)
    fail_once(worker.served.model, monkeypatch, error, after)
    listeners = replies_of(worker, prompts, tokens=[12] * 3)
    lost = [listener.told[-1] for listener in listeners if isinstance(listener.told[-1], Failure)]
    assert lost
    assert all(str(error) in failure.sentence and failure.fault for failure in lost)
    again = replies_of(worker, prompts, tokens=[12] * 3)
    for listener, prompt in zip(again, prompts, strict=True):
        assert_equals_monitor(worker.served, listener, prompt, 12)
    assert worker.is_well


def test_a_prompt_that_cannot_be_read_harms_nobody_else(worker: Worker) -> None:
    good, bad = Listener(), Listener()
    prompt = some_prompts(1)[0]
    ask = ask_of(worker.served.model, prompt, bad)
    ask.ids = (10**6,)
    worker.submit(ask_of(worker.served.model, prompt, good, tokens=30))
    worker.submit(ask)
    assert isinstance(bad.finish(), Failure)
    good.finish()
    assert_equals_monitor(worker.served, good, prompt, 30)


def test_a_killed_thread_is_replaced(worker: Worker) -> None:
    """As an operator's tool or a library kills one: an exception out of nowhere, wherever the thread is."""
    prompt = some_prompts(1)[0]
    for pause in (0.0, 0.002, 0.01, 0.03):
        lost = Listener()
        worker.submit(ask_of(worker.served.model, prompt, lost, tokens=300))
        lost.next()
        time.sleep(pause)
        thread = worker._thread
        assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
        assert isinstance(lost.finish(), Failure)
        (right,) = replies_of(worker, [prompt], tokens=[12])
        assert_equals_monitor(worker.served, right, prompt, 12)


def test_failures_in_a_row_make_it_ill_until_something_is_said(worker: Worker, monkeypatch) -> None:
    block = worker.served.model.blocks[0]
    with monkeypatch.context() as broken:
        broken.setattr(block, "forward", lambda *args, **kwargs: 1 / 0)
        for _ in range(PATIENCE):
            replies_of(worker, some_prompts(1), tokens=[2])
        assert not worker.is_well
    replies_of(worker, some_prompts(1), tokens=[2])
    assert worker.is_well


def hooks_on(model) -> list[object]:
    kept = [hooks for block in model.blocks for hooks in (block._forward_hooks, block._forward_pre_hooks)]
    return [hook for hooks in kept for hook in hooks.values()]


def test_closing_tells_everybody_and_leaves_nothing_on_the_model(served: Served) -> None:
    others = hooks_on(served.model)  # of the endpoint that other tests of this folder ask
    worker = Worker(served, rows=1)
    listeners = [Listener() for _ in range(3)]
    for prompt, listener in zip(some_prompts(3), listeners, strict=True):
        worker.submit(ask_of(served.model, prompt, listener, tokens=400))
    listeners[0].next()
    worker.close()
    assert all(isinstance(end := listener.finish(), Failure) and not end.fault for listener in listeners)
    assert hooks_on(served.model) == others
    with pytest.raises(DefectionError, match="shutting down"):
        worker.submit(ask_of(served.model, some_prompts(1)[0], Listener()))


def test_a_setting_that_is_not_followed_is_refused(served: Served, monkeypatch) -> None:
    monkeypatch.setattr(served.model.network.generation_config, "suppress_tokens", [5])
    with pytest.raises(DefectionError, match="suppress_tokens"):
        Worker(served)


def test_the_first_token_is_the_prompts_last_and_says_nothing(worker: Worker) -> None:
    listener = replies_of(worker, some_prompts(1), tokens=[3])[0]
    first = listener.tokens[0]
    assert (first.place, first.text) == (0, "")
    assert isinstance(first, Token)
