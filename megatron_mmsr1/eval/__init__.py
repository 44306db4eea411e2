"""Held-out questions: results, metrics, comparisons."""
