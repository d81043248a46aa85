"""Everything that turns residual vectors into a verdict: contrast questions, probes, sweeps, nulls, metrics, plots."""

from .components import PairPCAProbe, PCAProbe
from .contrast import ContrastQuestion, ContrastSet, contrast_set
from .estimator import LinearProbe, ProbeEstimator
from .guard import Evidence
from .logistic import LogisticProbe, LogisticProbeCV
from .mean_difference import MeanDifference
from .metrics import auroc, auroc_interval, tpr_at_fpr
from .probe import Probe, load_probe
from .projected import Projected
from .ridge import RidgeProbe
from .whitened import Whitened

__all__ = [
    "ContrastQuestion",
    "ContrastSet",
    "Evidence",
    "LinearProbe",
    "LogisticProbe",
    "LogisticProbeCV",
    "MeanDifference",
    "PCAProbe",
    "PairPCAProbe",
    "Probe",
    "ProbeEstimator",
    "Projected",
    "RidgeProbe",
    "Whitened",
    "auroc",
    "auroc_interval",
    "contrast_set",
    "load_probe",
    "tpr_at_fpr",
]
