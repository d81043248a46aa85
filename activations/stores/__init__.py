"""Residuals on disk: planned, written in shards, resumed, verified, opened."""
