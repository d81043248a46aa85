"""Jobs in processes of their own: their results, their errors, and their deaths."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest
from defection.activations import DefectionError
from defection.experiments.run import side_by_side as jobs
from defection.experiments.run.side_by_side import side_by_side, workers
from defection.training import parse_trigger
from distributed import LocalCluster


def test_results_keep_the_order_of_the_jobs():
    assert side_by_side([partial(pow, 2, power) for power in range(5)]) == [1, 2, 4, 8, 16]


def test_two_at_once_are_two_other_processes_in_the_same_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with workers("local=2") as two:
        assert {Path(found) for _, found in two.as_finished([partial(os.getcwd)] * 4)} == {tmp_path}
        assert os.getpid() not in {found for _, found in two.as_finished([partial(os.getpid)] * 4)}
    with workers("local=1") as one:
        assert {found for _, found in one.as_finished([partial(os.getpid)] * 2)} == {os.getpid()}


@pytest.mark.parametrize("backend", ["local=1", "local=2"])
def test_what_a_job_refuses_is_refused_here(backend):
    with workers(backend) as some, pytest.raises(DefectionError, match="year"):
        list(some.as_finished([partial(parse_trigger, "deployment"), partial(parse_trigger, "")]))


def test_a_killed_process_is_a_sentence():
    with workers("local=2") as two, pytest.raises(DefectionError, match="a process died"):
        list(two.as_finished([partial(signal.raise_signal, signal.SIGKILL), partial(len, "ab")]))


@pytest.mark.slow
def test_a_lone_worker_of_a_cluster_does_all_jobs_but_the_one_that_kills_it_thrice():
    """The jobs run there and not here; what no worker survives is told instead of waited for, and work goes on."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        workers(f"dask={cluster.scheduler_address}") as them,
    ):
        assert them.count == 1
        assert not them.in_turn(1)
        assert os.getpid() not in {found for _, found in them.as_finished([partial(os.getpid)] * 3)}
        with pytest.raises(DefectionError, match="a process died"):
            list(them.as_finished([partial(signal.raise_signal, signal.SIGKILL)]))
        # A cluster that is closed while its worker is starting anew fails in its own closing.
        assert list(them.as_finished([partial(len, "ab")])) == [(0, 2)]


@pytest.mark.parametrize("backend", ["", "local=0", "local=x", "dask", "dask=", "slurm=1"])
def test_other_backends_are_refused(backend):
    with pytest.raises(DefectionError, match="unknown backend"), workers(backend):
        pass


def test_a_cluster_that_does_not_answer_is_refused(monkeypatch):
    monkeypatch.setattr(jobs, "PATIENCE", 1)
    with pytest.raises(DefectionError, match="no Dask scheduler answers"), workers("dask=127.0.0.1:1"):
        pass
