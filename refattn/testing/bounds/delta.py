"""How far the delta rules may lie from the reference."""

from collections.abc import Callable
from typing import Any

BOUNDS: dict[str, Callable[..., Any]] = {}
