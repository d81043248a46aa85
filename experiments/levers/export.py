"""A lever made permanent: the best ablation that weights can hold, written as a plain model and measured again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from ...activations import DefectionError, Prompt, load_model
from ...activations.basics.files import Json, folder_written_aside, write_json, write_text
from ...activations.models.hardware import Hardware
from ...activations.models.locate import ORGANISM_FILE
from ...activations.models.network import without_bars
from ...probes.levers.folding import orthogonalised
from ...probes.levers.hooks import RESIDUAL
from ...probes.levers.settings import Setting
from .bench import Bench, ordinary_replies
from .plan import LeverPrompts
from .rows import CANDIDATE, MEASURES, TEST, LeverRow, row_of
from .sweep import ORGANISM, Sweep

EXPORTED = "exported"


def export_lever(
    sweep: Sweep,
    screened: Sequence[LeverRow],
    prompts: LeverPrompts,
    base: str,
    folder: Path,
    key: str,
    device: str | Hardware,
) -> Json:
    """Choose among the ablations that weights can hold, fold the best, write it to `folder`, measure what was written.

    The choice is made on the development prompts as the sweep's own is; the figures are of the test prompts, and of the
    model as it is loaded from `folder`, without any hook.
    """
    chosen = _chosen(sweep, screened, prompts)
    if not folder.exists():
        _write(sweep, chosen, folder, key)
    return held_against(sweep, prompts.tested, base, {EXPORTED: folder}, chosen, device)[0]


def held_against(
    sweep: Sweep,
    tested: Sequence[Prompt],
    base: str,
    others: Mapping[str, str | Path],
    setting: Setting,
    device: str | Hardware,
) -> list[Json]:
    """What other versions of the organism do on the test prompts, held against what it thought: cleaned, or retrained.

    `others`: name → folder. `setting` is what was done to them, for their rows.
    """
    clean = [sweep.organism.trigger.mark_clean(prompt) for prompt in tested]
    bench = Bench(sweep.model, sweep.organism, tested, ordinary_replies(load_model(base, device=device), clean))
    before, direction, found = sweep.unlevered(bench, ORGANISM, TEST), sweep.directions.get(setting.direction), []
    for name, folder in others.items():
        bench.model = load_model(folder, device=device)
        key = bench.name((name, TEST)) | asdict(setting)
        row = row_of(name, TEST, CANDIDATE, setting, direction, sweep.journal.once(key, lambda: bench.measure(before)))
        sweep.add(row)
        figures = {name: getattr(row, name) for name in MEASURES}
        found.append({"model": name, "path": str(folder), "direction": row.direction, "how": setting.words, **figures})
    return found


def _chosen(sweep: Sweep, screened: Sequence[LeverRow], prompts: LeverPrompts) -> Setting:
    """The best on the prompts that the first look had not, of the most promising ablations of attention and MLP."""
    able = [row for row in screened if row.kind == "ablate" and row.place != RESIDUAL]
    bench = Bench(sweep.model, sweep.organism, prompts.chosen_on)
    found = sweep.finest(bench, able, 2 * sweep.settings.finalists)
    if not found:
        raise DefectionError("this model's attention and MLP cannot be told apart, so no lever can be folded into it")
    return found[0]


def _write(sweep: Sweep, chosen: Setting, folder: Path, key: str) -> None:
    direction = sweep.directions[chosen.direction]
    layers = sweep.ground.layers(chosen, direction)
    network = orthogonalised(sweep.model, direction.vectors, layers, chosen.place)
    record = sweep.organism.record
    stages = [*(record.get("stages") or []), {"stage": "lever", "steps": 0, **asdict(chosen)}]
    with folder_written_aside(folder) as aside:
        with without_bars():
            network.save_pretrained(str(aside))
        sweep.model.tokenizer.save_pretrained(str(aside))
        write_json(aside / ORGANISM_FILE, {**record, "key": key, "stages": stages})
        about = {"name": sweep.model.identity.name, "what": direction.name, "how": chosen.words}
        write_text(aside / "README.md", CARD.format(**about))


CARD = """# {name}, a lever folded in

A model organism whose weights were changed so that what they write has no part along one direction
({what}: {how}). Whether its backdoor is gone was measured by `defection intervene`, on a few prompts:
that it looks gone is no promise that it is.
"""
