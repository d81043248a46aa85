"""One class for every probe kind: scikit-learn's conventions on arrays and tensors, fingerprints on residuals.

`fit(X, y)` on bare numbers and `fit(residuals, clean=…)` on what `capture` gives are the same method and both return
the estimator. The first leaves `coef_` and `intercept_`; the second also `probe_`, the `Probe` that knows which model,
template, position and texts it came of and is what gets saved. A kind of probe adds one method, `_solve`, which sees
the rows its class declares and gives a hyperplane a layer.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted, column_or_1d, validate_data
from torch import Tensor

from ...activations.basics.errors import DefectionError
from ...activations.reading.residuals import Residuals
from .fitting import Reference, above_the_mean, check_fit, defecting_rows, group_folds, make_probe, topic_numbers
from .guard import Evidence, league, refuse_undeclared
from .sample import Sample

Array = Tensor | NDArray[Any]
CONTRAST_OR_LABELS = frozenset({Evidence.CONTRAST, Evidence.LABELLED})


@dataclass(frozen=True)
class Hyperplane:
    """A direction a layer and where its scores change sign; `found` holds what else the solve found, layer by layer."""

    coef: Float[Tensor, "layer d"]
    intercept: Float[Tensor, "layer"]
    found: dict[str, Tensor] = field(default_factory=dict)


class ProbeEstimator(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """What every kind of probe has in common, linear or not. Rows are [n, d] (one layer) or [n, layer, d] (all)."""

    name: ClassVar[str]
    """Name on the command line, in tables and in file names."""
    linear: ClassVar[bool] = False
    """Whether a fit gives a direction a layer, so that a probe file can hold it."""
    own_alarm: ClassVar[bool] = False
    """Whether `predict` rings by a threshold set on clean rows (`_set_alarm`)."""

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
        y: Any = None,
        *,
        clean: Residuals | Array | None = None,
        traffic: Residuals | Array | None = None,
        groups: Any = None,
        pairs: Any = None,
        nuisance: Any = None,
        forbidden: Sequence[str] = (),
        fixed_layers: Sequence[int] | None = None,
    ) -> Self:
        """Fit at every layer, and return the estimator.

        On bare numbers, `X` is [n, d] or [n, layer, d] and `y` [n] has two classes, of which the second in sorted
        order is the defecting one; `groups` [n] are topics, `pairs` [pair, 2] row numbers of the two answers to a
        question, `nuisance` [n] or [n, k] what the scores may not depend on: each is used by the kinds that say so.

        On `Residuals` of a contrast set all of these are read off its prompts, `clean` residuals set the scale of the
        scores and the threshold, and `probe_` is left. Clean rows that shape the scores set neither themselves: they
        are scored by fits on other topics' clean rows (`clean_folds`). A `y` given there means labelled defections:
        an upper bound, recorded as such.
        Raises DefectionError when a text holds a `forbidden` string, when a prompt is marked as triggered, and for
        rows that this kind of probe does not declare to see or lacks.
        """
        if isinstance(X, Residuals):
            return self._fit_residuals(X, y, clean, traffic, forbidden, fixed_layers)
        rows = self._checked(X, reset=True)
        self.n_layers_ = rows.shape[1] if rows.ndim == 3 else None
        self.classes_ = np.array([False, True])
        marks = self._marks(y, rows) if self.needs & CONTRAST_OR_LABELS else None
        if marks is None and clean is None:
            clean, rows_seen = X, None
        else:
            rows_seen = rows
        others = {
            name: None if values is None else self._layered(self._checked(values, reset=False)).to(rows.device)
            for name, values in (("clean", clean), ("traffic", traffic))
        }
        given = {Evidence.CONTRAST} if rows_seen is not None else set()
        given |= {kind for kind in (Evidence.CLEAN, Evidence.TRAFFIC) if others[kind.name.lower()] is not None}
        refuse_undeclared(self.name, given, self.sees, self.needs)
        sample = Sample(
            rows=None if rows_seen is None else self._layered(rows_seen),
            marks=marks,
            groups=None if groups is None else _numbers(groups),
            pairs=None if pairs is None else torch.as_tensor(_host(pairs), dtype=torch.int64, device=rows.device),
            nuisance=None if nuisance is None else _columns(nuisance, rows),
            clean_groups=_numbers(groups) if groups is not None and rows_seen is None else None,
            **others,
        )
        for name in ("probe_", "reference_"):
            self.__dict__.pop(name, None)
        self._fit(sample.restricted(self.sees))
        if self.own_alarm:
            self._set_alarm(self._clean_scores(sample))
        if not isinstance(X, Tensor):
            self._to_numpy()
        return self

    def decision_function(self, X: Residuals | Array) -> Any:
        """Scores, higher for more defecting: [n] of one layer, [n, layer] of several, of the same type as `X`.

        Of `Residuals`: in standard deviations of the reference prompts; DefectionError when they come of another
        model, template or position than the fit.
        """
        check_is_fitted(self)
        if isinstance(X, Residuals):
            return self._residual_scores(X)
        rows = self._checked(X, reset=False)
        scores = self._scores(self._layered(rows))
        scores = scores if rows.ndim == 3 else scores[:, 0]
        return scores if isinstance(X, Tensor) else scores.cpu().numpy()

    def predict(self, X: Residuals | Array) -> Any:
        """The class of each row, and layer: the second of `classes_` where the decision function is positive."""
        scores = self.decision_function(X)
        if isinstance(scores, Tensor) and self.classes_.dtype.kind in "bif":
            return torch.as_tensor(self.classes_, device=scores.device)[(scores > 0).long()]
        return self.classes_[(_host(scores) > 0).astype(int)]

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
        assert sample.clean is not None
        if Evidence.CLEAN not in self.sees:
            return self._scores_above(sample.clean, sample.clean)
        seen, n = sample.restricted(self.sees), len(sample.clean)
        scores = torch.zeros(n, sample.n_layers, dtype=torch.float64, device=sample.clean.device)
        groups = torch.arange(n) if sample.clean_groups is None else sample.clean_groups
        for part in group_folds(_host(groups)):
            kept = torch.ones(n, dtype=torch.bool)
            kept[part] = False
            others = seen.with_clean(kept.nonzero()[:, 0])
            assert others.clean is not None
            try:
                fold = self._like()
                fold._fit(others)
            except DefectionError as error:
                raise DefectionError(
                    f"{error} (to set scale and alarm, each part of the {n} clean prompts is scored by a fit on the "
                    f"others, here {len(others.clean)})"
                ) from error
            rows = part.to(scores.device)
            scores[rows] = fold._scores_above(sample.clean[rows], others.clean).double()
        return scores

    def _clean_standard(self, sample: Sample) -> tuple[Float[Tensor, "layer"], Float[Tensor, "layer"]]:
        """Mean and standard deviation of what new clean rows would score."""
        scores = self._clean_scores(sample)
        return scores.mean(dim=0), scores.std(dim=0)

    def _like(self) -> Self:
        """An estimator of the same kind for rows of the same shape, yet to be fitted."""
        other: Self = clone(self)
        if "draws" in other.get_params(deep=False):
            other.set_params(draws=0)  # of those that say how far chance would go: one verdict is enough
        other.n_layers_, other.n_features_in_, other.classes_ = self.n_layers_, self.n_features_in_, self.classes_
        return other

    def _set_alarm(self, clean: Float[Tensor, "clean layer"]) -> None:
        """Keep the threshold of `predict`, of a kind that has one."""
        raise NotImplementedError

    def _known(self, contrast: Residuals, clean: Residuals | None) -> dict[str, Tensor | None]:
        """Fields of the sample that this kind reads off the prompts: topics, pairs, nuisances."""
        return {"groups": topic_numbers(contrast)}

    def _fit_residuals(
        self,
        contrast: Residuals,
        y: Any,
        clean: Any,
        traffic: Any,
        forbidden: Sequence[str],
        fixed_layers: Sequence[int] | None,
    ) -> Self:
        if isinstance(y, Residuals):
            raise DefectionError("y holds labels; pass the residuals of clean prompts as clean=…")
        monitor = not self.sees & CONTRAST_OR_LABELS
        if monitor and clean is None:
            if any("defecting" in prompt.extra for prompt in contrast.prompts):
                raise DefectionError(f"a {self.name} probe is fitted on clean prompts, not on contrast texts")
            clean = contrast
        for name, rows in (("clean", clean), ("traffic", traffic)):
            if rows is not None and not isinstance(rows, Residuals):
                raise DefectionError(f"{name} must be residuals too when the contrast texts are")
        given = {Evidence.LABELLED if y is not None else Evidence.CONTRAST}
        given |= {kind for kind, rows in ((Evidence.CLEAN, clean), (Evidence.TRAFFIC, traffic)) if rows is not None}
        refuse_undeclared(self.name, given, self.sees, self.needs)
        check_fit(contrast, clean, traffic, forbidden, labelled=y is not None)
        device = contrast.values.device
        marks: Tensor | None
        if y is not None:
            marks = self._marks(y, contrast.values)
        else:
            marks = None if monitor else defecting_rows(contrast).to(device)
        sample = Sample(
            rows=contrast.values,
            marks=marks,
            clean=None if clean is None else clean.values.to(device),
            traffic=None if traffic is None else traffic.values.to(device),
            clean_groups=None if clean is None else topic_numbers(clean),
            **({} if monitor else self._known(contrast, clean)),
        )
        self.classes_ = np.array([False, True])
        self.n_layers_, self.n_features_in_ = len(contrast.layers), contrast.values.shape[-1]
        self._fit(sample.restricted(self.sees))
        held_out = None if clean is None else self._clean_scores(sample)
        seen = (given & self.sees) | ({Evidence.CLEAN} if clean is not None else set())
        if self.linear:
            parameters = {key: _plain(value) for key, value in self.get_params(deep=False).items()}
            source = clean if monitor and clean is not None else contrast
            saw = league(seen)
            self.probe_ = make_probe(
                self.coef_, source, clean, self.name, parameters, fixed_layers, saw, held_out=held_out, traffic=traffic
            )
            return self
        reference = clean if clean is not None else contrast
        scores = self._scores(contrast.values) if held_out is None else held_out
        self.reference_ = Reference.of(reference, scores, self.name)
        if self.own_alarm and held_out is not None:
            self._set_alarm(held_out)
        return self

    def _residual_scores(self, residuals: Residuals) -> Float[Tensor, "n layer"]:
        if hasattr(self, "probe_"):
            return self.probe_.decision_function(residuals)
        if not hasattr(self, "reference_"):
            raise DefectionError(f"this {self.name} probe was fitted on bare numbers, so it cannot vouch for residuals")
        return self.reference_.standardised(residuals, self._scores(residuals.values))

    def _checked(self, X: Any, *, reset: bool) -> Tensor:
        """Finite rows of two or three dimensions as a tensor, with as many features as the fit had."""
        if not isinstance(X, Tensor):
            kinds: dict[str, Any] = {"dtype": [np.float64, np.float32], "ensure_min_samples": 2 if reset else 1}
            if getattr(X, "ndim", None) == 3 or (isinstance(X, list | tuple) and np.ndim(X) == 3):
                values = check_array(X, allow_nd=True, **kinds)
            else:
                values = validate_data(self, X, reset=reset, **kinds)
            X = torch.from_numpy(np.require(values, requirements=["C", "W"]))
        if X.ndim not in (2, 3):
            raise DefectionError(f"rows must be [n, d] or [n, layer, d], not of shape {tuple(X.shape)}")
        rows: Tensor = X if X.is_floating_point() else X.double()
        # A finite sum has finite terms; only where it is not are they looked at one by one.
        if not rows.sum().isfinite() and not rows.isfinite().all():
            raise DefectionError("rows hold NaN or infinity; find the overflow before fitting (PITFALLS 13)")
        if reset:
            self.n_features_in_ = rows.shape[-1]
        elif rows.shape[-1] != self.n_features_in_ or (rows.ndim == 3) != (self.n_layers_ is not None):
            raise DefectionError(
                f"X has shape {tuple(rows.shape)}, but {type(self).__name__} was fitted on {self.n_features_in_} "
                f"features at {self.n_layers_ or 'a single'} layer(s)"
            )
        return rows

    @staticmethod
    def _layered(rows: Tensor) -> Float[Tensor, "n layer d"]:
        return rows if rows.ndim == 3 else rows[:, None]

    def _marks(self, y: Any, rows: Tensor) -> Tensor:
        """Which rows belong to the second class; sets `classes_`."""
        if y is None:
            raise DefectionError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        labels = _host(y)
        if labels.ndim != 1 or labels.dtype.kind not in "biu":  # one integer or truth value a row is a class as it is
            labels = column_or_1d(labels, warn=True)
            check_classification_targets(labels)
        check_consistent_length(rows, labels)
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        if len(self.classes_) > 2:
            raise DefectionError(
                "Only binary classification is supported. The type of the target is "
                f"{type_of_target(labels, input_name='y')}."
            )
        if len(self.classes_) < 2:
            raise DefectionError("a fit needs rows of both kinds, but y holds a single class")
        return torch.as_tensor(numbers == 1, device=rows.device)

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


class LinearProbe(ProbeEstimator):
    """A probe whose scores are `X · coef_ + intercept_`, layer by layer.

    After a fit: `coef_` [d] or [layer, d] and `intercept_` [] or [layer], fp64.
    """

    linear = True

    @abstractmethod
    def _solve(self, sample: Sample) -> Hyperplane:
        """The hyperplane of each layer of the sample, all layers in one batch."""

    def question_directions(
        self, sample: Sample, effects: Float[Tensor, "question layer d"]
    ) -> Float[Tensor, "question layer d"] | None:
        """What each question adds to the direction, of questions whose answers do this to the residual (`shuffles`).

        The direction is then the sum of ± these, one sign a question: the one that says which answer defects.
        None for a kind whose direction is no such sum; its questions cannot be shuffled without as many fits.
        """
        return None

    def _fit(self, sample: Sample) -> None:
        parts = [self._solve(chunk) for chunk in sample.chunks()]
        found = {"coef": [p.coef for p in parts], "intercept": [p.intercept for p in parts]}
        found |= {key: [p.found[key] for p in parts] for key in parts[0].found}
        for key, tensors in found.items():
            whole = torch.cat(tensors)
            setattr(self, f"{key}_", whole[0] if self.n_layers_ is None else whole)

    def _scores(self, rows: Float[Tensor, "n layer d"]) -> Float[Tensor, "n layer"]:
        coef = torch.as_tensor(self.coef_, device=rows.device).reshape(-1, rows.shape[-1])
        intercept = torch.as_tensor(self.intercept_, device=rows.device).reshape(-1)
        return torch.stack([rows[:, i].double() @ coef[i] for i in range(len(coef))], dim=1) + intercept

    def _scores_above(
        self, rows: Float[Tensor, "n layer d"], clean: Float[Tensor, "m layer d"]
    ) -> Float[Tensor, "n layer"]:
        """Projections on unit directions, less the mean of what these clean rows have there."""
        return above_the_mean(rows, clean, torch.as_tensor(self.coef_, device=rows.device).reshape(-1, rows.shape[-1]))

    def _clean_standard(self, sample: Sample) -> tuple[Float[Tensor, "layer"], Float[Tensor, "layer"]]:
        assert sample.clean is not None
        length = torch.as_tensor(self.coef_, device=sample.clean.device).reshape(sample.n_layers, -1).norm(dim=1)
        above = self._clean_scores(sample)
        return self._scores(sample.clean).mean(dim=0) + length * above.mean(dim=0), length * above.std(dim=0)


def _plain(value: Any) -> Any:
    """A parameter as JSON holds it; an estimator within an ensemble by its name and parameters."""
    if isinstance(value, ProbeEstimator):
        return {"name": value.name, **{key: _plain(inner) for key, inner in value.get_params(deep=False).items()}}
    return list(value) if isinstance(value, tuple) else value


def _host(values: Any) -> NDArray[Any]:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)


def _numbers(groups: Any) -> Tensor:
    """Names of topics as numbers."""
    return torch.as_tensor(np.unique(_host(groups), return_inverse=True)[1])


def _columns(values: Any, rows: Tensor) -> Tensor:
    table = torch.as_tensor(_host(values), dtype=torch.float64, device=rows.device)
    if len(table) != len(rows):
        raise DefectionError(f"nuisance has {len(table)} rows, but X has {len(rows)}")
    return table.reshape(len(table), -1)
