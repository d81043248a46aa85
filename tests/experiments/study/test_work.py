"""Tasks that several processes share: each is done once, in order, and by somebody else when its worker dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from defection.activations import DefectionError
from defection.experiments.study.work import Task, held, work_off

FORK = multiprocessing.get_context("fork")


def quiet(_: str) -> None:
    return None


def tasks_in(folder: Path, count: int, pause: float = 0.0, *, shared: bool = False) -> list[Task]:
    """Each appends its process to a file of its own; the last needs all the others, the first takes until the second
    is done, which somebody else has to do."""

    def make(number: int) -> Task:
        place = folder / str(number)

        def run() -> None:
            time.sleep(pause)
            while number == 0 and shared and not (folder / "1" / "done").exists():
                time.sleep(0.01)
            with open(place / "done", "a") as file:
                file.write(f"{os.getpid()}\n")

        ready = lambda: number < count - 1 or all((folder / str(i) / "done").exists() for i in range(count - 1))  # noqa: E731
        return Task(f"task {number}", place, (place / "done").exists, ready, run)

    return [make(number) for number in range(count)]


def test_two_processes_do_each_task_once_and_both_return(tmp_path):
    tasks = tasks_in(tmp_path, 8, shared=True)
    workers = [FORK.Process(target=work_off, args=(tasks, quiet, 0.02)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(600)
        assert worker.exitcode == 0
    by = [(tmp_path / str(i) / "done").read_text().split() for i in range(8)]
    assert all(len(pids) == 1 for pids in by)
    assert len({pids[0] for pids in by}) == 2


def test_the_task_of_a_killed_process_is_taken_over(tmp_path):
    tasks = tasks_in(tmp_path, 2, pause=60)
    victim = FORK.Process(target=work_off, args=(tasks, quiet, 0.02))
    victim.start()
    while not (tmp_path / "0" / ".lock").exists():
        time.sleep(0.01)
    time.sleep(0.1)
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    work_off(tasks_in(tmp_path, 2), quiet, 0.02)
    assert (tmp_path / "1" / "done").exists()


def test_tasks_that_wait_for_nothing_are_an_error(tmp_path):
    stuck = Task("stuck", tmp_path / "x", lambda: False, lambda: False, lambda: None)
    with pytest.raises(DefectionError, match="waits for something"):
        work_off([stuck], quiet, 0.01)


def test_a_failing_task_is_told_and_its_lock_dropped(tmp_path):
    def fail() -> None:
        raise DefectionError("no such prompts")

    with pytest.raises(DefectionError, match="no such prompts"):
        work_off([Task("t", tmp_path / "x", lambda: False, lambda: True, fail)], quiet, 0.01)
    with held(tmp_path / "x"):
        pass
