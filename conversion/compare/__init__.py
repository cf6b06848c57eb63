"""Comparison of two models: the first operation that differs, and why."""
