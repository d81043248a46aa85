"""Everything that turns residual vectors into a verdict: contrast questions, probes, sweeps, nulls, metrics, plots."""

from .contrast import ContrastSet, contrast_set
from .mean_difference import MeanDifference
from .metrics import auroc, auroc_interval, tpr_at_fpr
from .probe import Probe, load_probe
from .projected import Projected
from .questions import ContrastQuestion
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
    "contrast_set",
    "load_probe",
    "tpr_at_fpr",
]
