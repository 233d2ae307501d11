"""The calls that linear attention with decays are tried on."""

from refattn.testing.calls.family import Family

FAMILIES: dict[str, Family] = {}
