"""Figures from scores and labels alone: metrics, intervals, thresholds, combinations."""
