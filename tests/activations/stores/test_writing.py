"""Whatever ends the process, whoever else writes, and whatever happens to the disk."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from defection.activations.basics import files
from defection.activations.basics.errors import DefectionError
from defection.activations.stores import writing
from defection.activations.stores.store import open_store

KILLS = 200
TIMED_KILLS = 20
SHARDS = tuple(f"shard-{number:05d}.safetensors" for number in range(3))

Vault = Any


def content(folder: Path) -> dict[str, bytes]:
    """Every file of the store, wherever it lies in it, but the lock, which is empty."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def forked(work: Callable[[], object]) -> int:
    """Run `work` in a process of its own; returns the process's number. It exits with 0, or 1 when `work` raises."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def ended(child: int) -> int:
    """The signal (negative) or exit status with which the process ended."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at_operation(number: int) -> None:
    """Make this process die, by SIGKILL, just before its file operation of that number (from 1).

    Operations are whatever the interpreter does to a file system (opening, making, renaming, removing, locking, …) and
    each flush; a file that is about to be flushed or named is cut in half first, as if the kill had come within the
    writing.
    """
    seen = 0

    def step(cut: object = None) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            if str(cut).endswith(".tmp"):
                os.truncate(str(cut), Path(str(cut)).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def flush(descriptor: int) -> None:
        step(Path(f"/proc/self/fd/{descriptor}").readlink())
        real(descriptor)

    real = os.fsync
    files.os.fsync = flush  # type: ignore[assignment]
    touching = ("open", "os.", "tempfile.", "shutil.", "fcntl.")

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(touching) and event != "os.truncate":
            step(args[0] if event == "os.chmod" else None)

    sys.addaudithook(watch)


def count_operations(vault: Vault, folder: Path) -> int:
    """How many operations an uninterrupted run makes: the largest number at which one can be killed."""
    low, high = 1, 2
    while killed(vault, folder / str(high), high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if killed(vault, folder / f"b{middle}", middle) else (low, middle)
    return low


def killed(vault: Vault, folder: Path, number: int) -> bool:
    def work() -> None:
        kill_at_operation(number)
        vault.fill(folder)

    status = ended(forked(work))
    assert status in (0, -signal.SIGKILL)
    return status != 0


@pytest.fixture(params=["plain", "ragged"])
def vault(request: pytest.FixtureRequest, make_vault: Callable[..., Vault]) -> Vault:
    return make_vault(ragged=request.param == "ragged")


@pytest.fixture
def whole(vault: Vault, tmp_path: Path) -> dict[str, bytes]:
    """The files of a store written without interruption."""
    vault.fill(tmp_path / "whole")
    return content(tmp_path / "whole")


def test_vectors_read_back_as_they_were_given(vault: Vault, tmp_path: Path) -> None:
    found = vault.fill(tmp_path / "store").vectors()
    assert torch.equal(found.values, vault.values)
    assert torch.equal(found.offsets, torch.arange(11) if vault.offsets is None else vault.offsets)


def test_nothing_but_the_store_is_left(whole: dict[str, bytes]) -> None:
    assert set(whole) == {".lock", "manifest.json", "prompts.jsonl", *SHARDS}


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """A folder whose flushes cost nothing, where there is one: thousands are made here."""
    if not Path("/dev/shm").is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.mark.slow
def test_a_run_killed_at_any_operation_completes_to_the_same_bytes(
    make_vault: Callable[..., Vault], in_memory: Path
) -> None:
    """PITFALLS 26: real kills, at every operation of a run and then at random ones of the run that continues it."""
    vault = make_vault()
    whole = content(vault.fill(in_memory / "whole").path)
    last = count_operations(vault, in_memory / "count")
    choose = random.Random(0)
    numbers = [*range(1, last + 1), *(choose.randint(1, last) for _ in range(max(0, KILLS - last)))]
    kills = 0
    for run, number in enumerate(numbers):
        folder = in_memory / f"run-{run}"
        kills += killed(vault, folder, number)
        if run % 2:
            kills += killed(vault, folder, choose.randint(1, last))
        unfinished_or_right(folder, vault)
        vault.fill(folder)
        assert content(folder) == whole, f"killed at operation {number} of {last}"
        shutil.rmtree(folder)
    assert kills >= KILLS


def unfinished_or_right(folder: Path, vault: Vault) -> None:
    """What a killed run leaves is no store, an unfinished one, or the whole one (PITFALLS 26)."""
    try:
        found = open_store(folder).vectors()
    except DefectionError:
        return
    assert torch.equal(found.values, vault.values)


def test_a_run_killed_at_any_time_completes_to_the_same_bytes(make_vault: Callable[..., Vault], tmp_path: Path) -> None:
    """PITFALLS 26: real kills by the clock."""
    vault = make_vault(40, ragged=True)
    start = time.perf_counter()
    whole = content(vault.fill(tmp_path / "whole").path)
    takes = time.perf_counter() - start
    choose = random.Random(0)
    statuses = []
    for run in range(TIMED_KILLS):
        folder = tmp_path / f"run-{run}"
        child = forked(lambda folder=folder: vault.fill(folder))
        time.sleep(choose.uniform(0, 1.2 * takes))
        os.kill(child, signal.SIGKILL)
        statuses.append(ended(child))
        vault.fill(folder)
        assert content(folder) == whole
    assert -signal.SIGKILL in statuses


@pytest.mark.slow
def test_a_repair_killed_at_any_operation_loses_nothing(make_vault: Callable[..., Vault], in_memory: Path) -> None:
    vault = make_vault()
    whole = content(vault.fill(in_memory / "whole").path)
    for number in range(1, 400, 2):
        folder = shutil.copytree(in_memory / "whole", in_memory / f"run-{number}")
        (folder / SHARDS[1]).write_bytes(whole[SHARDS[1]][:-3])
        going_on = killed(vault, folder, number)
        assert {name for name in SHARDS if (folder / name).read_bytes() != whole[name]} <= {SHARDS[1]}
        vault.fill(folder)
        assert content(folder) == whole
        shutil.rmtree(folder)
        if not going_on:
            return
    pytest.fail("the repair never came to an end")


def test_a_whole_store_is_not_written_again(vault: Vault, tmp_path: Path) -> None:
    def refuse(rows: tuple[int, int]) -> Any:
        raise AssertionError(rows)

    store = vault.fill(tmp_path / "store")
    before = {path: path.stat().st_mtime_ns for path in store.path.iterdir() if path.name != ".lock"}
    for verify in (True, False):
        writing.write_store(store.path, vault.plan, refuse, verify=verify)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_shards_of_a_store_whose_manifest_is_lost_are_kept(
    vault: Vault, whole: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "whole" / "manifest.json").unlink()
    (tmp_path / "whole" / SHARDS[0]).unlink()
    computed: list[tuple[int, int]] = []

    def compute(rows: tuple[int, int]) -> Any:
        computed.append(rows)
        return vault.compute(rows)

    writing.write_store(tmp_path / "whole", vault.plan, compute)
    assert computed == [(0, 4)]
    assert content(tmp_path / "whole") == whole


def test_shards_of_another_store_whose_manifest_is_lost_are_not_overwritten(
    make_vault: Callable[..., Vault], tmp_path: Path
) -> None:
    make_vault(seed=1).fill(tmp_path / "store")
    (tmp_path / "store" / "manifest.json").unlink()
    before = content(tmp_path / "store")
    with pytest.raises(DefectionError, match=r"shard-00000.*another computation"):
        make_vault(seed=0).fill(tmp_path / "store")
    assert content(tmp_path / "store") == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"layers": [0, 2, 4]}, "layers"),
        ({"site": "before"}, "site"),
        ({"position": "first-response"}, "position"),
        ({"computed_in": "fp32"}, "dtype of the forward pass"),
        ({"tokens_sha256": "others"}, "prompts"),
        ({"model": {"name": "none", "fingerprint": "with an adapter", "template": "template"}}, "model"),
        ({"model": {"name": "none", "fingerprint": "weights 0", "template": "other"}}, "chat template"),
    ],
)
def test_a_store_of_anything_else_is_refused_untouched(
    make_vault: Callable[..., Vault], tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    """PITFALLS 12, 26."""
    make_vault().fill(tmp_path / "store")
    before = content(tmp_path / "store")
    with pytest.raises(DefectionError, match=f"different.*{named}"):
        make_vault(**change).fill(tmp_path / "store")
    assert content(tmp_path / "store") == before


def test_a_second_process_is_refused(vault: Vault, tmp_path: Path, whole: dict[str, bytes]) -> None:
    """PITFALLS 26."""
    folder = tmp_path / "store"
    statuses: list[int] = []

    def compute(rows: tuple[int, int]) -> Any:
        for share in ((0, 1), (1, 2)):
            statuses.append(ended(forked(lambda share=share: vault.fill(folder, share=share))))
        return vault.compute(rows)

    writing.write_store(folder, vault.plan, compute)
    assert statuses == [1] * 2 * len(SHARDS)
    assert content(folder) == whole


@pytest.mark.parametrize("world", [2, 3, 5])
def test_several_processes_write_what_one_writes(
    vault: Vault, tmp_path: Path, whole: dict[str, bytes], world: int
) -> None:
    children = [
        forked(lambda rank=rank: vault.fill(tmp_path / "store", share=(rank, world)).vectors()) for rank in range(world)
    ]
    assert [ended(child) for child in children] == [0] * world
    assert content(tmp_path / "store") == whole


def test_a_room_removed_while_it_is_entered_is_made_anew(
    vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
) -> None:
    """`Path.mkdir` finds the folder there, looks again whether it is one, and finds nothing."""
    real, removed = os.mkdir, []

    def mkdir(path: object, *args: Any, **options: Any) -> None:
        if Path(str(path)).name.startswith("share") and not removed:
            removed.append(path)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        real(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "mkdir", mkdir)
    vault.fill(tmp_path / "store")
    assert removed
    assert content(tmp_path / "store") == whole


def test_a_file_where_a_room_should_be_is_a_refusal(vault: Vault, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".writing").write_text("not ours")
    with pytest.raises(DefectionError, match="cannot write"):
        vault.fill(tmp_path / "store")


def test_each_process_computes_its_own_share(make_vault: Callable[..., Vault], tmp_path: Path) -> None:
    vault = make_vault(40)
    log = tmp_path / "log"

    def work(rank: int) -> None:
        def compute(rows: tuple[int, int]) -> Any:
            time.sleep(0.05)  # time for the other to begin
            with open(log, "a") as file:
                file.write(f"{rank} {rows[0]}\n")
            return vault.compute(rows)

        writing.write_store(tmp_path / "store", vault.plan, compute, share=(rank, 2))

    children = [forked(lambda rank=rank: work(rank)) for rank in range(2)]
    assert [ended(child) for child in children] == [0, 0]
    done = sorted(tuple(map(int, line.split())) for line in log.read_text().splitlines())
    assert done == sorted((row // 4 % 2, row) for row in range(0, 40, 4))


@pytest.mark.parametrize("number", [5, 15, 30, 45, 60])
def test_what_a_process_that_died_left_undone_is_done_by_the_other(
    vault: Vault, tmp_path: Path, whole: dict[str, bytes], number: int
) -> None:
    folder = tmp_path / "store"

    def dying() -> None:
        kill_at_operation(number)
        vault.fill(folder, share=(1, 2))

    children = [forked(dying), forked(lambda: vault.fill(folder, share=(0, 2)))]
    assert [ended(child) for child in children] == [-signal.SIGKILL, 0]
    open_store(folder, verify=True)
    vault.fill(folder)  # a process that dies on its way out may leave an empty room
    assert content(folder) == whole


def test_processes_that_start_after_the_end_find_it_done(vault: Vault, tmp_path: Path, whole: dict[str, bytes]) -> None:
    for rank in (1, 0, 1):
        vault.fill(tmp_path / "store", share=(rank, 2))
    assert content(tmp_path / "store") == whole


def at_operation(monkeypatch: pytest.MonkeyPatch, name: str, number: int, error: int) -> None:
    """Make the function of `os` fail at its call of that number."""
    real, calls = getattr(os, name), 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise OSError(error, os.strerror(error))
        return real(*args, **kwargs)

    monkeypatch.setattr(files.os, name, failing)


@pytest.mark.parametrize("number", range(1, 7))
@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_an_error_of_the_disk_is_a_refusal_that_loses_nothing(
    make_vault: Callable[..., Vault],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    number: int,
    error: int,
) -> None:
    vault = make_vault()
    whole = content(vault.fill(tmp_path / "whole").path)
    with monkeypatch.context() as patch:
        at_operation(patch, name, number, error)
        with pytest.raises(DefectionError, match="cannot write"):
            vault.fill(tmp_path / "store")
    assert list((tmp_path / "store").rglob("*.tmp")) == []
    vault.fill(tmp_path / "store")
    assert content(tmp_path / "store") == whole


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("this process may not mount a file system")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_full_loses_nothing(make_vault: Callable[..., Vault], small_disk: Path, tmp_path: Path) -> None:
    vault = make_vault(64)
    whole = content(vault.fill(tmp_path / "whole").path)
    for free in range(0, 80 * 1024, 8 * 1024):
        ballast = small_disk / "ballast"
        room = shutil.disk_usage(small_disk).free
        ballast.write_bytes(bytes(max(0, room - free)))
        with pytest.raises(DefectionError, match="No space left"):
            vault.fill(small_disk / "store")
        ballast.unlink()
        vault.fill(small_disk / "store")
        assert content(small_disk / "store") == whole
        shutil.rmtree(small_disk / "store")


def test_a_read_only_folder_is_a_refusal_and_still_read(make_vault: Callable[..., Vault], small_disk: Path) -> None:
    vault = make_vault()
    before = content(vault.fill(small_disk / "store").path)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for name in ("store", "another"):
        with pytest.raises(DefectionError, match="Read-only file system"):
            vault.fill(small_disk / name)
    assert torch.equal(open_store(small_disk / "store", verify=True).vectors().values, vault.values)
    assert content(small_disk / "store") == before


def test_a_file_that_grows_past_the_limit_is_a_refusal(vault: Vault, tmp_path: Path, whole: dict[str, bytes]) -> None:
    def work() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole["manifest.json"]) - 100, resource.RLIM_INFINITY))
        with pytest.raises(DefectionError, match="File too large"):
            vault.fill(tmp_path / "store")

    assert ended(forked(work)) == 0
    vault.fill(tmp_path / "store")
    assert content(tmp_path / "store") == whole


def test_what_an_error_stopped_is_told_and_continued(vault: Vault, tmp_path: Path, whole: dict[str, bytes]) -> None:
    def compute(rows: tuple[int, int]) -> Any:
        if rows[0] == 8:
            raise KeyboardInterrupt
        return vault.compute(rows)

    with pytest.raises(KeyboardInterrupt):
        writing.write_store(tmp_path / "store", vault.plan, compute)
    assert (tmp_path / "store" / SHARDS[1]).read_bytes() == whole[SHARDS[1]]  # what was computed is kept
    vault.fill(tmp_path / "store")
    assert content(tmp_path / "store") == whole


@pytest.mark.parametrize(
    "change",
    [
        lambda given: {"residuals": given["residuals"].float()},
        lambda given: {"residuals": given["residuals"][1:]},
        lambda given: {"residuals": given["residuals"][:, :2]},
        lambda given: {**given, "offsets": torch.arange(5)},
    ],
)
def test_tensors_that_the_plan_does_not_promise_are_refused(
    make_vault: Callable[..., Vault], tmp_path: Path, change: Callable[..., Any]
) -> None:
    vault = make_vault()
    with pytest.raises(DefectionError, match=r"the plan says|offsets"):
        writing.write_store(tmp_path / "store", vault.plan, lambda rows: change(vault.compute(rows)))
    assert not open_store(tmp_path / "store").complete


@pytest.mark.parametrize(
    "offsets", [[0, 1, 2, 3], [0, 2, 1, 3, 4], [1, 2, 3, 4, 5], [0.0, 1, 2, 3, 4], [0, 1, 2, 3, 99]]
)
def test_offsets_that_do_not_fit_are_refused(
    make_vault: Callable[..., Vault], tmp_path: Path, offsets: list[int]
) -> None:
    vault = make_vault(4, ragged=True)
    given = {"residuals": torch.zeros(5, 3, 8, dtype=torch.bfloat16), "offsets": torch.tensor(offsets)}
    with pytest.raises(DefectionError, match=r"the plan says|offsets"):
        writing.write_store(tmp_path / "store", vault.plan, lambda rows: given)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_vector_that_is_not_finite_is_refused_by_prompt_and_layer(
    vault: Vault, tmp_path: Path, number: float
) -> None:
    """PITFALLS 13."""
    wrong = vault.values.clone()
    row = 6 if vault.offsets is None else int((vault.offsets[:-1].diff() > 0).nonzero()[-1])
    spot = row if vault.offsets is None else int(vault.offsets[row])
    wrong[spot, 1, 3] = number
    with pytest.raises(DefectionError, match=rf"'p{row}' at layer 2 is not finite"):
        replace(vault, values=wrong).fill(tmp_path / "store")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_damaged_shard_of_a_process_that_died_is_found_by_the_others(
    make_vault: Callable[..., Vault], tmp_path: Path, rank: int
) -> None:
    vault, folder = make_vault(), tmp_path / "store"
    vault.fill(folder)
    whole = content(folder)
    for name in SHARDS:
        data = bytearray(whole[name])
        data[-3] ^= 1
        (folder / name).write_bytes(data)
    assert open_store(folder).damaged() == list(SHARDS)
    vault.fill(folder, share=(rank, 2))
    assert open_store(folder, verify=True).complete
    assert content(folder) == whole


def test_what_was_just_written_is_not_read_again(
    make_vault: Callable[..., Vault], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of many processes would hash the whole store otherwise."""
    vault, folder, hashed = make_vault(), tmp_path / "store", list[str]()
    vault.fill(folder)
    whole = content(folder)
    monkeypatch.setattr(writing, "same_bytes", lambda file, header: not hashed.append(file.name))
    for name in SHARDS[:2]:
        (folder / name).unlink()

    def compute(rows: tuple[int, int]) -> dict[str, torch.Tensor]:
        (folder / SHARDS[1]).write_bytes(whole[SHARDS[1]])  # as another process of the launch does
        return vault.compute(rows)

    writing.write_store(folder, vault.plan, compute, share=(0, 2))
    assert hashed == [SHARDS[2]]
    assert content(folder) == whole
