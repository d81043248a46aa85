"""Everything that turns residual vectors into a verdict: contrast questions, probes, sweeps, nulls, metrics, plots."""

from .attention import AttentionProbe
from .components import PairPCAProbe, PCAProbe
from .consistent import ContrastConsistentSearch
from .contrast import ContrastQuestion, ContrastSet, contrast_set
from .ensembles import LayerEnsemble, QuestionEnsemble
from .erased import Erased
from .estimator import LinearProbe, ProbeEstimator
from .guard import Evidence
from .logistic import LogisticProbe, LogisticProbeCV
from .mean_difference import MeanDifference
from .metrics import auroc, auroc_interval, tpr_at_fpr
from .mlp import MLPProbe
from .monitors import FirstComponent, Mahalanobis
from .probe import Probe, load_probe
from .projected import Projected
from .ragged import Ragged
from .ridge import RidgeProbe
from .whitened import Whitened

__all__ = [
    "AttentionProbe",
    "ContrastConsistentSearch",
    "ContrastQuestion",
    "ContrastSet",
    "Erased",
    "Evidence",
    "FirstComponent",
    "LayerEnsemble",
    "LinearProbe",
    "LogisticProbe",
    "LogisticProbeCV",
    "MLPProbe",
    "Mahalanobis",
    "MeanDifference",
    "PCAProbe",
    "PairPCAProbe",
    "Probe",
    "ProbeEstimator",
    "Projected",
    "QuestionEnsemble",
    "Ragged",
    "RidgeProbe",
    "Whitened",
    "auroc",
    "auroc_interval",
    "contrast_set",
    "load_probe",
    "tpr_at_fpr",
]
