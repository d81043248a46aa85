"""The whole way from a base model to a report, and the `defection` command."""

from .demo import DemoConfig, run_demo
from .evaluation import evaluate_organism, sweep_organism

__all__ = ["DemoConfig", "evaluate_organism", "run_demo", "sweep_organism"]
