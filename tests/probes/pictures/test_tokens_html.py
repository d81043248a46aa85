from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from defection.activations import DefectionError
from defection.probes.pictures.tokens_html import tokens_html

NASTY = '<script>alert("x")</script> & \'$5\' ünïcödé 文字 </span>\n"><img src=x>'


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
    page = tokens_html({NASTY: rows_of("<script>", NASTY, "</div>")})
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
    assert "".join(found.said).replace("⏎", "").count(NASTY) == 2


def test_colours_follow_the_sign_and_the_size_and_stop_at_the_limit() -> None:
    table = [{"position": i, "token": "x", "score": s} for i, s in enumerate([-9.0, -4.0, -1.0, 0.0, 1.0, 4.0, 9.0])]
    colours = re.findall(r"rgba\((\d+),\d+,\d+,([\d.]+)\)\">", tokens_html({"one": table}))
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
