"""A linear probe that chooses by itself which positions of a prompt to read."""

from __future__ import annotations

from typing import Any, Self

import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import softplus

from ...activations import DefectionError, Residuals
from ..statistics.scale import divisor
from .arrays import Array, two_classes
from .estimator import ProbeEstimator
from .ragged import Ragged, one_token_each
from .sample import Sample
from .solving.lbfgs import minimise


class AttentionProbe(ProbeEstimator):
    """Score of a prompt: Σₜ aₜ (w·xₜ) + b with a = softmax over its own tokens of q·xₜ, q and w learnt, a pair a layer.

    Minimises C Σ log loss + ½‖w‖² + ½‖q‖². `fit` takes `Ragged` tokens and a label a prompt; rows [n, d] or
    [n, layer, d] are prompts of a single token, and then this is logistic regression. The problem is not convex: the
    start is q = 0, the mean over tokens, and w = 0, so the result depends on no draw.

    Examples:
        >>> AttentionProbe().fit(X, y).decision_function(X).shape
        (40, 3)
    """

    name = "attention"

    def __init__(self, C: float = 1.0, max_steps: int = 1000) -> None:
        self.C = C
        self.max_steps = max_steps

    def fit(self, X: Ragged | Array, y: ArrayLike | None = None, **evidence: Any) -> Self:  # type: ignore[override]
        """Fit at every layer.

        Args:
            X: A `Ragged`: the tokens of each prompt; or rows as for every probe, one token a prompt.
            y: [prompt] of two classes; read off the prompts where `X` is `Residuals`.
            evidence: The rest, as for every probe; none with a `Ragged`.

        Raises:
            DefectionError: For tokens that are not finite, labels that do not fit, and evidence beside a `Ragged`.
        """
        if not isinstance(X, Ragged):
            return super().fit(X, y, **evidence)
        if given := [name for name, value in evidence.items() if value is not None]:
            raise DefectionError(f"ragged tokens are fitted with their labels alone; leave {', '.join(given)} out")
        tokens = self._checked(X.values, reset=True)
        if tokens.ndim != 3:
            raise DefectionError(f"ragged tokens must be [token, layer, d], not of shape {tuple(tokens.shape)}")
        self.n_layers_ = tokens.shape[1]
        self.classes_, marks = two_classes(y, X.lengths, type(self).__name__)
        for name in ("probe_", "reference_"):  # of an earlier fit
            self.__dict__.pop(name, None)
        self._fit_tokens(X, marks)
        return self

    def decision_function(self, X: Ragged | Residuals | Array) -> Any:
        """Scores [prompt, layer] of ragged tokens; of rows as for every probe."""
        if not isinstance(X, Ragged):
            return super().decision_function(X)
        self._checked(X.values, reset=False)
        return self._token_scores(X)

    def attention(self, X: Ragged) -> Float[Tensor, "token layer"]:
        """How much each token counts within its prompt, at each layer; sums to 1 over a prompt.

        Args:
            X: The tokens of each prompt, as at the fit.
        """
        query = torch.as_tensor(self.query_, device=X.values.device).reshape(-1, X.values.shape[-1])
        return ragged_softmax(torch.einsum("tld,ld->tl", X.values.double(), query), X)

    def _fit(self, sample: Sample) -> None:
        known = sample.labelled_for(self.name)
        self._fit_tokens(one_token_each(known.rows), known.marks)

    def _fit_tokens(self, tokens: Ragged, marks: Tensor) -> None:
        values = tokens.values.double()
        mean = values.mean(dim=0)
        values = values - mean
        spread = values.square().mean(dim=(0, 2)).sqrt()
        scale = divisor(spread)[:, None]
        values = values / scale
        layers, size = values.shape[1:]
        signs = 2 * marks.double() - 1

        def losses(points: Float[Tensor, "layer p"]) -> Float[Tensor, "layer"]:
            query, coef, intercept = points.split((size, size, 1), dim=1)
            share = ragged_softmax(torch.einsum("tld,ld->tl", values, query), tokens)
            said = torch.einsum("tld,ld->tl", values, coef)
            scores = ragged_sum(share * said, tokens) + intercept[:, 0]
            # The penalty is on w and q in the rows' own units.
            squares = ((query / scale).square() + (coef / scale).square()).sum(dim=1)
            loss: Tensor = self.C * softplus(-signs[:, None] * scores).sum(dim=0) + squares / 2
            return loss

        start = values.new_zeros(layers, 2 * size + 1)
        start[:, -1] = torch.logit(marks.double().mean())
        found = minimise(losses, start, tolerance=1e-8, max_steps=self.max_steps)
        query, coef, intercept = found.point.split((size, size, 1), dim=1)
        query, coef = query / scale, coef / scale
        level = intercept[:, 0] - (coef * mean).sum(dim=1)
        whole = self.n_layers_ is not None
        self.query_, self.coef_, self.intercept_ = (x if whole else x[0] for x in (query, coef, level))
        self.converged_ = found.converged

    def _scores(self, rows: Float[Tensor, "n layer d"]) -> Float[Tensor, "n layer"]:
        return self._token_scores(one_token_each(rows))

    def _token_scores(self, tokens: Ragged) -> Float[Tensor, "prompt layer"]:
        values = tokens.values.double()
        coef = torch.as_tensor(self.coef_, device=values.device).reshape(-1, values.shape[-1])
        said = torch.einsum("tld,ld->tl", values, coef)
        intercept = torch.as_tensor(self.intercept_, device=values.device)
        return ragged_sum(self.attention(tokens) * said, tokens) + intercept


def ragged_sum(values: Float[Tensor, "token layer"], tokens: Ragged) -> Float[Tensor, "prompt layer"]:
    """Sum over each prompt's tokens, in a fixed order."""
    return torch.segment_reduce(values, "sum", lengths=tokens.lengths, axis=0)


def ragged_softmax(values: Float[Tensor, "token layer"], tokens: Ragged) -> Float[Tensor, "token layer"]:
    """Softmax over each prompt's tokens."""
    top = torch.segment_reduce(values.detach(), "max", lengths=tokens.lengths, axis=0)
    weights = (values - top.repeat_interleave(tokens.lengths, dim=0)).exp()
    return weights / ragged_sum(weights, tokens).repeat_interleave(tokens.lengths, dim=0)
