"""Everything that turns residual vectors into a verdict: contrast questions, probes, sweeps, nulls, metrics, plots."""

import lazy_loader

# Names are imported when they are first used (PEP 562): torch and transformers take seconds. `__init__.pyi` lists them.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
