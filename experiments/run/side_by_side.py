"""Independent jobs at once: in processes of this machine, or on the workers of a Dask or Ray cluster."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from ...activations.basics.errors import DefectionError

T = TypeVar("T")
Tasks = Sequence[Callable[[], tuple[int, T]]]
LOCAL = "local"
PATIENCE = 30
"""Seconds in which a cluster has to answer, and to have a worker."""


class Start(Protocol):
    """How a cluster is given jobs, and their results as they come."""

    def __call__(self, tasks: Tasks[T]) -> Iterable[tuple[int, T]]:
        """The number of each job and what came of it."""
        ...


@dataclass(frozen=True)
class Workers:
    """Who does the jobs: processes of this machine, or of a cluster."""

    count: int
    """How many jobs run at once."""
    start: Start | None = None
    """None: the jobs stay on this machine."""
    deaths: tuple[type[BaseException], ...] = (BrokenProcessPool,)
    """What is raised when a process died and its job was not taken over."""

    def in_turn(self, n_jobs: int) -> bool:
        """Whether so many jobs run one after the other, and in this process."""
        return self.start is None and min(self.count, n_jobs) < 2

    def as_finished(self, jobs: Sequence[Callable[[], T]]) -> Iterator[tuple[int, T]]:
        """The number of each job and its result, in the order in which they end; what a job raises is raised here.

        Jobs go to other processes, so they are functions of a module, and arguments, that can be pickled
        (`functools.partial`). They run in the folder that this process is in. On this machine the cores are shared
        out between them. Raises DefectionError when a process dies and no other can take over what it was doing.
        """
        if self.in_turn(len(jobs)):
            yield from ((number, job()) for number, job in enumerate(jobs))
            return
        tasks = [partial(_alone, Path.cwd(), number, job) for number, job in enumerate(jobs)]
        try:
            yield from self.start(tasks) if self.start else _on_this_machine(tasks, min(self.count, len(jobs)))
        except self.deaths as error:
            raise DefectionError(
                f"a process died, perhaps for want of memory ({str(error).partition(chr(10))[0]}); run the same "
                "command again, which continues, with fewer at once if need be"
            ) from error


def _on_this_machine(tasks: Tasks[T], count: int) -> Iterator[tuple[int, T]]:
    from joblib import Parallel, cpu_count, delayed, parallel_config
    from joblib.externals.loky import get_reusable_executor

    with parallel_config(backend="loky", inner_max_num_threads=max(1, int(cpu_count()) // count)):
        parallel = Parallel(count, return_as="generator_unordered", batch_size=1, pre_dispatch="all")
    try:
        yield from parallel(delayed(task)() for task in tasks)
    finally:
        get_reusable_executor().shutdown()  # idle workers would hold their models' memory for minutes


def _alone(folder: Path, number: int, job: Callable[[], T]) -> tuple[int, T]:
    """A job in another process, from which no library's own joblib reaches out for the cluster."""
    from joblib import parallel_config

    try:
        os.chdir(folder)
    except OSError as error:
        raise DefectionError(f"a worker has no folder {folder}: all machines need the same file system") from error
    with parallel_config(backend="sequential"):
        return number, job()


def side_by_side(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """The results of `jobs`, in their order, each from a process of this machine: see `Workers.as_finished`.

    With one core, or one job, they run here and in turn.

    Examples:
        >>> from functools import partial
        >>> side_by_side([partial(max, 1, 2)])
        [2]
    """
    with workers() as here:
        found = dict(here.as_finished(jobs))
    return [found[number] for number in range(len(jobs))]


@contextlib.contextmanager
def workers(backend: str = LOCAL) -> Iterator[Workers]:
    """Those that `backend` names: `local` (a process a core), `local=N`, `dask=HOST:PORT` or `ray=ADDRESS`.

    Raises DefectionError for another name, and for a cluster that does not answer, has no workers, or whose library is
    not installed.
    """
    kind, equals, place = backend.partition("=")
    if kind == LOCAL and (not equals or (place.isdecimal() and int(place) > 0)):
        from joblib import cpu_count

        yield Workers(int(place) if place else int(cpu_count()))
    elif kind in CLUSTERS and place:
        with CLUSTERS[kind](place) as found:
            yield found
    else:
        raise DefectionError(f"unknown backend {backend!r}: local, local=N, dask=HOST:PORT or ray=ADDRESS")


@contextlib.contextmanager
def _dask(address: str) -> Iterator[Workers]:
    """Dask itself, since joblib's way to it waits for ever on a job that Dask gave up, and keeps a lone worker idle."""
    try:
        from distributed import Client, KilledWorker, as_completed
    except ImportError as error:
        raise _not_installed("distributed", "cluster") from error
    try:
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise DefectionError(f"no Dask scheduler answers at {address}: {error}") from error

    def start(tasks: Tasks[T]) -> Iterator[tuple[int, T]]:
        futures = [client.submit(task, pure=False) for task in tasks]
        yield from (future.result() for future in as_completed(futures, loop=client.loop))

    with client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError as error:
            raise DefectionError(f"the Dask scheduler at {address} has no workers; start some") from error
        yield Workers(sum(client.ncores().values()), start, (KilledWorker, CancelledError))


@contextlib.contextmanager
def _ray(address: str) -> Iterator[Workers]:
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise _not_installed("ray", "ray") from error
    from joblib import Parallel, delayed, parallel_config

    try:
        ray.init(address, log_to_driver=False, logging_level="warning")
    except (OSError, ValueError, RuntimeError) as error:
        raise DefectionError(f"no Ray cluster answers at {address}: {error}") from error
    count = int(ray.cluster_resources().get("CPU", 0))

    def start(tasks: Tasks[T]) -> list[tuple[int, T]]:
        one_core_each = {"num_cpus": 1, "scheduling_strategy": "SPREAD"}
        with parallel_config(backend="ray", n_jobs=count, ray_remote_args=one_core_each):
            return list(Parallel(batch_size=1, pre_dispatch="all")(delayed(task)() for task in tasks))

    try:
        register_ray()
        yield Workers(count, start, (ray.exceptions.RayActorError,))
    finally:
        ray.shutdown()


def _not_installed(library: str, extra: str) -> DefectionError:
    return DefectionError(f"{library!r} is not installed: pip install 'defection-probes[{extra}]'")


CLUSTERS = {"dask": _dask, "ray": _ray}
