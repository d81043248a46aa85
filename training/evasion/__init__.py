"""Training against a detector: organisms that keep their behaviour and hide from whoever reads their activations."""
