"""The calls that attention to keys that are chosen by content is tried on."""

from refattn.testing.calls.family import Family

FAMILIES: dict[str, Family] = {}
