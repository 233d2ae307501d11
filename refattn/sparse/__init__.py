"""Sparse attention: forms that gather only the keys they need, by position or by content."""
