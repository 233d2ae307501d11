"""Read a Hugging Face config.json as a `Transformer`."""

from pathlib import Path
from typing import Any

from refattn.costs.transformer import Transformer


def from_config(source: "str | Path | dict[str, Any]") -> Transformer:
    """Return the sizes that a config.json, its folder, or its contents give."""
    raise NotImplementedError
