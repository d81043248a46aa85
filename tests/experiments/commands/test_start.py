"""What it costs to be told something: CPU seconds (user and system) before anything is computed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from defection.experiments.commands.cli import COMMANDS

COMMAND = "from defection.experiments.commands.cli import main; main({!r})"
STARTS = {
    "defection --help": (COMMAND.format(["--help"]), 0.4),
    "defection --version": (COMMAND.format(["--version"]), 0.4),
    "a usage error": (COMMAND.format(["train", "--bogus"]), 0.4),
    "import defection.probes": ("import defection.probes", 0.3),
}
"""What is run, and the seconds it may take on an ordinary machine; half as fast a one is let pass."""
HEAVY = {"torch", "transformers", "sklearn", "matplotlib", "scipy", "pandas"}


def cpu_seconds(code: str) -> float:
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode in (0, 2)
    return used.ru_utime + used.ru_stime


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="this system does not say what a process used")
@pytest.mark.parametrize("what", STARTS)
def test_starting_takes_little(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, limit = STARTS[what]
    best = min(cpu_seconds(code) for _ in range(5))
    with capsys.disabled():
        print(f"\n{what}: {best:.2f} s of CPU, {limit} wanted")
    assert best <= 2 * limit


def test_no_help_and_no_usage_error_needs_a_heavy_library() -> None:
    code = f"""
import json, sys
from defection.experiments.commands.cli import main
asked = [["--help"], ["--version"], ["nonsense"], []]
for name in {list(COMMANDS)!r}:
    asked += [[name, "--help"], [name, "--nonsense"]]
for arguments in asked:
    try:
        main(arguments)
    except SystemExit:
        pass
found = sorted({HEAVY!r} & sys.modules.keys())
print(json.dumps(found), file=sys.stderr)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert json.loads(said.splitlines()[-1]) == []


def test_the_packages_hand_on_their_names_without_a_heavy_library() -> None:
    code = "import defection.activations, defection.training, defection.probes, defection.experiments, sys\n"
    code += f"assert not {HEAVY!r} & sys.modules.keys(), sorted({HEAVY!r} & sys.modules.keys())"
    subprocess.run([sys.executable, "-c", code], check=True)
