"""The calls that the delta rules are tried on."""

from refattn.testing.calls.family import Family

FAMILIES: dict[str, Family] = {}
