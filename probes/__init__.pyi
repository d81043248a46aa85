from .estimators.attention import AttentionProbe
from .estimators.consistent import ContrastConsistentSearch
from .estimators.convergence import LayerConvergence
from .estimators.diffing import BaseDifference, against_base, difference
from .estimators.ensembles import LayerEnsemble, QuestionEnsemble
from .estimators.erased import Erased
from .estimators.estimator import ProbeEstimator
from .estimators.guard import Evidence
from .estimators.linear import LinearProbe
from .estimators.logistic import LogisticProbe, LogisticProbeCV
from .estimators.mean_difference import MeanDifference
from .estimators.mlp import MLPProbe
from .estimators.monitors import FirstComponent, Mahalanobis
from .estimators.pca import PairPCAProbe, PCAProbe
from .estimators.probe import Probe, load_probe
from .estimators.projected import Projected
from .estimators.ragged import Ragged
from .estimators.ridge import RidgeProbe
from .estimators.saving import load_estimator
from .estimators.traffic import TrafficVerdict, UnlabelledTraffic
from .estimators.weights import WeightChange, WeightDirections, weight_change
from .estimators.whitened import Whitened
from .evidence.judgement import Judgement, Rule, judge
from .evidence.judging import judge_questions
from .evidence.nulls import best_layer
from .evidence.outcomes import Outcomes
from .evidence.shuffles import label_shuffle_null
from .levers.hooks import Ablate, Erase, Steer
from .monitoring.alarms import Alarm
from .monitoring.calibration import Calibration, calibrate, load_calibration
from .monitoring.monitor import AlarmEvent, Monitor, WatchedReply
from .pictures.layer_sweep import LayerSweep, sweep_layers
from .questions.contrast import ContrastSet
from .questions.contrast_sets import contrast_set
from .questions.questions import ContrastQuestion
from .statistics.calibration import conformal_p_values, conformal_threshold, worst_set_fpr
from .statistics.intervals import delong_interval, paired_difference
from .statistics.metrics import auroc, partial_auroc, tpr_at_fpr

__all__ = [
    "Ablate",
    "Alarm",
    "AlarmEvent",
    "AttentionProbe",
    "BaseDifference",
    "Calibration",
    "ContrastConsistentSearch",
    "ContrastQuestion",
    "ContrastSet",
    "Erase",
    "Erased",
    "Evidence",
    "FirstComponent",
    "Judgement",
    "LayerConvergence",
    "LayerEnsemble",
    "LayerSweep",
    "LinearProbe",
    "LogisticProbe",
    "LogisticProbeCV",
    "MLPProbe",
    "Mahalanobis",
    "MeanDifference",
    "Monitor",
    "Outcomes",
    "PCAProbe",
    "PairPCAProbe",
    "Probe",
    "ProbeEstimator",
    "Projected",
    "QuestionEnsemble",
    "Ragged",
    "RidgeProbe",
    "Rule",
    "Steer",
    "TrafficVerdict",
    "UnlabelledTraffic",
    "WatchedReply",
    "WeightChange",
    "WeightDirections",
    "Whitened",
    "against_base",
    "auroc",
    "best_layer",
    "calibrate",
    "conformal_p_values",
    "conformal_threshold",
    "contrast_set",
    "delong_interval",
    "difference",
    "judge",
    "judge_questions",
    "label_shuffle_null",
    "load_calibration",
    "load_estimator",
    "load_probe",
    "paired_difference",
    "partial_auroc",
    "sweep_layers",
    "tpr_at_fpr",
    "weight_change",
    "worst_set_fpr",
]
