"""What is read is what was written, no more of it than asked for, and never after damage."""

import ctypes
import io
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from defection.activations.basics.errors import DefectionError
from defection.activations.prompts.prompts import user_prompt
from defection.activations.stores import manifest
from defection.activations.stores.plan import StorePlan
from defection.activations.stores.store import Store, open_store
from defection.activations.stores.views import concatenate
from defection.activations.stores.writing import write_store
from hypothesis import given
from hypothesis import strategies as st

DAMAGES = 1000
FILES = ("manifest.json", "prompts.jsonl", *(f"shard-{number:05d}.safetensors" for number in range(3)))

Vault = Any


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module", params=["plain", "ragged"])
def vault(request: pytest.FixtureRequest, make_vault: Callable[..., Vault]) -> Vault:
    return make_vault(ragged=request.param == "ragged")


@pytest.fixture(scope="module")
def store(vault: Vault, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return vault.fill(tmp_path_factory.mktemp("stores") / "store")


def rows_of(vault: Vault, rows: list[int]) -> list[torch.Tensor]:
    """Each row's vectors, straight from what was given."""
    offsets = torch.arange(len(vault.prompts) + 1) if vault.offsets is None else vault.offsets
    return [vault.values[offsets[row] : offsets[row + 1]] for row in rows]


some_rows = st.lists(st.integers(0, 9), max_size=15)
some_layers = st.lists(st.sampled_from([0, 2, 5]), min_size=1, max_size=4)


@given(rows=some_rows, layers=some_layers)
def test_any_rows_at_any_layers_are_read_in_the_order_asked_for(
    store: Store, vault: Vault, rows: list[int], layers: list[int]
) -> None:
    found = store.vectors(layers, rows)
    columns = [(0, 2, 5).index(layer) for layer in layers]
    expected = rows_of(vault, rows)
    assert found.offsets.diff().tolist() == [len(part) for part in expected]
    assert torch.equal(found.values, torch.cat([vault.values[:0], *expected])[:, columns])


@given(size=st.integers(1, 12), layers=st.none() | some_layers)
def test_batches_cover_each_row_once_and_in_order(
    store: Store, vault: Vault, size: int, layers: list[int] | None
) -> None:
    batches = list(store.batches(size, layers=layers, dtype=torch.float32))
    assert [row for batch in batches for row in batch.rows] == list(range(10))
    whole = store.vectors(layers)
    assert torch.equal(torch.cat([batch.values for batch in batches]), whole.values.float())
    assert torch.equal(torch.cat([batch.offsets.diff() for batch in batches]), whole.offsets.diff())


@pytest.mark.parametrize("rows", [[10], [-1], [0, 99]])
def test_a_row_that_is_not_there_is_refused(store: Store, rows: list[int]) -> None:
    with pytest.raises(DefectionError, match="rows are 0 to 9"):
        store.vectors(rows=rows)


def test_a_layer_that_is_not_there_is_refused(store: Store) -> None:
    with pytest.raises(DefectionError, match=r"not \[1\]"):
        store.vectors([0, 1])
    with pytest.raises(DefectionError, match=r"not \[1\]"):
        next(store.batches(4, layers=[1]))


@pytest.mark.parametrize("size", [2, 3])
def test_a_reader_of_batches_maps_each_shard_once_and_has_it_read_ahead(
    make_vault: Callable[..., Vault], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """A batch is few of a large shard's rows, within it or across its end, and yet all of them will be read."""
    store = make_vault(40, rows_per_shard=20).fill(tmp_path / "store")
    asked: list[tuple[int, bool]] = []
    real = Store.map_shard

    def watched(self: Store, number: int, *, scattered: bool = False) -> dict[str, torch.Tensor]:
        asked.append((number, scattered))
        return real(self, number, scattered=scattered)

    monkeypatch.setattr(Store, "map_shard", watched)
    for source in (store, concatenate(store)):
        assert sum(len(batch.rows) for batch in source.batches(size)) == 40
        assert asked == [(0, False), (1, False)]
        asked.clear()
    store.vectors(rows=[7])
    store.vectors(rows=range(3, 5))
    assert asked == [(0, True), (0, True)]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux says how a file is mapped")
@pytest.mark.parametrize(("scattered", "flag"), [(True, "rr"), (False, "hg")])
def test_the_system_is_told_how_a_shard_will_be_read(store: Store, scattered: bool, flag: str) -> None:
    mapped = store.map_shard(0, scattered=scattered)
    text = Path("/proc/self/smaps").read_text()
    entry = text[text.index(str(store.path / FILES[2])) :]
    flags = entry[entry.index("VmFlags:") :].split("\n")[0].split()
    assert ("rr" in flags, "hg" in flags) == (flag == "rr", flag == "hg")
    assert len(mapped)


def test_a_batch_of_no_rows_is_refused(store: Store) -> None:
    with pytest.raises(DefectionError, match="at least one"):
        next(store.batches(0))


def test_residuals_read_from_a_store_know_which_vectors_are_whose(store: Store, vault: Vault) -> None:
    found = store.read([2, 5], [3, 1, 3])
    assert found.ids == ("p3", "p1", "p3")
    assert (found.offsets is not None) == store.ragged
    assert (found.position, found.site) == (vault.about["position"], vault.about["site"])
    offsets = torch.arange(11) if vault.offsets is None else vault.offsets
    for place, row in enumerate((3, 1, 3)):
        assert torch.equal(found.of(place), vault.values[offsets[row] : offsets[row + 1], 1:].float())


def test_a_store_knows_its_prompts(store: Store, vault: Vault) -> None:
    assert store.prompts == vault.prompts
    assert store.ids == tuple(prompt.id for prompt in vault.prompts)
    assert store.n_tokens == tuple(range(3, 13))
    assert len(store) == 10


@pytest.mark.slow
def test_every_damage_is_detected_and_nothing_wrong_is_served(store: Store, vault: Vault, tmp_path: Path) -> None:
    """PITFALLS 26: flipped bits, and files cut short or grown, wherever they are."""
    choose = random.Random(0)
    before = content(store.path)
    folder = shutil.copytree(store.path, tmp_path / "copy")
    for number in range(DAMAGES // 2):  # of each kind of store
        name = FILES[number % len(FILES)]
        data = bytearray(before[name])
        spot = choose.randrange(len(data))
        kind = choose.choice(["flip", "flip", "flip", "cut", "grow"])
        if kind == "flip":
            data[spot] ^= 1 << choose.randrange(8)
        elif kind == "cut":
            del data[spot:]
        else:
            data[spot:spot] = bytes(choose.randrange(1, 9))
        (folder / name).write_bytes(data)
        with pytest.raises(DefectionError, match=name):
            open_store(folder, verify=True)
        unverified(folder, vault, name)
        (folder / name).write_bytes(before[name])
    open_store(folder, verify=True)


def unverified(folder: Path, vault: Vault, name: str) -> None:
    """Without verifying, a number may be wrong where a shard is damaged, but rows, layers, ids and prompts are not."""
    try:
        opened = open_store(folder)
        found = opened.vectors()
        offsets = torch.arange(11) if vault.offsets is None else vault.offsets
        assert name.startswith("shard") or torch.equal(found.values, vault.values)
        assert found.values.shape == vault.values.shape or vault.offsets is not None
        assert len(found.offsets) == len(offsets)
        assert opened.prompts == vault.prompts
        assert opened.ids == tuple(prompt.id for prompt in vault.prompts)
    except DefectionError:
        pass


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_vanished_is_detected(store: Store, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(store.path, tmp_path / "copy")
    (folder / name).unlink()
    with pytest.raises(DefectionError, match=name):
        open_store(folder, verify=True)
    if name.startswith("shard"):
        with pytest.raises(DefectionError, match=f"{name} is missing"):
            open_store(folder).vectors()


def test_shards_that_changed_places_are_detected(store: Store, tmp_path: Path) -> None:
    folder = shutil.copytree(store.path, tmp_path / "copy")
    (folder / FILES[2]).write_bytes((folder / FILES[3]).read_bytes())
    with pytest.raises(DefectionError, match=FILES[2]):
        open_store(folder).vectors()


class Counted(io.BytesIO):
    """A file that knows how much of it was read."""

    taken = 0

    def read(self, size: int | None = -1) -> bytes:
        found = super().read(size)
        self.taken += len(found)
        return found


def test_opening_reads_no_more_of_a_manifest_with_many_rows() -> None:
    taken = []
    for rows in (10, 100_000):
        tables = {"shards": [{"file": "shard"}] * (rows // 10), "ids": [f"p{i}" for i in range(rows)], "n_tokens": []}
        file = Counted(manifest.manifest_bytes({"key": "k"}, tables))
        head, seal = manifest._head(file)
        assert seal == manifest._seal(head)
        taken.append(file.taken)
    assert taken[1] <= manifest.HEAD


def test_a_head_is_found_wherever_the_first_read_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    content = manifest.manifest_bytes({"key": "k" * 50}, {"shards": [], "ids": ["a"], "n_tokens": [1]})
    expected = manifest._head(io.BytesIO(content))
    for size in range(1, len(content) + 2):
        monkeypatch.setattr(manifest, "HEAD", size)
        assert manifest._head(io.BytesIO(content)) == expected


def test_a_manifest_that_was_replaced_since_is_not_mixed_with_the_old_one(
    make_vault: Callable[..., Vault], tmp_path: Path
) -> None:
    old = make_vault(10).fill(tmp_path / "store")
    shutil.rmtree(tmp_path / "store")
    make_vault(12).fill(tmp_path / "store")
    with pytest.raises(DefectionError, match=r"manifest\.json"):
        old.vectors()


def resident(path: Path) -> float:
    """The part of a file that the system holds in memory, by its page tables."""
    libc = ctypes.CDLL("libc.so.6", use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    size = path.stat().st_size
    with open(path, "rb") as file:
        address = libc.mmap(None, ctypes.c_size_t(size), 1, 1, file.fileno(), ctypes.c_long(0))
    pages = (ctypes.c_ubyte * ((size + 4095) // 4096))()
    assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages) == 0
    libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
    return sum(page & 1 for page in pages) / len(pages)


def test_a_few_rows_are_read_without_the_rest_of_the_file(tmp_path: Path) -> None:
    """Counted in pages: after the file was dropped from memory, reading rows brings back those alone."""
    rows, values = 256, torch.randn(256, 30, 576).bfloat16()
    prompts = [user_prompt(f"prompt {row}", id=f"p{row}") for row in range(rows)]
    model = {"name": "none", "fingerprint": "weights", "template": "template"}
    about = {"model": model, "layers": list(range(30)), "position": "last", "dtype": "bf16", "d_model": 576}
    store = write_store(tmp_path / "store", StorePlan(about, prompts, [1] * rows), lambda asked: {"residuals": values})
    file = store.path / FILES[2]
    with open(file, "rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident(file) > 0.01:
        pytest.skip("this file system keeps its files in memory")
    assert torch.equal(store.vectors([7], [5, 200]).values, values[[5, 200]][:, [7]])
    bytes_wanted = 2 * 576 * 2
    assert resident(file) * file.stat().st_size < bytes_wanted + 2 * 64 * 1024  # pages at the edges, and the header's


def test_opening_reads_the_head_alone(make_vault: Callable[..., Vault], tmp_path: Path) -> None:
    """Its size does not depend on the number of prompts; digits aside."""
    heads = [make_vault(rows, rows_per_shard=64).fill(tmp_path / str(rows)).file.start for rows in (64, 2048)]
    assert abs(heads[1] - heads[0]) < 20
