"""Probes whose scores are a direction a layer: what they have in common, and the supervised ones among them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ...activations import DefectionError, Residuals
from ...activations.basics.files import Json
from .estimator import ProbeEstimator
from .fitting import above_the_mean, make_probe
from .guard import Evidence, league
from .probe import Probe
from .sample import Labelled, Sample


@dataclass(frozen=True)
class Hyperplane:
    """A direction a layer and where its scores change sign; `found` holds what else the solve found, layer by layer."""

    coef: Float[Tensor, "layer d"]
    intercept: Float[Tensor, "layer"]
    found: dict[str, Tensor] = field(default_factory=dict)


class LinearProbe(ProbeEstimator):
    """A probe whose scores are `X · coef_ + intercept_`, layer by layer.

    After a fit: `coef_` [d] or [layer, d] and `intercept_` [] or [layer], fp64; of residuals also `probe_`, the `Probe`
    that knows which model, template, position and texts it came of and is what gets saved.

    Examples:
        >>> RidgeProbe().fit(X, y).coef_.shape
        (3, 8)
    """

    linear = True

    def question_directions(
        self, sample: Labelled, effects: Float[Tensor, "question layer d"]
    ) -> Float[Tensor, "question layer d"] | None:
        """What each question adds to the direction, of questions whose answers do this to the residual (`shuffles`).

        The direction is then the sum of ± these, one sign a question: the one that says which answer defects.
        None for a kind whose direction is no such sum; its questions cannot be shuffled without as many fits.

        Args:
            sample: What the probe was fitted on; its labels are not looked at.
            effects: What answering each question one way rather than the other does.
        """
        return None

    def as_probe(self, clean: Residuals, *, fixed_layers: Sequence[int] | None = None) -> Probe:
        """The directions of a fit on bare numbers as a `Probe` of the model that `clean` was read from.

        Such a probe is saved with its own `save`, read by `load_probe`, scores `probe.read(model, prompts)`, and is
        explained by `defection explain`.

        Args:
            clean: Residuals of ordinary prompts that had no part in the fit, at the fit's layers, in its order: they
                say which model, template, position and site the rows came of, and set scale and alarm.
            fixed_layers: Those that `Probe.score` averages; by default the middle one.

        Raises:
            DefectionError: For an estimator that is not fitted, and for residuals of another shape than the fit's.
        """
        check_is_fitted(self)
        coef = torch.as_tensor(self.coef_, dtype=torch.float64).reshape(-1, self.n_features_in_)
        if clean.values.ndim != 3 or clean.values.shape[1:] != coef.shape or clean.offsets is not None:
            raise DefectionError(
                f"this {self.name} probe has directions of {tuple(coef.shape)} (layer, d_model), but the clean "
                f"residuals have {tuple(clean.values.shape[1:])}; capture one vector each at the fit's layers"
            )
        saw = league({Evidence.LABELLED})
        return make_probe(coef, clean, clean, self.name, plain_parameters(self), fixed_layers, saw)

    def _keep(self, planes: Sequence[Hyperplane]) -> None:
        """The hyperplanes of consecutive layers, as fitted attributes."""
        found = {"coef": [plane.coef for plane in planes], "intercept": [plane.intercept for plane in planes]}
        found |= {key: [plane.found[key] for plane in planes] for key in planes[0].found}
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
        clean = sample.clean_for(self.name)
        length = torch.as_tensor(self.coef_, device=clean.device).reshape(sample.n_layers, -1).norm(dim=1)
        above = self._clean_scores(sample)
        return self._scores(clean).mean(dim=0) + length * above.mean(dim=0), length * above.std(dim=0)

    def _vouch(
        self,
        source: Residuals,
        clean: Residuals | None,
        traffic: Residuals | None,
        held_out: Float[Tensor, "clean layer"] | None,
        saw: str,
        fixed_layers: Sequence[int] | None,
    ) -> None:
        parameters = plain_parameters(self)
        self.probe_ = make_probe(
            self.coef_, source, clean, self.name, parameters, fixed_layers, saw, held_out=held_out, traffic=traffic
        )

    def _residual_scores(self, residuals: Residuals) -> Float[Tensor, "n layer"]:
        if not hasattr(self, "probe_"):
            raise DefectionError(f"this {self.name} probe was fitted on bare numbers, so it cannot vouch for residuals")
        return self.probe_.decision_function(residuals)


class SupervisedProbe(LinearProbe):
    """A linear probe of labelled rows: it has rows of both classes, and adds one method, `_solve`."""

    @abstractmethod
    def _solve(self, sample: Labelled) -> Hyperplane:
        """The hyperplane of each layer of the sample, all layers in one batch."""

    def _fit(self, sample: Sample) -> None:
        self._keep([self._solve(chunk) for chunk in sample.labelled_for(self.name).chunks()])


def plain_parameters(estimator: ProbeEstimator) -> Json:
    """An estimator's parameters as JSON holds them; an estimator within an ensemble by its name and parameters."""

    def plain(value: object) -> object:
        if isinstance(value, ProbeEstimator):
            return {"name": value.name, **plain_parameters(value)}
        return list(value) if isinstance(value, tuple) else value

    return {key: plain(value) for key, value in estimator.get_params(deep=False).items()}
