"""The calls that attention by feature maps, projections and landmarks are tried on."""

from refattn.testing.calls.family import Family

FAMILIES: dict[str, Family] = {}
