from .run.demo import DemoConfig, run_demo
from .run.evaluation import evaluate_organism, sweep_organism

__all__ = ["DemoConfig", "evaluate_organism", "run_demo", "sweep_organism"]
