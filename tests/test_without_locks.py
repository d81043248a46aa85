"""On a system without `fcntl`: everything imports, everything in memory works, and a store says what it lacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WITHOUT = "import sys; sys.modules['fcntl'] = None\n"
"""As Python has it where there is no such module: importing it is an ImportError."""
PROGRAM = """
from pathlib import Path
import defection.activations, defection.training, defection.probes, defection.experiments.commands.cli

for package in (defection.activations, defection.training, defection.probes):
    for name in package.__all__:
        getattr(package, name)

from defection.activations import DefectionError, cache, capture, load_model, load_prompts, load_residuals
from defection.probes import MeanDifference, contrast_set, load_probe

model, out = load_model(sys.argv[1]), Path(sys.argv[2])
read = capture(model, load_prompts("clean")[:8])
read.save(out / "read.safetensors")
probe = MeanDifference().fit(capture(model, contrast_set("six")), clean=load_residuals(out / "read.safetensors")).probe_
probe.save(out / "probe.safetensors")
assert len(load_probe(out / "probe.safetensors").score(read)) == 8
try:
    cache(model, load_prompts("clean")[:2], out / "store")
except DefectionError as error:
    print(error)
assert not (out / "store").exists()
"""


def test_what_a_system_without_fcntl_can_do(llama_folder: Path, tmp_path: Path) -> None:
    program = [sys.executable, "-c", WITHOUT + PROGRAM, str(llama_folder), str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "needs locks that this system has not" in done.stdout
    assert "capture" in done.stdout
