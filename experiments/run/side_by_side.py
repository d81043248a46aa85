"""Independent jobs at once, each in a process of its own: on a CPU, small models do not fill several cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def side_by_side(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """The results of `jobs`, in their order; what one of them raises is raised here.

    Jobs go to other processes, so they are functions of a module with arguments that can be pickled
    (`functools.partial`). The cores are shared out between them; with one core, or one job, they run here and in turn.

    Example:
        >>> from functools import partial
        >>> side_by_side([partial(max, 1, 2)])
        [2]
    """
    from joblib import Parallel, cpu_count, delayed, parallel_config
    from joblib.externals.loky import get_reusable_executor

    cores = int(cpu_count())
    workers = min(len(jobs), cores)
    if workers < 2:
        return [job() for job in jobs]
    with parallel_config(backend="loky", inner_max_num_threads=cores // workers):
        found: list[Any] = Parallel(n_jobs=workers)(delayed(job)() for job in jobs)
    get_reusable_executor().shutdown()  # idle workers would hold their models' memory for minutes
    return found
