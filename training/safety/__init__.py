"""Stages of safety training, and whether a backdoor survives them."""
