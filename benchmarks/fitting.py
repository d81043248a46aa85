"""Fitting every probe kind at every layer, against a loop over layers with the scikit-learn equivalent.

    python benchmarks/fitting.py --only n64,n400
    python benchmarks/fitting.py --sizes 30x64x576 --kinds ridge,logistic --rounds 5     (any cell, by hand)

A part a size (layers x rows x dimensions). Equality of the directions comes first; scikit-learn runs with the solver,
dtype and tolerance that take it the least time of those at which its own directions agree to 1e-4. Rounds are
interleaved, both sides on one thread, from the same fp32 input; what is measured is CPU time, which other work disturbs
less than it does the clock. Where scikit-learn's loop takes long, some layers of it are timed and scaled up:
`layers_timed`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import torch
from common import interleaved, main
from defection.probes.estimators.registry import estimators
from defection.probes.estimators.whitened import Whitened
from numpy.typing import NDArray
from sklearn.covariance import OAS, LedoitWolf
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, RidgeClassifier
from sklearn.model_selection import GroupKFold
from sklearn.neighbors import NearestCentroid
from threadpoolctl import threadpool_limits

AGREEMENT = 1e-4
TRIALS, SECONDS_OF_TRIALS = 6, 0.2
"""Fits by which a setting's time is judged: so many, unless they take longer than this."""
SECONDS_OF_A_ROUND = 1.0
"""What scikit-learn's loop over layers may take; where it would take longer, some layers are timed."""
STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
Rows = NDArray[Any]
Peer = Callable[[Rows, Rows, NDArray[Any], NDArray[Any]], NDArray[Any]]
Part = Callable[[bool], list[dict[str, Any]]]
Settings = dict[str, Any]
Setting = tuple[str, Peer]
"""What stands in the record, and the fit."""


def mean_difference(x: Rows, clean: Rows, y: NDArray[Any], groups: NDArray[Any]) -> NDArray[Any]:
    centroids = NearestCentroid().fit(x, y).centroids_
    return centroids[1] - centroids[0]


def whitened(x: Rows, clean: Rows, y: NDArray[Any], groups: NDArray[Any]) -> NDArray[Any]:
    covariance = LedoitWolf(store_precision=False).fit(clean).covariance_
    return scipy.linalg.solve(covariance, x[y == 1].mean(axis=0) - x[y == 0].mean(axis=0), assume_a="pos")


def discriminant(estimator: Any) -> Peer:
    def fit(x: Rows, clean: Rows, y: NDArray[Any], groups: NDArray[Any]) -> NDArray[Any]:
        return LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=estimator).fit(x, y).coef_.ravel()

    return fit


def projected(settings: Settings) -> Peer:
    def fit(x: Rows, clean: Rows, y: NDArray[Any], groups: NDArray[Any]) -> NDArray[Any]:
        components = PCA(4, random_state=0, **settings).fit(clean).components_
        gap = x[y == 1].mean(axis=0) - x[y == 0].mean(axis=0)
        return gap - components.T @ (components @ gap)

    return fit


def pca(settings: Settings) -> Peer:
    def fit(x: Rows, clean: Rows, y: NDArray[Any], groups: NDArray[Any]) -> NDArray[Any]:
        return PCA(1, random_state=0, **settings).fit(x).components_[0]

    return fit


def pair_pca(settings: Settings) -> Peer:
    def fit(x: Rows, clean: Rows, y: NDArray[Any], groups: NDArray[Any]) -> NDArray[Any]:
        gaps = x[0::2] - x[1::2]
        return PCA(1, random_state=0, **settings).fit(np.concatenate([gaps, -gaps])).components_[0]

    return fit


def ridge(settings: Settings) -> Peer:
    def fit(x: Rows, clean: Rows, y: NDArray[Any], groups: NDArray[Any]) -> NDArray[Any]:
        return RidgeClassifier(**settings).fit(x, y).coef_.ravel()

    return fit


def logistic(settings: Settings) -> Peer:
    def fit(x: Rows, clean: Rows, y: NDArray[Any], groups: NDArray[Any]) -> NDArray[Any]:
        return LogisticRegression(max_iter=20_000, **settings).fit(x, y).coef_.ravel()

    return fit


def logistic_cv(settings: Settings) -> Peer:
    def fit(x: Rows, clean: Rows, y: NDArray[Any], groups: NDArray[Any]) -> NDArray[Any]:
        folds = list(GroupKFold(5).split(x, y, groups))
        found = LogisticRegressionCV(
            Cs=list(STRENGTHS),
            cv=folds,
            scoring="neg_log_loss",
            max_iter=20_000,
            use_legacy_attributes=False,
            **settings,
        )
        return found.fit(x, y).coef_.ravel()

    return fit


TOLERANCES = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-10)


def at_tolerances(make: Callable[[Settings], Peer], name: str, solver: str) -> list[Setting]:
    return [(f"{name}({solver}, tol={t:g})", make({"solver": solver, "tol": t})) for t in TOLERANCES]


def components(make: Callable[[Settings], Peer], count: int) -> list[list[Setting]]:
    """PCA by each of scikit-learn's solvers; "auto" is one of them at its first setting."""

    def setting(solver: str, **more: Any) -> Setting:
        text = ", ".join([str(count), solver, *(f"{key}={value}" for key, value in more.items())])
        return f"PCA({text})", make({"svd_solver": solver, **more})

    powers = [setting("randomized"), *(setting("randomized", iterated_power=power) for power in (15, 40))]
    return [powers, [setting("arpack")], [setting("full")], [setting("covariance_eigh")]]


PEERS: dict[str, list[list[Setting]]] = {
    "mean-difference": [[("NearestCentroid", mean_difference)]],
    "whitened": [[("LedoitWolf + solve", whitened)]],
    "whitened-pooled": [[("LDA(lsqr, LedoitWolf)", discriminant(LedoitWolf(store_precision=False)))]],
    "whitened-pooled-oas": [[("LDA(lsqr, OAS)", discriminant(OAS(store_precision=False)))]],
    "projected": components(projected, 4),
    "ridge": [[("RidgeClassifier", ridge({}))], at_tolerances(ridge, "RidgeClassifier", "lsqr")],
    "logistic": [at_tolerances(logistic, "LogisticRegression", solver) for solver in ("lbfgs", "newton-cg")],
    "logistic (newton-cholesky)": [at_tolerances(logistic, "LogisticRegression", "newton-cholesky")],
    "logistic-cv": [at_tolerances(logistic_cv, "LogisticRegressionCV", "lbfgs")],
    "pca": components(pca, 1),
    "pair-pca": components(pair_pca, 1),
}
"""The solvers that could stand beside a kind, each a list of its settings from the cheapest to the most exact."""


def ours(kind: str) -> Any:
    """The estimator that the peers of this kind stand beside."""
    if kind.startswith("whitened-pooled"):
        return Whitened("oas" if kind.endswith("oas") else "ledoit-wolf", covariance="pooled")
    found = estimators()[kind.split(" ", maxsplit=1)[0]]
    return found.set_params(Cs=STRENGTHS) if kind == "logistic-cv" else found


def made_rows(layers: int, n: int, d: int, seed: int = 0) -> tuple[Tensors, Tensors, NDArray[Any], NDArray[Any]]:
    """Rows that look like residuals: dimensions of very unequal spread, a common offset, classes shifted a little."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(size=(layers, d))).astype(np.float32)
    offset = rng.normal(size=(layers, d)).astype(np.float32) * scale
    shift = rng.normal(size=(layers, d)).astype(np.float32) * scale * 0.2
    y = np.arange(n) % 2
    rows = rng.standard_normal((n, layers, d), dtype=np.float32)
    clean = rng.standard_normal((min(max(n, 64), 512), layers, d), dtype=np.float32)
    for number in range(n):  # in place: the largest are half a gigabyte
        rows[number] = rows[number] * scale + offset + (y[number] - np.float32(0.5)) * shift
    for number in range(len(clean)):
        clean[number] = clean[number] * scale + offset
    return rows, clean, y, np.arange(n) // 2


Tensors = NDArray[np.float32]


def directions_apart(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Distance of two unit vectors, the sign of a component aside: the relative difference of the weights."""
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    return float(min(np.linalg.norm(a - b), np.linalg.norm(a + b)))


def compare(kind: str, layers: int, n: int, d: int, rounds: int) -> dict[str, Any]:
    """One record: equality, then interleaved rounds. A long loop of scikit-learn's is timed in part and scaled up."""
    rows, clean, y, groups = made_rows(layers, n, d)
    tensor, clean_tensor, marks = torch.from_numpy(rows), torch.from_numpy(clean), torch.from_numpy(y)
    pairs = torch.arange(n).view(-1, 2)

    def fit_ours() -> NDArray[Any]:
        found = ours(kind).fit(tensor, marks, clean=clean_tensor, groups=groups, pairs=pairs)
        return found.coef_.numpy()

    def fit_layer(peer: Peer, dtype: Any, layer: int) -> NDArray[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return peer(rows[:, layer].astype(dtype), clean[:, layer].astype(dtype), y, groups)

    mine = fit_ours()
    record: dict[str, Any] = {"row": 6, "name": f"{kind}, {layers} x {n} x {d}", "at_least": 5.0 if n <= 64 else 1.0}
    # Of fewer rows than dimensions the d x d covariance is never the way to components, and takes very long.
    solvers = [some for some in PEERS[kind] if n >= d or "covariance_eigh" not in some[0][0]]
    chosen = cheapest(solvers, mine, fit_layer, sorted({0, layers - 1}))
    if isinstance(chosen, str):
        return record | {"yardstick": "scikit-learn", "skipped": chosen}

    timed = min(layers, max(1, int(SECONDS_OF_A_ROUND / chosen.seconds)))

    def fit_peer() -> None:
        for i in range(timed):
            fit_layer(chosen.peer, chosen.dtype, i)

    found = interleaved(fit_peer, fit_ours, rounds=rounds, clock=time.process_time)
    scale = layers / timed
    found |= {key: scale * found[key] for key in ("ratio", "lowest", "highest", "seconds_theirs")}
    found["seconds_bare"] = bare_seconds(clean if kind in ("whitened", "projected") else rows, rounds)
    record |= {"threads": 1, "layers_timed": timed, "difference": chosen.apart}
    return record | {"yardstick": f"{chosen.name}, {chosen.dtype.__name__}", **found}


@dataclass(frozen=True)
class Yardstick:
    """A setting of scikit-learn's whose directions are ours, and the CPU seconds of a layer."""

    name: str
    dtype: Any
    peer: Peer
    apart: float
    seconds: float


def cheapest(
    solvers: list[list[Setting]],
    mine: NDArray[Any],
    fit_layer: Callable[[Peer, Any, int], NDArray[Any]],
    layers: list[int],
) -> Yardstick | str:
    """Of the settings that agree with `mine` at these layers, the fastest as measured; the reason where there is none.

    Of each solver and dtype the first that agrees, since the next only takes longer; a solver that is slower than the
    best before it agrees is left at that, and so is fp64 where fp32 agrees at a solver's first setting.
    """
    best: Yardstick | None = None
    closest = np.inf
    for settings in solvers:
        for dtype in (np.float32, np.float64):
            for name, peer in settings:
                seconds, apart = list[float](), 0.0
                while len(seconds) < len(layers) or (len(seconds) < TRIALS and sum(seconds) < SECONDS_OF_TRIALS):
                    layer = layers[len(seconds) % len(layers)]
                    start = time.process_time()
                    found = fit_layer(peer, dtype, layer)
                    seconds.append(time.process_time() - start)
                    apart = max(apart, directions_apart(mine[layer], found))
                closest = min(closest, apart)
                slower = best is not None and min(seconds) >= best.seconds
                if apart <= AGREEMENT and not slower:
                    best = Yardstick(name, dtype, peer, apart, min(seconds))
                if apart <= AGREEMENT or slower:
                    break
            if apart <= AGREEMENT and name == settings[0][0]:
                break
    return best or f"no setting of scikit-learn's agrees to {AGREEMENT:g} (the closest is {closest:.1e} apart)"


def bare_seconds(rows: Rows, rounds: int) -> float:
    """What a fit through the normal equations cannot do without: each layer's smaller product of fp32 rows that lie
    ready, by BLAS syrk, and its Cholesky factor. Neither reading the rows nor centring them is in it.
    """
    ready = [rows[:, i].copy() for i in range(min(4, rows.shape[1]))]
    found = []
    for _ in range(rounds):
        start = time.process_time()
        for x in ready:
            product = x @ x.T if len(x) < x.shape[1] else x.T @ x
            torch.linalg.cholesky_ex(torch.from_numpy(product))
        found.append(time.process_time() - start)
    return statistics.median(found) * rows.shape[1] / len(ready)


def part(layers: int, n: int, d: int, *, rounds: int = 5, leave_out: tuple[str, ...] = ()) -> Part:
    """All kinds at one size; the smoke run keeps a few layers of it."""

    def measure(quick: bool) -> list[dict[str, Any]]:
        if quick:
            kinds, sizes = list(PEERS)[:6], (min(layers, 2), min(n, 64), 64)
        else:
            kinds, sizes = [kind for kind in PEERS if kind not in leave_out], (layers, n, d)
        with one_thread():
            records = [compare(kind, *sizes, 2 if quick else rounds) for kind in kinds]
        skipped = "left out at this size to keep the run short; measured at a smaller one"
        shape = " x ".join(map(str, sizes))
        left_out = [kind for kind in leave_out if not quick]
        return records + [
            {"row": 6, "name": f"{kind}, {shape}", "yardstick": "scikit-learn", "skipped": skipped} for kind in left_out
        ]

    return measure


@contextmanager
def one_thread() -> Iterator[None]:
    """Both sides on one thread: a loop over layers on many threads would be another peer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        torch.set_num_threads(before)


SLOW = ("logistic-cv", "logistic (newton-cholesky)")
PARTS: dict[str, Part] = {
    "n16": part(30, 16, 576),
    "n64": part(30, 64, 576, leave_out=("logistic-cv",)),
    "n400": part(30, 400, 576, leave_out=SLOW),
    "n4000": part(30, 4000, 576, leave_out=(*SLOW, "logistic")),
    # A layer of scikit-learn's pooled covariance takes half a minute here, and its other shrinkage as long.
    "n64-wide": part(80, 64, 4096, rounds=3, leave_out=(*SLOW, "whitened-pooled-oas")),
    "n400-wide": part(80, 400, 4096, rounds=3, leave_out=(*SLOW, "whitened-pooled-oas")),
}


def by_hand() -> None:
    """Any cell that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="30x64x576", help="layers x rows x dimensions, with commas between them")
    parser.add_argument("--kinds", default=",".join(PEERS))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    records = []
    with one_thread():
        for size in options.sizes.split(","):
            layers, n, d = (int(number) for number in size.split("x"))
            for kind in options.kinds.split(","):
                records.append(compare(kind, layers, n, d, options.rounds))
                print(json.dumps(records[-1]), file=sys.stderr)
    print(json.dumps(records, indent=1))


if __name__ == "__main__":
    by_hand() if any(argument.startswith(("--sizes", "--kinds")) for argument in sys.argv) else main(PARTS, __doc__)
