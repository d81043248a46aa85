"""Changing weights: rows, their loss, the optimiser, several processes."""
