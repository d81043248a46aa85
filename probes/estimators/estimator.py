"""One class for every probe kind: scikit-learn's conventions on arrays and tensors, fingerprints on residuals.

`fit` has two paths. Bare numbers (`X`, `y`) leave the fitted attributes alone. `Residuals`, which say for themselves
what each row is, also leave what vouches for the scores: which model, template, position and texts they came of. Either
path ends in a `Sample`, of which `_fit` sees the rows that its class declares.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils import Tags
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor

from ...activations import DefectionError, Residuals
from .arrays import Array, columns, host, layered, refuse_non_finite, row_numbers, topics, two_classes
from .fitting import Reference, as_residuals, check_fit, defecting_rows, group_folds, topic_numbers, unlabelled
from .guard import CONTRAST_OR_LABELS, Evidence, league, refuse_undeclared
from .sample import Labelled, Sample


class ProbeEstimator(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """What every kind of probe has in common, linear or not. Rows are [n, d] (one layer) or [n, layer, d] (all).

    Examples:
        >>> MeanDifference().fit(X[:, 0], y).predict(X[:2, 0]).shape
        (2,)
    """

    name: ClassVar[str]
    """Name on the command line, in tables and in file names."""
    linear: ClassVar[bool] = False
    """Whether a fit gives a direction a layer, so that a probe file can hold it."""
    own_alarm: ClassVar[bool] = False
    """Whether `predict` rings by a threshold set on clean rows (`_set_alarm`)."""
    holds_base: ClassVar[bool] = False
    """Whether a fit needs the base model too, beside rows."""

    @property
    def sees(self) -> frozenset[Evidence]:
        """The kinds of rows that may shape the scores; nothing else reaches the solve."""
        return CONTRAST_OR_LABELS

    @property
    def needs(self) -> frozenset[Evidence]:
        """The kinds of rows without which there is no fit."""
        return self.sees & {Evidence.CONTRAST}

    def fit(
        self,
        X: Residuals | Array,
        y: ArrayLike | None = None,
        *,
        clean: Residuals | Array | None = None,
        traffic: Residuals | Array | None = None,
        groups: ArrayLike | None = None,
        pairs: ArrayLike | None = None,
        nuisance: ArrayLike | None = None,
        forbidden: Sequence[str] = (),
        fixed_layers: Sequence[int] | None = None,
    ) -> Self:
        """Fit at every layer, and return the estimator.

        On `Residuals` of a contrast set labels, groups and pairs are read off its prompts, and `probe_` is left. Clean
        rows that shape the scores set neither scale nor threshold themselves: they are scored by fits on other topics'
        clean rows (`clean_folds`).

        Args:
            X: [n, d] or [n, layer, d], or `Residuals`; of a kind that asks nothing the clean rows.
            y: [n] of two classes, of which the second in sorted order is the defecting one. With `Residuals` it means
                labelled defections: an upper bound, recorded as such.
            clean: Rows of ordinary prompts, as `X` is. Of `Residuals` they set the scale of the scores, and the
                threshold of the alarm.
            traffic: Unlabelled rows, as `X` is, for the kinds that see them.
            groups: [n] topics of bare rows, for the kinds that use them.
            pairs: [pair, 2] numbers of the rows that are the two answers to a question, likewise.
            nuisance: [n] or [n, k] what the scores may not depend on, likewise.
            forbidden: Texts that no prompt of the residuals may hold: the trigger, and what gives the behaviour away.
            fixed_layers: Those that `Probe.score` averages; by default the middle one.

        Raises:
            DefectionError: When a text holds a forbidden string, when a prompt is marked as triggered, for numbers or
                labels that do not fit, and for rows that this kind of probe does not declare to see, or lacks.
        """
        if not isinstance(X, Residuals):
            if isinstance(clean, Residuals) or isinstance(traffic, Residuals):
                raise DefectionError("clean and traffic must be bare numbers too when the rows are: residuals.numpy()")
            return self._fit_arrays(X, y, clean, traffic, groups, pairs, nuisance)
        if any(each is not None for each in (groups, pairs, nuisance)):
            raise DefectionError("groups, pairs and nuisance belong to arrays; residuals' prompts tell theirs")
        clean, traffic = as_residuals(clean, "clean"), as_residuals(traffic, "traffic")
        return self._fit_residuals(X, y, clean, traffic, forbidden, fixed_layers)

    def _fit_arrays(
        self,
        X: Array,
        y: ArrayLike | None,
        clean: Array | None,
        traffic: Array | None,
        groups: ArrayLike | None,
        pairs: ArrayLike | None,
        nuisance: ArrayLike | None,
    ) -> Self:
        rows = self._checked(X, reset=True)
        self.n_layers_ = rows.shape[1] if rows.ndim == 3 else None
        self.classes_, marks = np.array([False, True]), None
        if not self._is_monitor:
            self.classes_, marks = two_classes(y, rows, type(self).__name__)
        own = marks is None and clean is None  # a monitor's rows are the clean ones
        others = {Evidence.CLEAN: X if own else clean, Evidence.TRAFFIC: traffic}
        there = {
            kind: layered(self._checked(values, reset=False)).to(rows.device)
            for kind, values in others.items()
            if values is not None
        }
        refuse_undeclared(self.name, there.keys() | (set() if own else {Evidence.CONTRAST}), self.sees, self.needs)
        known = {"clean": there.get(Evidence.CLEAN), "traffic": there.get(Evidence.TRAFFIC)}
        if marks is None:
            sample = Sample(**known, clean_groups=topics(groups, rows) if own else None)
        else:
            about = {
                "groups": topics(groups, rows),
                "pairs": row_numbers(pairs, rows),
                "nuisance": columns(nuisance, rows),
            }
            sample = Labelled(**known, **about, rows=layered(rows), marks=marks)
        for name in ("probe_", "reference_"):
            self.__dict__.pop(name, None)
        self._fit(sample.restricted(self.sees))
        if self.own_alarm:
            self._set_alarm(self._clean_scores(sample))
        if not isinstance(X, Tensor):
            self._to_numpy()
        return self

    def _fit_residuals(
        self,
        contrast: Residuals,
        y: ArrayLike | None,
        clean: Residuals | None,
        traffic: Residuals | None,
        forbidden: Sequence[str],
        fixed_layers: Sequence[int] | None,
    ) -> Self:
        if isinstance(y, Residuals):
            raise DefectionError("y holds labels; pass the residuals of clean prompts as clean=…")
        monitor = self._is_monitor
        if monitor and clean is None:
            if any("defecting" in prompt.extra for prompt in contrast.prompts):
                raise DefectionError(f"a {self.name} probe is fitted on clean prompts, not on contrast texts")
            clean = contrast
        given = {Evidence.LABELLED if y is not None else Evidence.CONTRAST}
        given |= {kind for kind, rows in ((Evidence.CLEAN, clean), (Evidence.TRAFFIC, traffic)) if rows is not None}
        refuse_undeclared(self.name, given, self.sees, self.needs)
        check_fit(contrast, clean, traffic, forbidden, labelled=y is not None)
        sample = Sample(**unlabelled(clean, traffic)) if monitor else self.sample_of(contrast, clean, traffic, y)
        self.classes_ = np.array([False, True])
        self.n_layers_, self.n_features_in_ = len(contrast.layers), contrast.values.shape[-1]
        self._fit(sample.restricted(self.sees))
        held_out = None if clean is None else self._clean_scores(sample)
        saw = league((given & self.sees) | ({Evidence.CLEAN} if clean is not None else set()))
        self._vouch(contrast if clean is None or not monitor else clean, clean, traffic, held_out, saw, fixed_layers)
        return self

    def sample_of(
        self, contrast: Residuals, clean: Residuals | None, traffic: Residuals | None = None, y: ArrayLike | None = None
    ) -> Labelled:
        """What a supervised fit is made of, read off the prompts.

        Args:
            contrast: Residuals of a contrast set, or of labelled prompts.
            clean: Of ordinary prompts.
            traffic: Of unlabelled ones.
            y: [n] labels; None: the contrast set's own.
        """
        rows = contrast.values
        marks = defecting_rows(contrast).to(rows.device) if y is None else two_classes(y, rows, type(self).__name__)[1]
        others = unlabelled(clean, traffic, rows.device)
        return Labelled(rows=rows, marks=marks, **others, **self._facts(contrast, clean))

    def _facts(self, contrast: Residuals, clean: Residuals | None) -> dict[str, Tensor | None]:
        """Fields of the sample that this kind reads off the prompts: topics, pairs, nuisances."""
        return {"groups": topic_numbers(contrast)}

    @property
    def _is_monitor(self) -> bool:
        return not self.needs & CONTRAST_OR_LABELS

    def decision_function(self, X: Residuals | Array) -> Any:
        """Scores, higher for more defecting: [n] of one layer, [n, layer] of several, of the same type as `X`.

        Args:
            X: Rows as the fit's. Scores of `Residuals` are in standard deviations of the reference prompts.

        Raises:
            DefectionError: For residuals of another model, template or position than the fit's, and rows of another
                shape.
        """
        check_is_fitted(self)
        if isinstance(X, Residuals):
            return self._residual_scores(X)
        rows = self._checked(X, reset=False)
        scores = self._scores(layered(rows))
        scores = scores if rows.ndim == 3 else scores[:, 0]
        return scores if isinstance(X, Tensor) else scores.cpu().numpy()

    def predict(self, X: Residuals | Array) -> Any:
        """The class of each row, and layer: the second of `classes_` where the decision function is positive.

        Args:
            X: Rows as the fit's.
        """
        scores = self.decision_function(X)
        if isinstance(scores, Tensor) and self.classes_.dtype.kind in "bif":
            return torch.as_tensor(self.classes_, device=scores.device)[(scores > 0).long()]
        return self.classes_[(host(scores) > 0).astype(int)]

    def save(self, path: str | Path) -> None:
        """One safetensors file with all that the fit left; `load_estimator` reads it.

        A linear probe fitted on `Residuals` also has `probe_`, whose own file other commands take.

        Args:
            path: Of the file; folders on the way are made.

        Raises:
            DefectionError: For an estimator that is not fitted, and when the file cannot be written.
        """
        from .saving import save_estimator

        save_estimator(self, path)

    @abstractmethod
    def _fit(self, sample: Sample) -> None:
        """Find what scores rows, and keep it in attributes that end in an underscore."""

    @abstractmethod
    def _scores(self, rows: Float[Tensor, "n layer d"]) -> Float[Tensor, "n layer"]:
        """Raw scores."""

    def _scores_above(
        self, rows: Float[Tensor, "n layer d"], clean: Float[Tensor, "m layer d"]
    ) -> Float[Tensor, "n layer"]:
        """Scores in a unit that fits on other clean rows share; `clean` are those that this fit is measured from."""
        return self._scores(rows)

    def _clean_scores(self, sample: Sample) -> Float[Tensor, "clean layer"]:
        """What each clean row scores, in that unit, by a fit that did not see it: what a new one would score."""
        clean = sample.clean_for(self.name)
        if Evidence.CLEAN not in self.sees:
            return self._scores_above(clean, clean)
        seen, n = sample.restricted(self.sees), len(clean)
        scores = torch.zeros(n, sample.n_layers, dtype=torch.float64, device=clean.device)
        groups = torch.arange(n) if sample.clean_groups is None else sample.clean_groups
        for part in group_folds(host(groups)):
            kept = torch.ones(n, dtype=torch.bool)
            kept[part] = False
            others = seen.with_clean(kept.nonzero()[:, 0])
            left = others.clean_for(self.name)
            try:
                fold = self._like()
                fold._fit(others)
            except DefectionError as error:
                raise DefectionError(
                    f"{error} (to set scale and alarm, each part of the {n} clean prompts is scored by a fit on the "
                    f"others, here {len(left)})"
                ) from error
            rows = part.to(scores.device)
            scores[rows] = fold._scores_above(clean[rows], left).double()
        return scores

    def _clean_standard(self, sample: Sample) -> tuple[Float[Tensor, "layer"], Float[Tensor, "layer"]]:
        """Mean and standard deviation of what new clean rows would score."""
        scores = self._clean_scores(sample)
        return scores.mean(dim=0), scores.std(dim=0)

    def _like(self) -> Self:
        """An estimator of the same kind for rows of the same shape, yet to be fitted."""
        other: Self = clone(self)
        other.n_layers_, other.n_features_in_, other.classes_ = self.n_layers_, self.n_features_in_, self.classes_
        return other

    def _set_alarm(self, clean: Float[Tensor, "clean layer"]) -> None:
        """Keep the threshold of `predict`; only kinds with an alarm of their own have one."""

    def _vouch(
        self,
        source: Residuals,
        clean: Residuals | None,
        traffic: Residuals | None,
        held_out: Float[Tensor, "clean layer"] | None,
        saw: str,
        fixed_layers: Sequence[int] | None,
    ) -> None:
        """Keep what standardises scores of residuals, and says of which they may be."""
        scores = self._scores(source.values) if held_out is None else held_out
        self.reference_ = Reference.of(source if clean is None else clean, scores, self.name)
        if self.own_alarm and held_out is not None:
            self._set_alarm(held_out)

    def _residual_scores(self, residuals: Residuals) -> Float[Tensor, "n layer"]:
        if not hasattr(self, "reference_"):
            raise DefectionError(f"this {self.name} probe was fitted on bare numbers, so it cannot vouch for residuals")
        return self.reference_.standardised(residuals, self._scores(residuals.values))

    def _checked(self, X: ArrayLike, *, reset: bool) -> Tensor:
        """Finite rows of two or three dimensions as a tensor, with as many features as the fit had."""
        if not isinstance(X, Tensor):
            kinds = {"dtype": [np.float64, np.float32], "ensure_min_samples": 2 if reset else 1}
            if getattr(X, "ndim", None) == 3 or (isinstance(X, list | tuple) and np.ndim(X) == 3):
                values = check_array(X, allow_nd=True, **kinds)
            else:
                values = validate_data(self, X, reset=reset, **kinds)
            X = torch.from_numpy(np.require(values, requirements=["C", "W"]))
        if X.ndim not in (2, 3):
            raise DefectionError(f"rows must be [n, d] or [n, layer, d], not of shape {tuple(X.shape)}")
        rows: Tensor = X if X.is_floating_point() else X.double()
        refuse_non_finite(rows)
        if reset:
            self.n_features_in_ = rows.shape[-1]
        elif rows.shape[-1] != self.n_features_in_ or (rows.ndim == 3) != (self.n_layers_ is not None):
            raise DefectionError(
                f"X has shape {tuple(rows.shape)}, but {type(self).__name__} was fitted on {self.n_features_in_} "
                f"features at {self.n_layers_ or 'a single'} layer(s)"
            )
        return rows

    def _to_numpy(self) -> None:
        """Fitted tensors as arrays: what was fitted on arrays answers in arrays."""
        for key, value in vars(self).items():
            if key.endswith("_") and isinstance(value, Tensor):
                setattr(self, key, value.cpu().numpy())

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        tags.input_tags.three_d_array = True
        return tags
