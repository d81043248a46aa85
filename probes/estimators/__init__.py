"""Kinds of probe, a file a kind, and what they have in common."""
