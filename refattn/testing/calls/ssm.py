"""The calls that state spaces and the short convolution are tried on."""

from refattn.testing.calls.family import Family

FAMILIES: dict[str, Family] = {}
