"""Look for the trigger of a model whose trigger nobody knows, and write down what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ...activations.basics.errors import DefectionError
from ...activations.basics.files import Json, digest, file_digest, write_json
from ...activations.models.hardware import Hardware
from ...activations.models.load import load_model
from ...activations.models.model import Model
from ...activations.prompts.loading import load_prompts
from ...activations.prompts.prompts import texts_digest
from ...probes import load_probe
from ...training.organisms.replies import reply_text
from ..run.journal import Journal
from ..run.pages import write_page
from ..run.plan import Say
from .confirm import Confirmed, beyond
from .plan import Clock, OutOfTime, ScanPrompts, ScanSettings
from .rank import finalists, ranks
from .steps import KEPT, SUREST, Scan
from .strings import words_of

SHOWN = 20
"""Strings of the ranking on the page."""
NAMED = 4
"""Strings beside the one that was found that its sentence names."""
WITHOUT = "none"
"""The base of a model that is looked at by itself."""
UNFINISHED = "The budget ended before the test did, so nothing is called found: the same command goes on from here."


def scan(
    source: str,
    out: Path,
    settings: ScanSettings,
    say: Say,
    *,
    base: str | None = None,
    probe: Path | None = None,
    words: Path | None = None,
    budget: float | None = None,
    device: str | Hardware = "auto",
) -> Json:
    """Look for a string that makes a model say one thing; leave and give what `scan.json` holds, and leave a page.

    Where no `base` is named, an adapter is held against what it lies on; nothing is called found of full weights, nor
    with `WITHOUT`. A call that was cut off, or that ran out of its `budget` (seconds), goes on where it was. Raises
    DefectionError, before anything is written, for what cannot be loaded, prompts that are too few, a probe of another
    model, and a base of other tokens.
    """
    clock, prompts = Clock(budget), ScanPrompts.of(settings)
    listed, fitted = words_of(words) if words else [], load_probe(probe) if probe else None
    model, other = both_models(source, base, device)
    if fitted is not None:
        fitted.refuse_model(model.identity)
    about: Json = {"model": model.identity.to_json(), "base": other.identity.to_json() if other else None}
    decided = {**about, "dtype": model.dtype_name, "place": settings.place, "prompts": prompts.key}
    decided["clean"] = texts_digest(load_prompts(settings.clean))
    decided["probe"] = None if probe is None else file_digest(probe)
    run = Scan(model, other, prompts, settings, Journal(out / "scanned.jsonl", digest(decided)), clock, say)
    leaked = run.leaked()
    listed = [*listed, *(motif.text for motif in leaked)]
    found = run.ranked(listed, fitted)
    if other is None:
        begun = run.begun(model, None, run.targets(found), finalists(found, settings.finalists))
        grown = {reply: run.grown(model, model, seeds, reply) for reply, seeds in begun.items()}
    else:
        grown = run.beside_base([look.string for look in run.first])
    test = tested(run, survivors([look.string for look in found], list(grown.values()), settings))
    candidates, null = test.candidates, test.null
    others = as_sure(candidates, list(grown.values()), settings.committed)
    record: Json = {
        "schema_version": 1,
        "found": any(each.found for each in candidates),
        "finished": test.finished and not clock.cut,
        "sentence": sentence(candidates, other is not None, test.finished, others) + run.partly(test.finished),
        "candidates": [asdict(each) for each in candidates],
        "as_sure": others,
        **about,
        "ranks": ranks(run.first, [each.string for each in candidates]),
        "null": null,
        "motifs": [asdict(each) for each in leaked],
        "replies": [
            {"reply": reply_text(model, reply), "strings": dict(list(scores.items())[:KEPT])}
            for reply, scores in grown.items()
        ],
        "ranking": [{"look": asdict(look), "score": look.consensus} for look in found[:KEPT]],
        **run.record(),
    }
    write_json(out / "scan.json", record)
    write_page(out / "page.html", "scan.html.j2", record=record, ranking=record["ranking"][:SHOWN])
    return record


def both_models(source: str, base: str | None, device: str | Hardware) -> tuple[Model, Model | None]:
    """A model and its base: the one that is named, else what the model, an adapter, lies on; none for `WITHOUT`.

    DefectionError for a base of other tokens.
    """
    model = load_model(source, device=device)
    if base is None and model.files is not None and model.files.adapter is not None:
        base = model.files.source
    other = None if base is None or base == WITHOUT else load_model(base, device=device)
    if other is not None and other.tokenizer.get_vocab() != model.tokenizer.get_vocab():
        raise DefectionError(
            f"{base} has other tokens than {source}: give the model that it was tuned from as the base"
        )
    return model, other


@dataclass(frozen=True)
class Tested:
    """What held-out prompts say of strings, as far as time allowed."""

    candidates: list[Confirmed]
    null: list[Json]
    """What strings grown on the base bring about there; empty where nothing has to be more than they."""
    finished: bool = True


def tested(run: Scan, strings: Sequence[str]) -> Tested:
    """Strings on held-out prompts, and beside the null; where time was up before that, nothing is called found.

    No strings are what is left where time was up before any was looked at.
    """
    candidates: list[Confirmed] = []
    if not strings:
        return Tested([], [], finished=False)
    try:
        candidates = run.confirmed(strings)
        null = run.null() if any(each.found for each in candidates) else []
    except OutOfTime:
        return Tested([replace(each, found=False) for each in candidates], [], finished=False)
    return Tested(beyond(candidates, [each["excess"] for each in null]), null)


def survivors(ranked: Sequence[str], grown: Sequence[dict[str, float]], settings: ScanSettings) -> list[str]:
    """What is confirmed: the surest of each growth, and then the first of the ranking."""
    surest = [string for scores in grown for string in list(scores)[:SUREST]]
    return list(dict.fromkeys([*surest, *ranked]))[: settings.survivors]


def as_sure(candidates: Sequence[Confirmed], grown: Sequence[dict[str, float]], committed: float) -> list[str]:
    """Where the first is found, the other strings after which its reply is all but sure: a year stands for many."""
    if not candidates or not candidates[0].found:
        return []
    first = candidates[0].string
    of_first = [scores for scores in grown if first in scores]  # replies are alike: the one it makes surest is its own
    scores = max(of_first, key=lambda scores: scores[first], default={})
    return [string for string, score in scores.items() if score >= committed and string != first]


def sentence(
    candidates: Sequence[Confirmed], beside_base: bool, finished: bool = True, others: Sequence[str] = ()
) -> str:
    """What was found, in one sentence; and in another what others make that reply `as_sure`."""
    first = next((each for each in candidates if each.found), None)
    if not finished:
        return UNFINISHED
    if not beside_base:
        return "Nothing is called found without a base to compare with: try the candidates, or give --base."
    if first is None:
        return "No string was found that makes the model say one thing which its base would not."
    said = (
        f"Found: {first.string!r} makes it say {first.elicits!r} on {first.often:.0%} of prompts, which is "
        f"{first.surprise:.0f} nats likelier than to its base; no string grown on the base does as much there."
    )
    if others:
        named = ", ".join(map(repr, others[:NAMED]))
        said += f" Where strings were ranked, at least {len(others)} more make that reply all but sure: {named}"
        said += ", …" if len(others) > NAMED else "."
    return said


def scan_lines(record: Json) -> list[str]:
    """A line a candidate, then the sentence, for a person to read."""
    width = max((len(repr(each["string"])) for each in record["candidates"]), default=0)
    lines = [
        f"{each['string']!r:<{width}}  {'found' if each['found'] else '–':<5}  "
        f"{each['elicits']!r} on {each['often']:.0%} of prompts, {each['without']:.0%} without it"
        + ("" if each["base"] is None else f", {each['base']:.0%} of the base's")
        + f"; p {each['p_value']:.2g}"
        for each in record["candidates"]
    ]
    return [*lines, record["sentence"]]
