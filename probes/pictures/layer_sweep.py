"""Where in one's own activations two kinds of rows come apart: a table with its nulls, which draws itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from ...activations import DefectionError, Residuals, Table
from ..estimators.arrays import Array, host, layered, refuse_non_finite, two_classes
from ..estimators.mean_difference import MeanDifference
from ..estimators.ragged import refuse_ragged
from ..estimators.registry import estimators
from ..evidence.layer_sweep import LabelledRows, layer_rows
from ..evidence.sweep_table import SweepRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from sklearn.base import BaseEstimator


class LayerSweep(Table[SweepRow]):
    """A row a layer: AUROC with its interval, bands of random directions, p-values; `scores` are what they are of.

    Columns are those of a sweep's table (`SweepRow`): `layer`, `auroc`, `auroc_low`, `auroc_high`, `null_low`,
    `null_high`, `null_covariance_low`, `null_covariance_high`, `p_label_shuffle`, `salience`, `tpr_at_fpr_1pct`, …

    Examples:
        >>> table = sweep_layers(X, y, groups=groups, draws=0)
        >>> table.best.layer, table.scores.shape
        (1, torch.Size([40, 3]))
    """

    def __init__(self, rows: Iterable[SweepRow], scores: Float[Tensor, "n layer"], cross_fitted: str) -> None:
        super().__init__(rows)
        self.scores = scores
        """[n, layer] each row's score by a fit that did not see its group, in standard deviations of those it saw."""
        self.cross_fitted = cross_fitted

    @property
    def best(self) -> SweepRow:
        """The layer with the highest AUROC; chosen after the labels were read, so `p_best_layer` allows for that."""
        return next(row for row in self if row.is_best_layer)

    def plot(self, ax: Axes | None = None) -> Axes:
        """AUROC by layer over its null bands; gives the axes.

        Args:
            ax: Axes of matplotlib; None: new ones.

        Examples:
            >>> rng = np.random.default_rng(0)
            >>> X, y = rng.normal(size=(40, 3, 8)), np.arange(40) % 2
            >>> sweep_layers(X, y, draws=0).plot().get_ylabel()
            'AUROC'
        """
        from .plots import auroc_by_layer
        from .style import style

        with style():
            if ax is None:
                from matplotlib import pyplot

                ax = pyplot.subplots(figsize=(5.4, 3.5), layout="constrained")[1]
            auroc_by_layer(ax, self, label=f"{self[0].probe} (95% interval)", ordinary="ordinary rows'")
            p = self.best.p_best_layer
            chance = "" if np.isnan(p) else f"; best of {len(self)} layers: p = {p:.3g}"
            ax.set(xlabel="layer", ylabel="AUROC", title=f"{self.cross_fitted}{chance}")
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
        return ax


def sweep_layers(
    X: Array | Residuals,
    y: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    probe: BaseEstimator | str | None = None,
    clean: Array | Residuals | None = None,
    layers: Sequence[int] | None = None,
    folds: int = 5,
    draws: int = 199,
    seed: int = 0,
) -> LayerSweep:
    """At which layers a probe tells two kinds of rows apart, each row scored by fits that never saw its group.

    Args:
        X: activations, NumPy or PyTorch: [n, layer, d], or [n, d] of a single layer; or `Residuals`.
        y: [n] labels of two kinds; the second in sorted order is the one that should score high.
        groups: [n] names of what belongs together (a topic, a conversation, a prompt and its triggered version): a
            group is held out as a whole, and intervals and shuffles keep it together. By default each row is a group
            of its own; of `Residuals` the prompts' topics are.
        probe: a kind of probe, its name ("mean-difference", the default, "ridge", "logistic", …), or any scikit-learn
            classifier of two classes, which is then fitted layer by layer.
        clean: ordinary rows of the same shape, for kinds of probes that see some.
        layers: numbers of the layers in `X`, for the table; by default 0, 1, 2, …
        folds: parts that are held out in turn.
        draws: how often labels are dealt anew and everything is fitted again, for the p-values; 0 for none. The
            smallest p-value is 1 / (draws + 1).
        seed: of those draws.

    Returns:
        a table with a row a layer: `.plot()`, `.to_pandas()`, `.to_parquet(path)`, `.best`, `.scores`. Its intervals
        (DeLong, clustered by group) take the held-out scores as they are, so that fits on few rows are less sure than
        they say; the p-values (`p_label_shuffle` of each layer, `p_best_layer` of the highest) repeat the fits.

    Raises DefectionError for shapes that do not fit, more or fewer than two kinds of labels, numbers that are not
    finite, and an outcome that occurs in one group only.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> X, y = rng.normal(size=(80, 4, 16)), np.arange(80) % 2
        >>> X[y == 1, 2, 0] += 3  # layer 2 knows
        >>> table = sweep_layers(X, y, draws=49)
        >>> table.best.layer, table.best.auroc > 0.9, table.best.p_best_layer
        (2, True, 0.02)
    """
    if isinstance(X, Residuals):
        refuse_ragged(X, clean if isinstance(clean, Residuals) else None)
        groups = [prompt.topic for prompt in X.prompts] if groups is None else groups
        layers = X.layers if layers is None else layers
    values, ordinary = _rows(X, "X"), None if clean is None else _rows(clean, "clean")
    if ordinary is not None and ordinary.shape[1:] != values.shape[1:]:
        raise DefectionError(f"clean rows of shape {tuple(ordinary.shape)} do not fit X of {tuple(values.shape)}")
    numbers = tuple(range(values.shape[1])) if layers is None else tuple(int(layer) for layer in layers)
    if len(numbers) != values.shape[1]:
        raise DefectionError(f"{len(numbers)} layer numbers do not fit X, which has {values.shape[1]} layers")
    topics = np.arange(len(values)) if groups is None else host(groups)
    if topics.shape != (len(values),):
        raise DefectionError(f"groups must name one group for each of the {len(values)} rows of X")
    if folds < 2 or draws < 0:
        raise DefectionError(f"{folds} folds and {draws} draws: give 2 folds at least, and no fewer than 0 draws")
    chosen = _estimator(probe)
    _, marks = two_classes(y, values, type(chosen).__name__)
    rows = LabelledRows(values, numbers, marks.cpu().numpy(), tuple(map(str, topics.tolist())), ordinary)
    table, scores = layer_rows(rows, chosen, folds=folds, draws=draws, seed=seed)
    how = "held out by row" if groups is None else "held out by group"
    return LayerSweep(table, scores.T.contiguous(), how)


def _rows(rows: Array | Residuals, name: str) -> Float[Tensor, "n layer d"]:
    values = torch.as_tensor(rows.values if isinstance(rows, Residuals) else rows)
    if values.ndim not in (2, 3) or values.is_complex():
        raise DefectionError(f"{name} must be numbers [n, layer, d] or [n, d], not of shape {tuple(values.shape)}")
    values = layered(values if values.is_floating_point() else values.double())
    refuse_non_finite(values)
    return values


def _estimator(probe: BaseEstimator | str | None) -> BaseEstimator:
    if probe is None:
        return MeanDifference()
    if isinstance(probe, str):
        if probe not in estimators():
            raise DefectionError(f"unknown probe {probe!r}: choose one of {', '.join(estimators())}")
        return estimators()[probe]
    if not hasattr(probe, "fit"):
        raise DefectionError(f"a {type(probe).__name__} is no probe: give a kind of probe, its name or a classifier")
    return probe
