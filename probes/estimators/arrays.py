"""Bare numbers as a fit takes them: rows, classes and topics of NumPy or PyTorch, checked as scikit-learn would."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_consistent_length, column_or_1d
from torch import Tensor

from ...activations.basics.errors import DefectionError

Array = Tensor | NDArray[np.generic]


def host(values: ArrayLike) -> NDArray[Any]:
    """A tensor of any device, or what looks like an array, as an array."""
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)


def layered(rows: Tensor) -> Float[Tensor, "n layer d"]:
    """Rows of a single layer as those of several, of which there is one."""
    return rows if rows.ndim == 3 else rows[:, None]


def refuse_non_finite(rows: Tensor) -> None:
    """DefectionError where a number is NaN or infinite."""
    # A finite sum has finite terms; only where it is not are they looked at one by one.
    if not rows.sum().isfinite() and not rows.isfinite().all():
        raise DefectionError("rows hold NaN or infinity; find the overflow before fitting")


def two_classes(y: ArrayLike | None, rows: Tensor, name: str) -> tuple[NDArray[Any], Bool[Tensor, "n"]]:
    """The two classes in sorted order, and which rows belong to the second; DefectionError for more or fewer."""
    if y is None:
        raise DefectionError(f"{name} requires y to be passed, but the target y is None")
    labels = host(y)
    if labels.ndim != 1 or labels.dtype.kind not in "biu":  # one integer or truth value a row is a class as it is
        labels = column_or_1d(labels, warn=True)
        check_classification_targets(labels)
    check_consistent_length(rows, labels)
    classes, numbers = np.unique(labels, return_inverse=True)
    if len(classes) > 2:
        raise DefectionError(
            "Only binary classification is supported. The type of the target is "
            f"{type_of_target(labels, input_name='y')}."
        )
    if len(classes) < 2:
        raise DefectionError("a fit needs rows of both kinds, but y holds a single class")
    return classes, torch.as_tensor(numbers == 1, device=rows.device)


def topics(groups: ArrayLike | None, rows: Tensor) -> Int[Tensor, "n"] | None:
    """Names of topics as numbers; DefectionError where they are more than the rows or fewer."""
    if groups is not None and len(host(groups)) != len(rows):
        raise DefectionError(f"groups has {len(host(groups))} entries, but X has {len(rows)} rows")
    return None if groups is None else torch.as_tensor(np.unique(host(groups), return_inverse=True)[1])


def row_numbers(pairs: ArrayLike | None, rows: Tensor) -> Int[Tensor, "pair 2"] | None:
    """Row numbers where the rows lie."""
    return None if pairs is None else torch.as_tensor(host(pairs), dtype=torch.int64, device=rows.device)


def columns(nuisance: ArrayLike | None, rows: Tensor) -> Float[Tensor, "n k"] | None:
    """A table in fp64 where the rows lie; DefectionError where it has more rows than they or fewer."""
    if nuisance is None:
        return None
    table = torch.as_tensor(host(nuisance), dtype=torch.float64, device=rows.device)
    if len(table) != len(rows):
        raise DefectionError(f"nuisance has {len(table)} rows, but X has {len(rows)}")
    return table.reshape(len(table), -1)
