"""Solvers that estimators share."""
