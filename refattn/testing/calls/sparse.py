"""The calls that sparse attention by position is tried on."""

from refattn.testing.calls.family import Family

FAMILIES: dict[str, Family] = {}
