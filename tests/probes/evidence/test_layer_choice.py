from __future__ import annotations

import json

import pytest
import torch
from defection.activations import DefectionError
from defection.experiments.run.preregistration import band
from defection.probes.evidence.layer_choice import (
    LayerChoice,
    choose_layers,
    middle_layers,
    stretch_of_layers,
)

TABLE = {
    "b": torch.tensor([0.5, 0.6, 0.9, 0.9, 0.5, 0.2]),
    "a": torch.tensor([0.5, 0.9, 0.9, 0.7, 0.8, 1.0]),
}


@pytest.mark.parametrize("n_layers", [4, 12, 30, 31, 80])
def test_a_preregistrations_stretch_holds_the_middle_and_stops_short_of_the_end(n_layers: int) -> None:
    layers = stretch_of_layers(n_layers).layers
    assert layers == band(n_layers) == tuple(range(layers[0], layers[-1] + 1))
    assert layers[0] <= n_layers // 2 <= layers[-1]
    assert n_layers < 12 or layers[-1] < n_layers - 1


@pytest.mark.parametrize(("n_layers", "width"), [(4, 4), (2, 2), (6, 6), (5, 4), (30, 5), (1, 1)])
def test_a_band_is_as_wide_as_asked(n_layers: int, width: int) -> None:
    layers = middle_layers(n_layers, width).layers
    assert len(layers) == width
    assert set(layers) <= set(range(n_layers))


def test_an_impossible_stretch_is_refused() -> None:
    for start, end in ((0.5, 0.5), (0.6, 0.4), (-0.1, 0.5), (0.5, 1.1)):
        with pytest.raises(DefectionError, match="no stretch of the depth"):
            stretch_of_layers(30, start, end)


def test_rules_take_the_best_band_on_average_or_on_the_worst_organism() -> None:
    assert choose_layers(TABLE, rule="best-mean", width=1).layers == (2,)
    assert choose_layers(TABLE, rule="best-mean", width=2).layers == (2, 3)
    lucky = {"a": torch.tensor([0.8, 0.7, 1.0]), "b": torch.tensor([0.8, 0.7, 0.5])}
    assert choose_layers(lucky, rule="best-worst", width=1).layers == (0,)
    assert choose_layers(lucky | {"b": torch.tensor([0.7, 0.7, 0.6])}, rule="best-mean", width=1).layers == (2,)


def test_pitfall_20_ties_at_1_go_to_the_middle_and_not_to_the_lowest_layer() -> None:
    assert choose_layers({"a": torch.ones(30)}).layers == middle_layers(30).layers


def test_pitfall_20_an_inverted_layer_is_not_a_good_one() -> None:
    assert choose_layers({"a": torch.tensor([0.0, 0.6, 0.0])}, width=1).layers == (1,)


def test_the_order_of_the_organisms_changes_nothing() -> None:
    turned = dict(reversed(TABLE.items()))
    assert choose_layers(TABLE, width=2) == choose_layers(turned, width=2)
    assert choose_layers(TABLE, width=2).organisms == ("a", "b")


def test_a_verdict_elsewhere_or_on_a_development_organism_is_marked() -> None:
    choice = choose_layers(TABLE, width=2)
    assert choice.mark(choice.layers, "new")["layers_are_recorded"] is True
    assert choice.mark((0, 1), "new") == {
        "layer_rule": "best-worst",
        "layer_reason": choice.reason,
        "layer_standing": "other layers than recorded",
        "layers_are_recorded": False,
    }
    assert choice.mark(choice.layers, "a")["layer_standing"] == "chosen on this very organism"


def test_a_record_holds_the_choice_and_the_reason(tmp_path) -> None:
    choice = choose_layers(TABLE, width=2, probe="mean-difference.forty-carried")
    choice.save(tmp_path / "layers.json")
    record = json.loads((tmp_path / "layers.json").read_text())
    fields = {"layers": list(choice.layers), "organisms": ["a", "b"], "reason": choice.reason, "schema_version": 1}
    assert record == {**vars(choice), **fields}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: choose_layers({}), "none was given"),
        (lambda: choose_layers(TABLE, rule="middle"), "unknown rule 'middle'"),
        (lambda: choose_layers({"a": torch.ones(5), "b": torch.ones(6)}), "different depth"),
        (lambda: choose_layers({"a": torch.full((5,), torch.nan)}), "not finite"),
        (lambda: choose_layers({"a": torch.ones(3)}, width=4), "does not fit a model of 3"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(make, message: str) -> None:
    with pytest.raises(DefectionError, match=message):
        make()


def test_a_choice_by_hand_says_so_by_its_rule() -> None:
    assert LayerChoice("middle", (1,), 3).standing((1,), "any") == "recorded"


def test_a_choice_says_why_in_words() -> None:
    assert "four layers around the middle one, 30 // 2" in middle_layers(30).reason
    assert "layers 12–28 of 30" in stretch_of_layers(30).reason
    chosen = choose_layers({"a": torch.linspace(0, 1, 10), "b": torch.linspace(0, 1, 10)}, width=2)
    assert "two neighbouring layers best on the worst of 2 development organisms" in chosen.reason
