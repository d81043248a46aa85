"""Prompts, how a model is given them, and the positions at which they are read."""
