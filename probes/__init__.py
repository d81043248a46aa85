"""Everything that turns residual vectors into a verdict: contrast questions, probes, sweeps, nulls, metrics, plots."""

from .attention import AttentionProbe
from .calibration import conformal_p_values, conformal_threshold, worst_set_fpr
from .components import PairPCAProbe, PCAProbe
from .consistent import ContrastConsistentSearch
from .contrast import ContrastSet
from .contrast_sets import contrast_set
from .diffing import against_base, difference
from .ensembles import LayerEnsemble, ProbeAverage, QuestionEnsemble
from .erased import Erased
from .estimator import LinearProbe, ProbeEstimator
from .guard import Evidence
from .intervals import delong_interval, paired_difference
from .judgement import Judgement, Rule, judge
from .judging import Outcomes, judge_questions
from .logistic import LogisticProbe, LogisticProbeCV
from .mean_difference import MeanDifference
from .metrics import auroc, partial_auroc, tpr_at_fpr
from .mlp import MLPProbe
from .monitors import FirstComponent, Mahalanobis
from .nulls import best_layer
from .probe import Probe, load_probe
from .projected import Projected
from .questions import ContrastQuestion
from .ragged import Ragged
from .ridge import RidgeProbe
from .shuffles import label_shuffle_null
from .traffic import TrafficVerdict, UnlabelledTraffic
from .whitened import Whitened

__all__ = [
    "AttentionProbe",
    "ContrastConsistentSearch",
    "ContrastQuestion",
    "ContrastSet",
    "Erased",
    "Evidence",
    "FirstComponent",
    "Judgement",
    "LayerEnsemble",
    "LinearProbe",
    "LogisticProbe",
    "LogisticProbeCV",
    "MLPProbe",
    "Mahalanobis",
    "MeanDifference",
    "Outcomes",
    "PCAProbe",
    "PairPCAProbe",
    "Probe",
    "ProbeAverage",
    "ProbeEstimator",
    "Projected",
    "QuestionEnsemble",
    "Ragged",
    "RidgeProbe",
    "Rule",
    "TrafficVerdict",
    "UnlabelledTraffic",
    "Whitened",
    "against_base",
    "auroc",
    "best_layer",
    "conformal_p_values",
    "conformal_threshold",
    "contrast_set",
    "delong_interval",
    "difference",
    "judge",
    "judge_questions",
    "label_shuffle_null",
    "load_probe",
    "paired_difference",
    "partial_auroc",
    "tpr_at_fpr",
    "worst_set_fpr",
]
