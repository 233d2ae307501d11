"""How far attention by feature maps, projections and landmarks may lie from the reference."""

from collections.abc import Callable
from typing import Any

BOUNDS: dict[str, Callable[..., Any]] = {}
