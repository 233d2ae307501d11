"""Attention under test: problems, the float64 oracle, how far rounding may carry a result, and what to look for."""
