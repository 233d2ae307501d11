"""How far attention to keys that are chosen by content may lie from the reference."""

from collections.abc import Callable
from typing import Any

BOUNDS: dict[str, Callable[..., Any]] = {}
