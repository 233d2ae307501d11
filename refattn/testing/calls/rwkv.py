"""The calls that RWKV is tried on."""

from refattn.testing.calls.family import Family

FAMILIES: dict[str, Family] = {}
