"""From a model to a verdict and its page."""
