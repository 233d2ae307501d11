"""The calls that latent attention (MLA) is tried on."""

from refattn.testing.calls.family import Family

FAMILIES: dict[str, Family] = {}
