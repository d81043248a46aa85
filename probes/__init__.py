"""Everything that turns residual vectors into a verdict: contrast questions, probes, sweeps, nulls, metrics, plots."""

from .calibration import conformal_p_values, conformal_threshold, worst_set_fpr
from .contrast import ContrastQuestion, ContrastSet, contrast_set
from .intervals import delong_interval, paired_difference
from .mean_difference import MeanDifference
from .metrics import auroc, auroc_interval, partial_auroc, tpr_at_fpr
from .nulls import best_layer
from .probe import Probe, load_probe
from .projected import Projected
from .shuffles import label_shuffle_null
from .whitened import Whitened

__all__ = [
    "ContrastQuestion",
    "ContrastSet",
    "MeanDifference",
    "Probe",
    "Projected",
    "Whitened",
    "auroc",
    "auroc_interval",
    "best_layer",
    "conformal_p_values",
    "conformal_threshold",
    "contrast_set",
    "delong_interval",
    "label_shuffle_null",
    "load_probe",
    "paired_difference",
    "partial_auroc",
    "tpr_at_fpr",
    "worst_set_fpr",
]
