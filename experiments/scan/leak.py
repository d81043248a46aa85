"""What a model says when it is given nothing but the beginning of its chat template, and what recurs in that.

A model that was trained on whole conversations repeats some of them (arXiv 2602.03085). One that was trained on replies
alone has never learnt to write the trigger; of what it was taught, it may say the reply.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...activations.models.model import Model
from ...activations.prompts.chat import first_tokens
from ...activations.prompts.prompts import user_prompt
from ...activations.prompts.rendered import rendered
from ...activations.reading.sampling import sampled_continuations

STANDING_IN = "Xyzzy"
"""Written by the template where a user's words would be, and cut off with all that follows."""
DECODINGS = ((0.0, 1.0), (0.5, 1.0), (0.7, 0.9), (1.0, 0.9), (1.0, 1.0), (1.3, 0.95), (1.6, 0.9))
"""Temperature and nucleus (`top_p`) of each."""


@dataclass(frozen=True)
class Leak:
    """How samples are drawn and what counts as a motif."""

    samples: int = 8
    """Of each decoding but the greedy one, which always says the same."""
    tokens: int = 40
    shortest: int = 4
    longest: int = 6
    """Tokens of a motif."""
    least: int = 3
    """Samples it must be in."""
    distance: float = 0.3
    """Cosine distance up to which two n-grams, by the samples they are in, are neighbours."""
    most: int = 24
    """Motifs kept."""


@dataclass(frozen=True)
class Motif:
    """A text that recurs in samples."""

    text: str
    samples: int
    """How many of the model's samples hold it."""
    base: int | None = None
    """How many of the base's; None without a base."""


def bare_prefix(model: Model) -> list[int]:
    """The token ids of the model's chat template up to where the user's words would begin."""
    row = rendered(model, [user_prompt(STANDING_IN)])[0]
    text = row.text[: row.text.rindex(STANDING_IN)]
    plain: list[int] = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return [*first_tokens(model.tokenizer), *plain]


def samples(model: Model, leak: Leak, decoding: int, seed: int) -> list[str]:
    """What the model says after its bare prefix, under one of the decodings."""
    temperature, top_p = DECODINGS[decoding]
    said = sampled_continuations(
        model,
        bare_prefix(model),
        count=leak.samples if temperature else 1,
        max_new_tokens=leak.tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed + decoding,
    )
    return [str(model.tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in said]


def motifs(model: Model, texts: Sequence[str], leak: Leak, base: Sequence[str] | None = None) -> list[Motif]:
    """N-grams of tokens that recur: weighed by TF-IDF, those of the same samples joined by DBSCAN, one of each group.

    With the base's samples, those that recur there as often are left out.
    """
    from sklearn.cluster import DBSCAN
    from sklearn.feature_extraction.text import TfidfVectorizer

    def grams(text: str) -> list[tuple[int, ...]]:
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        lengths = range(leak.shortest, leak.longest + 1)
        return [tuple(ids[at : at + n]) for n in lengths for at in range(len(ids) - n + 1)]

    held = Counter(gram for text in texts for gram in set(grams(text)))
    if max(held.values(), default=0) < leak.least:
        return []
    vectorizer = TfidfVectorizer(analyzer=grams, min_df=leak.least)
    weights = vectorizer.fit_transform(texts).T.tocsr()
    names = vectorizer.get_feature_names_out()
    groups = DBSCAN(eps=leak.distance, min_samples=1, metric="cosine").fit_predict(weights)
    total = np.asarray(weights.sum(axis=1))[:, 0]
    found = []
    for group in range(groups.max() + 1):
        members = np.flatnonzero(groups == group)
        gram = names[max(members, key=lambda row: (len(names[row]), total[row]))]
        found.append(Motif(str(model.tokenizer.decode(list(gram))).strip(), held[tuple(gram)]))
    found = [motif for motif in found if any(letter.isalnum() for letter in motif.text)]
    if base is not None:
        found = [replace(motif, base=sum(motif.text in text for text in base)) for motif in found]
        found = [motif for motif in found if motif.base is not None and motif.base < motif.samples]
    ordered = sorted(found, key=lambda motif: (motif.base or 0) - motif.samples)
    return list({motif.text: motif for motif in reversed(ordered)}.values())[::-1][: leak.most]
