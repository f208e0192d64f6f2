"""Measurements behind every figure in the README and docs/results.md."""
