"""The calls that packed and paged attention is tried on."""

from refattn.testing.calls.family import Family

FAMILIES: dict[str, Family] = {}
