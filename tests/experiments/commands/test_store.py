"""`defection store`: what it says, its exit status, and what is on the disk afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SHARD = "shard-00000.safetensors"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"question {i}", "id": f"q{i}"}) + "\n" for i in range(6)))
    return path


@pytest.fixture
def store(run, tmp_path: Path, llama_folder: Path, prompts: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    folder = tmp_path / "store"
    assert run("cache", llama_folder, prompts, "--dtype", "fp32", "--device", "cpu", "--out", folder) == 0
    capsys.readouterr()
    return folder


@pytest.fixture
def whole(store: Path) -> dict[str, bytes]:
    return content(store)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)


def test_show_says_what_the_store_holds(run, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("store", "show", store, "--json") == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["prompts"], about["layers"], about["position"], about["site"]) == (6, [0, 1, 2, 3], "last", "after")
    assert (about["complete"], about["vectors"], about["shards_on_disk"]) == (True, 6, 1)
    assert run("store", "show", store) == 0
    assert "0 to 3" in capsys.readouterr().out


def test_verify_passes_a_whole_store(run, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("store", "verify", store) == 0
    capsys.readouterr()
    assert run("store", "verify", store, "--json") == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


@pytest.mark.parametrize("name", [SHARD, "prompts.jsonl", "manifest.json"])
@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_verify_names_what_is_damaged(run, store, name, damage, capsys) -> None:
    damage(store / name)
    assert run("store", "verify", store) == 2
    assert name in capsys.readouterr().err


def test_verify_for_machines_lists_what_is_damaged(run, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(store / SHARD)
    assert run("store", "verify", store, "--json") == 2
    assert json.loads(capsys.readouterr().out) == {"path": str(store), "ok": False, "damaged": [SHARD]}


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_repair_recomputes_a_shard(run, store, whole, damage, llama_folder, capsys) -> None:
    damage(store / SHARD)
    assert run("store", "repair", store, "--model", llama_folder, "--device", "cpu", "--json") == 0
    assert json.loads(capsys.readouterr().out)["mended"] == [SHARD]
    assert content(store) == whole


@pytest.mark.parametrize(
    ("position", "site"), [("all", "before"), ("mean:2:", "middle"), ('after:"question"', "after")]
)
def test_any_position_is_cached_shown_and_repaired(
    run, prompts, llama_folder, tmp_path, capsys, position, site
) -> None:
    folder = tmp_path / "any"
    asked = ("cache", llama_folder, prompts, "--position", position, "--site", site, "--device", "cpu", "--json")
    assert run(*asked, "--out", tmp_path / "none", "--estimate") == 0
    assert not (tmp_path / "none").exists()
    expected = json.loads(capsys.readouterr().out)
    assert run(*asked, "--out", folder) == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["position"], about["site"], about["vectors"]) == (position, site, expected["vectors"])
    assert run("store", "show", folder, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["position"], shown["site"], shown["vectors"]) == (position, site, expected["vectors"])
    before = content(folder)
    flip(folder / SHARD)
    assert run("store", "repair", folder, "--model", llama_folder, "--device", "cpu") == 0
    assert content(folder) == before


def test_repair_of_the_prompts_wants_their_file(run, store, whole, prompts, llama_folder, capsys) -> None:
    flip(store / "prompts.jsonl")
    assert run("store", "repair", store, "--model", llama_folder, "--device", "cpu") == 2
    assert "--prompts" in capsys.readouterr().err
    command = ("store", "repair", store, "--model", llama_folder, "--device", "cpu", "--prompts")
    assert run(*command, prompts) == 0
    assert content(store) == whole


def test_repair_with_another_model_is_refused(run, store, whole, save_tiny, capsys) -> None:
    (store / SHARD).unlink()
    assert run("store", "repair", store, "--model", save_tiny("llama", seed=9), "--device", "cpu") == 2
    assert "different model" in capsys.readouterr().err
    assert content(store) == {name: data for name, data in whole.items() if name != SHARD}


def test_repair_says_how_to_name_the_model(run, store, capsys) -> None:
    (store / SHARD).unlink()
    assert run("store", "repair", store, "--device", "cpu") == 2  # the manifest knows a folder's last name only
    assert "--model" in capsys.readouterr().err


def test_repair_of_a_whole_store_only_removes_what_killed_runs_left(run, store, whole, capsys) -> None:
    room = store / ".writing" / "share-0"
    room.mkdir(parents=True)
    (room / ".shard-00000.safetensors.x.tmp").write_text("half")
    assert run("store", "repair", store) == 0
    assert content(store) == whole
