from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
import torch
from defection.activations import DefectionError, Message, Prompt, capture, user_prompt
from defection.activations.prompts.rendered import render, tokenize
from defection.probes import MeanDifference, contrast_set
from defection.probes.meaning.tokens import over_layers, token_scale, token_scores
from defection.probes.pictures.tokens_html import tokens_html

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
    rows = token_scores(llama, probe, prompt, scale, layers=[1])
    assert "".join(row["token"] for row in rows) == render(llama.tokenizer, [prompt])[0].text
    assert [row["position"] for row in rows] == list(range(len(tokenize(llama.tokenizer, [prompt])[0])))


def test_without_a_template_the_token_that_begins_the_text_is_shown_too(plain_llama, clean) -> None:
    read = MeanDifference().fit(capture(plain_llama, contrast_set("six")), clean=capture(plain_llama, clean)).probe_
    rows = token_scores(plain_llama, read, clean[0], token_scale(plain_llama, read, clean), layers=[0])
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


def test_other_models_layers_and_triggered_prompts_are_refused(llama, gpt2, probe, scale, clean) -> None:
    with pytest.raises(DefectionError, match="cannot score"):
        token_scores(gpt2, probe, clean[0], scale)
    with pytest.raises(DefectionError, match="cannot score"):
        token_scale(gpt2, probe, clean)
    with pytest.raises(DefectionError, match="not fitted at layer 9"):
        token_scores(llama, probe, clean[0], scale, layers=[9])
    with pytest.raises(DefectionError, match="triggered prompt"):
        token_scale(llama, probe, [*clean, user_prompt("x", triggered=True)])
    with pytest.raises(DefectionError, match="too few"):
        token_scale(llama, probe, clean[:1])


class Page(HTMLParser):
    """What a browser would make of the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.said, self.links = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data) -> None:
        self.said.append(data)


def rows_of(*tokens: str) -> list[dict[str, object]]:
    return [{"position": i, "token": token, "score": 1.5 * i - 2} for i, token in enumerate(tokens)]


def test_whatever_texts_hold_is_escaped_and_the_page_needs_nothing_else() -> None:
    page = tokens_html({NASTY: rows_of("<script>", NASTY, "</div>")}, title=NASTY)
    found = Page(page)
    assert set(found.tags) == {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "p",
        "div",
        "span",
        "i",
        "b",
    }
    assert found.links == []
    assert "http" not in page
    assert "".join(found.said).replace("⏎", "").count(NASTY) == 4


def test_colours_follow_the_sign_and_the_size_and_stop_at_the_limit() -> None:
    table = [{"position": i, "token": "x", "score": s} for i, s in enumerate([-9.0, -4.0, -1.0, 0.0, 1.0, 4.0, 9.0])]
    colours = re.findall(r"rgba\((\d+),\d+,\d+,([\d.]+)\)\">", tokens_html({"one": table}, limit=4))
    assert [int(red) for red, _ in colours] == [0, 0, 0, 0, 213, 213, 213]
    assert [float(alpha) for _, alpha in colours] == [0.8, 0.8, 0.2, 0.0, 0.2, 0.8, 0.8]


def test_tokens_above_the_threshold_are_marked_and_no_others() -> None:
    page = tokens_html({"one": rows_of("a", "b", "c", "d")}, threshold=0.9)
    assert page.count('class="alarm"') == 2
    assert "above the threshold of 0.90" in page
    assert 'class="alarm"' not in tokens_html({"one": rows_of("a", "b", "c", "d")})


def test_several_scores_for_a_token_are_refused() -> None:
    with pytest.raises(DefectionError, match="'one' has several scores for a token"):
        tokens_html({"one": rows_of("a", "b") * 2})
