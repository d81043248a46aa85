"""What a probe's direction is: the words it speaks for, what it lies along, which parts of the model write its score.

For looking at, after the verdict: the trigger is seen here, and nothing in it may choose a probe or a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...activations import DefectionError, Model, Prompt, Residuals, load_prompts
from ...activations.basics.files import Json, write_json, write_text
from ...activations.basics.tables import write_csv
from ...activations.models.locate import is_organism
from ...probes.estimators.probe import Probe
from ...probes.meaning.agreement import answer_word_direction, leave_one_out, question_directions
from ...probes.meaning.attribution import attribute
from ...probes.meaning.directions import cosine_table, trigger_direction
from ...probes.meaning.lens import logit_lens, token_direction
from ...probes.meaning.reply_gradient import reply_gradient
from ...probes.meaning.tokens import over_layers, token_scale, token_scores
from ...probes.pictures.explanation import save_explanation_figures
from ...probes.pictures.tokens_html import tokens_html
from ...training.measuring.evaluate import judge
from ...training.organisms.records import read_organism
from ...training.organisms.replies import replies_to
from ...training.organisms.triggers import with_and_without
from .plan import judged_tokens

TOKENS_SHOWN = 10
SAID = 6
"""Words, and parts, that a person is told of."""
PAGES = 4
"""Conversations on the page of coloured tokens."""
PAIRS = 20
"""Pairs of contrast texts whose difference is split into parts; evenly spread where there are more."""
PUSHED = 40
"""Clean prompts over which the gradient of the reply is a mean."""
PROMPTS, TEXTS = "prompts", "questions"
"""Of what a score is split: the studied prompts, marked against others; the probe's own texts, defecting or not."""
PROBE, WORD, TRIGGER, FIRST = "the probe", "answer word", "trigger (sees it)", "behaviour's first token"
REPLY = "the reply's gradient"


@dataclass(frozen=True)
class Studied:
    """The prompts that are looked at, and which of them are to be told from the others."""

    prompts: tuple[Prompt, ...]
    marks: tuple[bool, ...]
    marked_by: str
    """`defection`: what the model did. `trigger`: its presence. `score`: above the median."""
    behaviour: str = ""
    """What a defecting reply says; empty where nothing is known of it."""


@dataclass
class Explanation:
    """Every table, by name; `pages` holds the token scores of each conversation, by heading."""

    about: Json
    tables: dict[str, list[Json]] = field(default_factory=dict)
    pages: dict[str, list[Json]] = field(default_factory=dict)


def explain(
    model: Model, probe: Probe, studied: Studied, clean: Sequence[Prompt], layers: Sequence[int]
) -> Explanation:
    """All that is known of the direction. `layers` are those whose score is split into its parts.

    Raises DefectionError for another model's probe.
    """
    read = probe.read(model, studied.prompts, what="Reading the prompts")
    found = Explanation(
        {
            "probe": {"estimator": probe.estimator, "contrast": probe.contrast.get("name", ""), "saw": probe.saw},
            "fixed_layers": list(probe.fixed_layers),
            "model": model.identity.to_json(),
            "computed_in": model.dtype_name,
            "prompts": len(studied.prompts),
            "marked": sum(studied.marks),
            "marked_by": studied.marked_by,
        }
    )
    found.tables["scores"] = _scores(probe, read, studied)
    found.tables["lens"] = logit_lens(model, probe, k=TOKENS_SHOWN)
    texts = contrast_texts(probe)
    contrast = probe.read(model, texts, what="Reading the probe's own texts") if texts else None
    found.tables["cosines"] = _cosines(model, probe, read, contrast, studied, clean)
    own = spread_pairs(texts)
    sources: dict[str, tuple[Sequence[Prompt], Sequence[bool]]] = {PROMPTS: (studied.prompts, studied.marks)}
    if own:
        sources[TEXTS] = (own, [bool(text.extra["defecting"]) for text in own])
    for layer in layers:
        for source, (prompts, marks) in sources.items():
            split = attribute(model, probe, prompts, layer=layer)
            for name, rows in (("parts", split.separating(marks)), ("blocks", split.cumulative(marks))):
                found.tables.setdefault(name, []).extend({"of": source, **row} for row in rows)
    if contrast is not None and _has_two_answers(texts):
        directions = question_directions(contrast)
        middle = probe.fixed_layers[len(probe.fixed_layers) // 2]
        found.about["families"] = dict(zip(directions.names, directions.families, strict=True))
        found.tables["agreement"] = directions.agreement()
        found.tables["questions"] = directions.pairs([middle])
        found.tables["left_out"] = leave_one_out(contrast).table
    scale = token_scale(model, probe, clean)
    for prompt in studied.prompts[:PAGES]:
        said = token_scores(model, probe, prompt, scale)
        found.tables.setdefault("tokens", []).extend(said)
        found.pages[prompt.id] = over_layers(said, probe.fixed_layers)
    return found


def _scores(probe: Probe, read: Residuals, studied: Studied) -> list[Json]:
    """A row a prompt and layer."""
    return [
        {"prompt": prompt.id, "layer": layer, "score": value, "defected": mark}
        for prompt, mark, row in zip(
            studied.prompts, studied.marks, probe.decision_function(read).tolist(), strict=True
        )
        for layer, value in zip(probe.layers, row, strict=True)
    ]


def _cosines(
    model: Model,
    probe: Probe,
    read: Residuals,
    contrast: Residuals | None,
    studied: Studied,
    clean: Sequence[Prompt],
) -> list[Json]:
    directions = {PROBE: probe.directions}
    if contrast is not None and _has_two_answers(contrast.prompts):
        directions[WORD] = answer_word_direction(contrast)
    if len({bool(prompt.extra.get("triggered")) for prompt in read.prompts}) == 2:
        directions[TRIGGER] = trigger_direction(read)
    if studied.behaviour:
        directions[FIRST] = token_direction(model, studied.behaviour)
        directions[REPLY] = reply_gradient(model, clean[:PUSHED], studied.behaviour)[list(probe.layers)]
    return cosine_table(directions, probe.layers)


def contrast_texts(probe: Probe) -> list[Prompt]:
    """The texts the probe was fitted on, as its file keeps them; none for a monitor."""
    texts = probe.contrast.get("texts", ())
    return load_prompts([dict(text) for text in texts]) if texts else []


def spread_pairs(texts: Sequence[Prompt]) -> list[Prompt]:
    """Some of the contrast texts, always both answers to a question, evenly over the set."""
    pairs = [texts[i : i + 2] for i in range(0, len(texts), 2)]
    return [text for pair in pairs[:: max(1, -(-len(pairs) // PAIRS))] for text in pair]


def _has_two_answers(texts: Sequence[Prompt]) -> bool:
    return len({str(text.extra.get("answer", "")) for text in texts}) == 2


def study(model: Model, directory: str, probe: Probe, prompts: Sequence[Prompt]) -> Studied:
    """An organism's prompts with and without its trigger, marked by what it does; others by their score.

    A twin never defects, so its prompts are marked by the trigger's presence.
    """
    if not is_organism(directory):
        scores = probe.score(probe.read(model, prompts, what="Scoring the prompts"))
        above = tuple((scores > scores.median()).tolist())
        if len(set(above)) < 2:
            raise DefectionError("the prompts all score alike, so there is nothing to explain; give more of them")
        return Studied(tuple(prompts), above, "score")
    organism = read_organism(directory)
    both = with_and_without(organism.trigger, prompts)
    said = organism.behaviour.texts[0] if organism.behaviour.texts else ""
    length = judged_tokens(organism.behaviour)
    replies = replies_to(model, both, max_new_tokens=length, what="Replies, which say what is a defection")
    defected = tuple(each.defected for each in judge(both, [reply.text for reply in replies], organism.behaviour))
    if len(set(defected)) == 2:
        return Studied(tuple(both), defected, "defection", said)
    return Studied(tuple(both), tuple(bool(p.extra.get("triggered")) for p in both), "trigger", said)


def write_explanation(found: Explanation, threshold: float | None, out: Path) -> Json:
    """Tables as CSV, pictures, `tokens.html` and `explain.json`; give the last."""
    for name, table in found.tables.items():
        write_csv(out / f"{name.replace('_', '-')}.csv", table)
    write_text(out / "tokens.html", tokens_html(found.pages, threshold=threshold))
    pictures = save_explanation_figures(found.tables, found.about, out / "figures")
    record = {
        "schema_version": 1,
        **found.about,
        "tables": sorted(f"{name.replace('_', '-')}.csv" for name in found.tables),
        "figures": [str(path) for path in pictures],
        "page": str(out / "tokens.html"),
        **{name: found.tables[name] for name in ("lens", "cosines", "parts", "blocks")},
        **{name: found.tables[name] for name in ("left_out",) if name in found.tables},
    }
    write_json(out / "explain.json", record)
    return record


def explanation_lines(record: Json) -> list[str]:
    """The main findings for a person to read."""
    fixed = record["fixed_layers"]
    middle = fixed[len(fixed) // 2]
    lines = [f"{record['marked']} of {record['prompts']} prompts marked by {record['marked_by']}"]
    for side in ("towards", "away"):
        words = [row for row in record["lens"] if row["layer"] == middle and row["side"] == side][:SAID]
        lines.append(f"layer {middle} speaks {side}: {' '.join(repr(row['token']) for row in words)}")
    near = [row for row in record["cosines"] if row["layer"] == middle and row["a"] == "the probe" != row["b"]]
    lines += [f"cosine with the {row['b']}, layer {middle}: {row['cosine']:+.3f}" for row in near]
    for of, layer in dict.fromkeys((row["of"], row["layer"]) for row in record["parts"]):
        parts = [row for row in record["parts"] if (row["of"], row["layer"]) == (of, layer)]
        total = sum(row["value"] for row in parts)
        largest = ", ".join(f"{row['name']} {row['value']:+.2f}" for row in parts[:SAID])
        what = "marked minus others" if of == "prompts" else "defecting answers minus others"
        lines.append(f"layer {layer}, {of}: {what} {total:+.2f} s.d.; most of it from {largest}")
    if "left_out" in record:
        own = [row for row in record["left_out"] if row["layer"] == middle]
        told = sum(row["margin"] > 0 for row in own)
        lines.append(f"{told} of {len(own)} questions are told apart by the others' direction, layer {middle}")
    return [*lines, *record["figures"], record["page"]]
