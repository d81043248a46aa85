from pathlib import Path

from defection.probes.levers.rule import LeverRule
from defection.probes.pictures.levers_figure import save_levers_figure


def row(direction: str, role: str, suppression: float | None, recovery: float | None) -> dict[str, object]:
    ends = (("low", -9.0), ("high", 1.0))
    low = {f"{name}_{side}": value for name in ("suppression", "recovery") for side, value in ends}
    found = {"direction": direction, "role": role, "suppression": suppression, "recovery": recovery, "cost": 0.1}
    return {**low, **found, "stage": "test", "model": "organism"}


def test_every_direction_is_named_and_what_has_no_recovery_is_left_out(tmp_path: Path) -> None:
    rows = [row("probe", "candidate", 0.1, -8.0), row("lost", "candidate", None, None), row("r", "random", 1.0, 0.2)]
    assert save_levers_figure(rows, LeverRule().to_json(), tmp_path).exists()
    said = (tmp_path / "levers.svg").read_text()
    assert "<!-- probe -->" in said
    assert "<!-- random directions -->" in said
    assert "<!-- lost -->" not in said
