"""How far linear attention with decays may lie from the reference."""

from collections.abc import Callable
from typing import Any

BOUNDS: dict[str, Callable[..., Any]] = {}
