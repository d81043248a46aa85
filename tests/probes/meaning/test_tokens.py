from __future__ import annotations

import pytest
import torch
from defection.activations import DefectionError, Message, Prompt, capture, user_prompt
from defection.activations.prompts.rendered import render, tokenize
from defection.probes import MeanDifference, contrast_set
from defection.probes.meaning.tokens import over_layers, token_scale, token_scores

NASTY = '<script>alert("x")</script> & \'$5\' ünïcödé 文字 </span>\n"><img src=x>'


@pytest.fixture(scope="module")
def clean() -> list[Prompt]:
    return [user_prompt(f"{text} number {i}", id=f"k{i}") for i, text in enumerate(["a", "bb", "c", "dd", "e"] * 2)]


@pytest.fixture(scope="module")
def probe(llama, clean):
    return (
        MeanDifference()
        .fit(capture(llama, contrast_set("six")), clean=capture(llama, clean), fixed_layers=(1, 2))
        .probe_
    )


@pytest.fixture(scope="module")
def scale(llama, probe, clean):
    return token_scale(llama, probe, clean)


def test_the_pieces_read_as_the_conversation(llama, probe, scale) -> None:
    prompt = Prompt("p", (Message("system", "Be calm."), Message("user", NASTY)))
    rows = [row for row in token_scores(llama, probe, prompt, scale) if row["layer"] == 1]
    assert "".join(row["token"] for row in rows) == render(llama.tokenizer, [prompt])[0].text
    assert [row["position"] for row in rows] == list(range(len(tokenize(llama.tokenizer, [prompt])[0])))


def test_without_a_template_the_token_that_begins_the_text_is_shown_too(plain_llama, clean) -> None:
    read = MeanDifference().fit(capture(plain_llama, contrast_set("six")), clean=capture(plain_llama, clean)).probe_
    scored = token_scores(plain_llama, read, clean[0], token_scale(plain_llama, read, clean))
    rows = [row for row in scored if row["layer"] == 0]
    assert "".join(row["token"] for row in rows) == "<s>" + render(plain_llama.tokenizer, clean[:1])[0].text


def test_at_the_last_token_the_scale_is_the_probes_own(llama, probe, scale, clean) -> None:
    """Up to the n − 1 of the probe's standard deviation."""
    for prompt in (clean[3], user_prompt("Where is it?")):
        rows = token_scores(llama, probe, prompt, scale)[-4:]
        scores = probe.decision_function(capture(llama, [prompt]))[0] * (len(clean) / (len(clean) - 1)) ** 0.5
        torch.testing.assert_close(torch.tensor([row["score"] for row in rows]), scores, atol=2e-3, rtol=2e-3)


def test_clean_prompts_score_nothing_on_average_at_every_place(llama, probe, scale, clean) -> None:
    scored = [token_scores(llama, probe, prompt, scale) for prompt in clean]
    everything = torch.tensor([row["score"] for rows in scored for row in rows if row["layer"] == 2])
    assert everything.mean().abs() < 1e-3
    begins = [row["score"] for rows in scored for row in rows if row["position"] < len(scale.begin)]
    assert max(map(abs, begins)) < 1e-2


def test_what_all_clean_prompts_share_is_measured_at_its_place_and_only_where_it_matches(llama, scale, clean) -> None:
    ids = tokenize(llama.tokenizer, clean)
    assert all(tuple(row[: len(scale.begin)]) == scale.begin for row in ids)
    assert all(tuple(row[len(row) - len(scale.end) :]) == scale.end for row in ids)
    middle = len(scale.begin)
    strange = [9, 9, 9]
    assert scale.places(strange) == [middle] * 3
    for row in ids:
        places = scale.places(row)
        assert len(places) == len(row)
        assert places[0] == 0
        assert places[-1] == len(scale.offsets) - 1
        assert places == sorted(places)
    assert scale.places(list(scale.begin)) == list(range(middle))


def test_a_band_is_the_mean_of_its_layers(llama, probe, scale, clean) -> None:
    rows = token_scores(llama, probe, clean[0], scale)
    band = over_layers(rows, probe.fixed_layers)
    expected = [row["score"] for row in rows if row["position"] == 4 and row["layer"] in (1, 2)]
    assert band[4]["score"] == pytest.approx(sum(expected) / 2)
    with pytest.raises(DefectionError, match="not there at each of the layers"):
        over_layers(rows, [2, 99])


def test_other_models_and_triggered_prompts_are_refused(llama, gpt2, probe, scale, clean) -> None:
    with pytest.raises(DefectionError, match="cannot score"):
        token_scores(gpt2, probe, clean[0], scale)
    with pytest.raises(DefectionError, match="cannot score"):
        token_scale(gpt2, probe, clean)
    with pytest.raises(DefectionError, match="triggered prompt"):
        token_scale(llama, probe, [*clean, user_prompt("x", triggered=True)])
    with pytest.raises(DefectionError, match="too few"):
        token_scale(llama, probe, clean[:1])
