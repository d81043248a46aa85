"""Every kind of probe by its name: what the command line, the tables and the probe files call it."""

from __future__ import annotations

from ...activations.basics.errors import DefectionError
from .attention import AttentionProbe
from .consistent import ContrastConsistentSearch
from .convergence import LayerConvergence
from .diffing import BaseDifference
from .ensembles import QuestionEnsemble
from .erased import Erased
from .estimator import ProbeEstimator
from .guard import Evidence
from .linear import LinearProbe
from .logistic import LogisticProbe, LogisticProbeCV
from .mean_difference import MeanDifference
from .mlp import MLPProbe
from .monitors import FirstComponent, Mahalanobis
from .pca import PairPCAProbe, PCAProbe
from .projected import Projected
from .ridge import RidgeProbe
from .traffic import UnlabelledTraffic
from .weights import WeightDirections
from .whitened import Whitened

KINDS: tuple[type[ProbeEstimator], ...] = (
    MeanDifference,
    Whitened,
    Projected,
    Erased,
    LogisticProbe,
    LogisticProbeCV,
    RidgeProbe,
    PCAProbe,
    PairPCAProbe,
    ContrastConsistentSearch,
    QuestionEnsemble,
    FirstComponent,
    UnlabelledTraffic,
    Mahalanobis,
    LayerConvergence,
    BaseDifference,
    WeightDirections,
    MLPProbe,
    AttentionProbe,
)


def estimators() -> dict[str, ProbeEstimator]:
    """One estimator of each kind, at its defaults, by name."""
    return {kind.name: kind() for kind in KINDS}


def saveable(*, traffic: bool = False) -> dict[str, LinearProbe]:
    """The kinds that a probe file can hold, and for which contrast texts and clean prompts are enough, by name.

    With `traffic`: those for which they and unlabelled traffic are enough, and which take it.
    """
    enough = {Evidence.CONTRAST, Evidence.CLEAN} | ({Evidence.TRAFFIC} if traffic else set())
    return {
        name: kind
        for name, kind in estimators().items()
        if isinstance(kind, LinearProbe) and kind.needs <= enough and (not traffic or Evidence.TRAFFIC in kind.sees)
    }


def estimator(name: str, *, traffic: bool = False) -> LinearProbe:
    """The kind of that name, at its defaults; DefectionError for one that cannot be made of what there is."""
    kinds = saveable(traffic=traffic)
    if name not in kinds:
        why = f"unknown probe {name!r}"
        if name in saveable(traffic=not traffic):
            why = f"a {name} probe {'does not take' if traffic else 'needs'} unlabelled traffic (--traffic)"
        raise DefectionError(f"{why}: choose one of {', '.join(kinds)}")
    return kinds[name]
