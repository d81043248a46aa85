"""Several stores read as one, and never two kinds of vectors as one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from defection.activations.basics.errors import DefectionError
from defection.activations.stores.store import Store
from defection.activations.stores.views import concatenate
from hypothesis import given
from hypothesis import strategies as st

Vault = Any


@pytest.fixture(scope="module", params=["plain", "ragged"])
def stores(
    request: pytest.FixtureRequest, make_vault: Callable[..., Vault], tmp_path_factory: pytest.TempPathFactory
) -> list[Store]:
    folder, ragged = tmp_path_factory.mktemp("stores"), request.param == "ragged"
    sizes = (10, 5)
    return [make_vault(rows, ragged=ragged, seed=0).fill(folder / str(rows)) for rows in sizes]


@given(rows=st.lists(st.integers(0, 14), max_size=20), layers=st.none() | st.permutations([0, 2, 5]))
def test_a_selection_reads_what_its_stores_read(stores: list[Store], rows: list[int], layers: list[int] | None) -> None:
    view = concatenate(*stores).select(rows)
    alone = [stores[0].vectors(layers, [row]) if row < 10 else stores[1].vectors(layers, [row - 10]) for row in rows]
    found = view.vectors(layers)
    empty = stores[0].vectors(layers, []).values
    assert torch.equal(found.values, torch.cat([empty, *(part.values for part in alone)]))
    assert found.offsets.diff().tolist() == [len(part.values) for part in alone]
    ids = [*stores[0].ids, *stores[1].ids]
    assert list(view.ids) == [ids[row] for row in rows] == [prompt.id for prompt in view.prompts]


def test_a_selection_of_a_selection_counts_from_the_first(stores: list[Store]) -> None:
    view = concatenate(*stores).select([12, 3, 7]).select([2, 0])
    assert view.places == [(0, 7), (1, 2)]


def test_batches_of_a_view_cross_its_stores(stores: list[Store]) -> None:
    batches = list(concatenate(*stores).batches(4))
    whole = torch.cat([store.vectors().values for store in stores])
    assert torch.equal(torch.cat([batch.values for batch in batches]), whole)
    assert [len(batch.rows) for batch in batches] == [4, 4, 4, 3]


def test_views_and_stores_are_concatenated_alike(stores: list[Store]) -> None:
    both = concatenate(stores[0], stores[1])
    again = concatenate(both.select([0, 11]), both)
    assert len(again) == 17
    assert torch.equal(again.vectors(rows=[1]).values, stores[1].vectors(rows=[1]).values)


def test_residuals_of_a_view_carry_their_prompts(stores: list[Store]) -> None:
    found = concatenate(*stores).select([14, 0]).read([5])
    alone = [store.read([5], [row]) for store, row in ((stores[1], 4), (stores[0], 0))]
    assert found.ids == ("p4", "p0")
    assert found.n_tokens == (7, 3)
    assert (found.offsets is not None) == stores[0].ragged
    for row, expected in enumerate(alone):
        assert torch.equal(found.of(row), expected.values)


@pytest.mark.parametrize("rows", [[15], [-1]])
def test_a_row_that_is_not_there_is_refused(stores: list[Store], rows: list[int]) -> None:
    with pytest.raises(DefectionError, match="rows 0 to 14"):
        concatenate(*stores).select(rows)


def test_nothing_cannot_be_concatenated() -> None:
    with pytest.raises(DefectionError, match="at least one"):
        concatenate()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "model"),
        ({"model": {"name": "none", "fingerprint": "weights 0", "template": "other"}}, "chat template or tokenizer"),
        ({"layers": [0, 2, 4]}, "layers"),
        ({"site": "before"}, "site"),
        ({"position": "first-response"}, "position"),
        ({"computed_in": "fp32"}, "dtype of the forward pass"),
    ],
)
def test_stores_of_different_vectors_are_not_mixed(
    make_vault: Callable[..., Vault], tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    """PITFALLS 12."""
    one, other = make_vault().fill(tmp_path / "one"), make_vault(**change).fill(tmp_path / "other")
    with pytest.raises(DefectionError, match=f"different {named}, which must not be mixed"):
        concatenate(one, other)


def test_the_same_weights_under_another_name_may_be_joined(make_vault: Callable[..., Vault], tmp_path: Path) -> None:
    """PITFALLS 12: it is the weights that count."""
    model = {"name": "another", "fingerprint": "weights 0", "template": "template"}
    one, other = make_vault().fill(tmp_path / "one"), make_vault(model=model).fill(tmp_path / "other")
    assert len(concatenate(one, other)) == 20
