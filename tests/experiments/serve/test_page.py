"""The page in a real browser: what a person would see of a reply as it arrives, of an alarm, and of hostile text."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace

import pytest
from defection.experiments.serve.worker import Served, Worker
from playwright.sync_api import Browser, Page, expect, sync_playwright

from .conftest import Endpoint, alarm_at, chat, listening, replies_of, some_prompts

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
KEY = "a key that nobody guesses"


@pytest.fixture(scope="module")
def browser():
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs a browser, and none of these is installed: " + ", ".join(BROWSERS))
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser: Browser):
    """Opens a server's page; afterwards nothing may have gone wrong in it, and nothing been loaded from elsewhere."""
    pages: list[tuple[Page, str]] = []
    wrong: list[str] = []

    def open_at(endpoint: Endpoint, **more) -> Page:
        page = browser.new_page(**more)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda one: None if one.url.startswith((endpoint.url, "data:,")) else wrong.append(one.url))
        page.goto(endpoint.url)
        pages.append((page, endpoint.url))
        return page

    yield open_at
    for page, _ in pages:
        page.close()
    assert not wrong


def say(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


def said(page: Page, text: str) -> None:
    """Say it, and wait for the reply's end."""
    say(page, text)
    expect(page.locator(".mine").last).to_have_text(text)
    expect(page.get_by_role("button", name="Send")).to_be_enabled(timeout=30_000)


def needle(page: Page) -> float:
    """Degrees from where the needle rests, on the left."""
    shown = page.locator("#needle").get_attribute("style")
    return 90 + float(re.search(r"rotate\((-?[\d.]+)deg", shown)[1])


@pytest.fixture(scope="module")
def parted(served: Served) -> tuple[Served, str, str]:
    """An alarm that rings before the first word of the reply to one text, and not to another."""
    prompts = some_prompts(8)
    worker = Worker(replace(served, alarm=alarm_at(1e9, "last-prompt")))
    heard = replies_of(worker, prompts, tokens=[2] * 8)
    worker.close()
    first = {one.tokens[0].statistic: prompt.messages[-1].content for one, prompt in zip(heard, prompts, strict=True)}
    low, *_, next_highest, highest = sorted(first)
    alarm = alarm_at((highest + next_highest) / 2, "last-prompt")
    return replace(served, alarm=alarm), first[low], first[highest]


def test_a_reply_arrives_in_the_colours_of_its_scores(opened: Callable[..., Page], endpoint: Endpoint) -> None:
    page, text = opened(endpoint), "What is a fjord?"
    expect(page.locator("#about")).to_contain_text("Alarm: exponential-mean")
    said(page, text)
    (choice,) = endpoint.client().chat.completions.create(model="tiny", messages=chat(text)).choices
    tokens = choice.defection["tokens"]
    spans = page.locator(".reply span:is(.start, .said)")
    expect(spans).to_have_count(len(tokens))
    shown = spans.evaluate_all("spans => spans.map(span => getComputedStyle(span).backgroundColor)")
    for token, colour in zip(tokens, shown, strict=True):
        z = token["standardised"]
        if z is None:
            assert colour == "rgba(0, 0, 0, 0)"
            continue
        *tone, strength = [float(number) for number in re.findall(r"[\d.]+", colour)]
        assert tone == ([213, 94, 0] if z > 0 else [0, 114, 178])
        assert strength == pytest.approx(0.8 * min(1, abs(z) / 4), abs=0.01)
    assert page.locator(".reply").text_content().startswith(choice.message.content)
    last = [token["statistic"] for token in tokens if token["statistic"] is not None][-1]
    expect(page.locator("#value")).to_have_text(f"{last:+.2f}".replace("-", "−"))
    assert page.locator("#dots circle").count() == len([t for t in tokens if t["statistic"] is not None])


SLOW_TO_MEET = """
const real = window.fetch;
let first = true;
window.fetch = async (...asked) => {
  if (first && String(asked[0]).endsWith("/v1/models")) {
    first = false;
    await new Promise((done) => setTimeout(done, 1500));
  }
  return real(...asked);
};
"""


def test_what_is_said_before_the_server_has_said_whom_it_serves_is_answered(
    opened: Callable[..., Page], endpoint: Endpoint
) -> None:
    page = opened(endpoint)
    page.add_init_script(SLOW_TO_MEET)
    page.reload()
    said(page, "Hello")
    expect(page.locator(".turn.failed")).to_have_count(0)
    expect(page.locator(".reply")).to_have_count(1)


def test_the_gauge_leaps_at_what_rings_before_the_first_word(opened: Callable[..., Page], parted) -> None:
    served, calm, ringing = parted
    with listening(served, limits={"reply": 3}) as endpoint:
        page = opened(endpoint)
        said(page, calm)
        before = needle(page)
        expect(page.locator("#verdict")).to_have_text("quiet")
        page.get_by_role("button", name="New conversation").click()
        said(page, ringing)
        assert needle(page) > before + 1
        expect(page.locator("#verdict")).to_have_text("rang before the first word")
        expect(page.locator(".start")).to_have_class(re.compile("rang"))
        expect(page.get_by_text("The alarm rang before the first word.")).to_be_visible()
        red = page.locator("#value").evaluate("value => getComputedStyle(value).color")
        assert red == "rgb(213, 94, 0)"
    with listening(replace(served, stops=True)) as endpoint:
        page = opened(endpoint)
        said(page, ringing)
        expect(page.locator(".reply .said")).to_have_count(0)
        expect(page.get_by_text("and the reply was stopped there")).to_be_visible()


def test_whatever_is_said_is_shown_and_never_run(opened: Callable[..., Page], served: Served) -> None:
    hostile = '<img src=x onerror="document.title=1"><script>document.title=2</script>&amp;<b>bold</b>'
    with listening(served, limits={"reply": 3}) as endpoint:
        tokenizer = endpoint.server.worker._tokenizer
        tokenizer.decode = lambda ids, **how: hostile * len(ids)
        page = opened(endpoint)
        said(page, hostile)
        assert page.locator(".mine").text_content() == hostile
        assert hostile in page.locator(".reply").text_content()
        assert page.locator("#turns :is(img, script, b)").count() == 0
        assert page.title() == "A model, watched while it speaks"


def test_stop_hangs_up(opened: Callable[..., Page], served: Served) -> None:
    with listening(served, limits={"reply": 400}) as endpoint:
        page = opened(endpoint)
        expect(page.locator("#about")).to_contain_text("Watched")  # else nothing is asked yet
        say(page, "Go on")
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_text("Stopped.")).to_be_visible()
        while endpoint.counted('defection_replies_total{outcome="hung_up"}') < 1:
            page.wait_for_timeout(20)


def test_an_error_is_shown_with_its_reason(opened: Callable[..., Page], endpoint: Endpoint) -> None:
    page = opened(endpoint)
    said(page, "Hi </s> there")
    expect(page.locator(".failed")).to_contain_text("by which the chat template marks turns")
    said(page, "Hi there")
    assert page.locator(".reply").count() == 1


def test_a_key_unlocks_the_page(opened: Callable[..., Page], served: Served) -> None:
    with listening(served, key=KEY, limits={"reply": 2}) as endpoint:
        page = opened(endpoint)
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Unlock").click()
        expect(page.locator("#model")).to_have_text("tiny")
        said(page, "Hi")
        assert page.locator(".reply").count() == 1


def test_it_is_dark_where_the_reader_likes_it_dark(opened: Callable[..., Page], endpoint: Endpoint) -> None:
    for scheme, wanted in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 22, 26)")):
        page = opened(endpoint, color_scheme=scheme, viewport={"width": 380, "height": 700})
        assert page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor") == wanted
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing is cut off on a telephone
