"""Run every benchmark of this folder and write `benchmarks/results.json`, with the machine in it.

    python benchmarks/run.py                         all of them
    python benchmarks/run.py --only reading,store    some scripts, or a part of one: reading.bare
    python benchmarks/run.py --quick                 to see that they run; nothing is written

A script is any file here that calls `common.main` with its `PARTS`. What is not run again keeps its figures; what fails
leaves its error in the file instead of figures, and the others still run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.json"
PACKAGES = ("torch", "transformers", "transformer-lens", "nnsight", "peft", "trl", "scikit-learn", "numpy")


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    names = [line.split(":")[1].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "bf16_in_hardware": torch.cpu._is_avx512_bf16_supported(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def run(script: Path, part: str | None, quick: bool) -> Iterator[tuple[str, Any]]:
    """Each part of a script with its records, or its error, as soon as it is done."""
    command = [sys.executable, str(script), *(["--only", part] if part else []), *(["--quick"] if quick else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            yield from json.loads(line).items()
    if process.returncode:
        yield part or "the rest", {"error": f"{script.name} ended with status {process.returncode}"}


def table(name: str, records: Any) -> str:
    """A line for each record of a part: its ratio, the spread, and the aim."""
    if isinstance(records, dict):
        return f"{name}: {records['error']}"
    return "\n".join(f"{each['row']:>3}  {each['name']} / {each['yardstick']}: {_figure(each)}" for each in records)


def _figure(record: dict[str, Any]) -> str:
    if "skipped" in record:
        return f"skipped: {record['skipped']}"
    text = f"{record['ratio']:.3g} ({record['lowest']:.3g} to {record['highest']:.3g}, {record['rounds']} rounds)"
    if "at_least" in record:
        text += f", aim {record['at_least']:g}{'' if record['ratio'] >= record['at_least'] else ': MISSED'}"
    if "at_most" in record:
        text += f", aim at most {record['at_most']:g}{'' if record['ratio'] <= record['at_most'] else ': MISSED'}"
    return text


def main() -> None:
    scripts = {path.stem: path for path in sorted(FOLDER.glob("*.py")) if "main(PARTS" in path.read_text("utf-8")}
    scripts.pop("run", None)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(scripts), help=f"some of {', '.join(scripts)}, or SCRIPT.PART")
    parser.add_argument("--quick", action="store_true", help="a smoke run; results.json stays as it is")
    options = parser.parse_args()
    chosen = [name.partition(".") for name in options.only.split(",")]
    if unknown := [name for name, _, _ in chosen if name not in scripts]:
        parser.error(f"no benchmark {unknown[0]!r}: there are {', '.join(scripts)}")
    for name, _, part in chosen:
        print(f"== {name} {part}", file=sys.stderr)
        for number, (each, records) in enumerate(run(scripts[name], part, options.quick)):
            print(table(f"{name}.{each}", records), flush=True)
            if not options.quick:
                keep(name, each, records, afresh=not part and number == 0)


def keep(script: str, part: str, records: Any, *, afresh: bool) -> None:
    """Put a part's records into the results; `afresh` without any that the script's parts had."""
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    kept = {} if afresh else results.get(script, {})
    results[script] = {**kept, part: {"machine": machine(), "records": records}}
    RESULTS.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
