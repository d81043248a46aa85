"""Run every benchmark of this folder and write `benchmarks/results.json`, with the machine in it.

    python benchmarks/run.py [reading store fitting …]

Each script prints JSON; a script that fails leaves its error in the file instead of figures, and the others still run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.json"


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    names = [line.split(":")[1].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "transformers", "transformer-lens", "numpy")},
    }


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def run(script: Path) -> Any:
    """What a script prints, or the last line of its error."""
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    sys.stderr.write(done.stderr)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout)


def main() -> None:
    scripts = {path.stem: path for path in sorted(FOLDER.glob("*.py")) if path.stem not in ("run", "__init__")}
    parser = argparse.ArgumentParser(description="Run the benchmarks and write benchmarks/results.json.")
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(scripts)}; all by default")
    names = parser.parse_args().names or list(scripts)
    if unknown := [name for name in names if name not in scripts]:
        parser.error(f"no benchmark {unknown[0]}: there are {', '.join(scripts)}")
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in names:
        print(f"{name} …", file=sys.stderr)
        results[name] = {"machine": machine(), "results": run(scripts[name])}
        RESULTS.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
