"""What the benchmarks of this folder share: how a script is run, and how two pieces of work are timed against another.

A script has `PARTS`, functions by name. A part takes `quick` (two rounds of the smallest size, to see that it runs),
refuses to time results that differ, and returns records: flat JSON objects with `row` (of the project's table of aims),
`name`, `yardstick`, and either `ratio`, `lowest`, `highest`, `rounds` and the aim as `at_least` or `at_most`, or
`skipped` with the reason.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

Records = list[dict[str, Any]]
Parts = Mapping[str, Callable[[bool], Records]]


def main(parts: Parts, description: str | None) -> None:
    """The command line of a script; prints one JSON object, the records (or the error) of each part."""
    parser = argparse.ArgumentParser(
        description=description or "", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(parts), help="parts to run, with commas between them (default: all)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: few rounds, small sizes")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := [name for name in names if name not in parts]:
        parser.error(f"no part {unknown[0]!r}: there are {', '.join(parts)}")
    print(json.dumps({name: attempt(parts[name], name, options.quick) for name in names}, indent=2))


def attempt(part: Callable[[bool], Records], name: str, quick: bool) -> Records | dict[str, str]:
    """The part's records, or its error: one that fails does not take the others with it."""
    print(f"{name} …", file=sys.stderr)
    try:
        return part(quick)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def interleaved(
    theirs: Callable[[], object],
    ours: Callable[[], object],
    *,
    rounds: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Time both in turn, after one of each to warm up. `ratio` is the median of theirs / ours over the rounds."""

    def seconds(work: Callable[[], object]) -> float:
        start = clock()
        work()
        return clock() - start

    theirs(), ours()
    pairs = [(seconds(theirs), seconds(ours)) for _ in range(rounds)]
    return {**spread([a / b for a, b in pairs]), **medians(pairs)}


def spread(ratios: list[float]) -> dict[str, Any]:
    """The median of some rounds and how far they lie apart."""
    return {
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "rounds": len(ratios),
    }


def medians(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """Median seconds of each side; the ratio of these is not the median ratio."""
    return {
        "seconds_theirs": statistics.median(a for a, _ in pairs),
        "seconds_ours": statistics.median(b for _, b in pairs),
    }
