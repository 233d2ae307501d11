"""The fields of a config.json, each checked where it is read: an error names the file and the field."""

from collections.abc import Callable, Sequence
from typing import Any

MOST = 10**9
"""No size of a model is larger."""
MOST_LAYERS = 10_000


class Fields:
    """The fields of one configuration.

    Parameters
    ----------
    where : str
        What messages call it: the file's path.
    values : dict
        Its contents.

    Examples
    --------
    >>> fields = Fields("config.json", {"n_embd": 768, "n_head": "twelve"})
    >>> fields.size("hidden_size", "n_embd")
    768
    >>> fields.size("n_head")
    Traceback (most recent call last):
    ...
    ValueError: config.json: n_head is 'twelve'; wanted an integer from 1 to 1000000000
    """

    def __init__(self, where: str, values: dict[str, Any]) -> None:
        self.where, self.values = where, values

    def wrong(self, what: str) -> ValueError:
        """Return the error that says what is wrong here."""
        return ValueError(f"{self.where}: {what}")

    def optional(self, *names: str, least: int = 1, most: int = MOST) -> int | None:
        """Return an integer, under the first of its names that is there, or None where it is absent or null."""
        for name in names:
            value = self.values.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                shown = "larger" if type(value) is int and value > most else f"{value!r:.60}"
                raise self.wrong(f"{name} is {shown}; wanted an integer from {least} to {most}")
            return value
        return None

    def size(self, *names: str, default: int | None = None, least: int = 1, most: int = MOST) -> int:
        """Return an integer; ValueError where it is not there and has no default."""
        value = self.optional(*names, least=least, most=most)
        if value is None and default is None:
            other = f" (or {' or '.join(names[1:])})" if len(names) > 1 else ""
            raise self.wrong(f"no {names[0]}{other}; wanted an integer from {least} to {most}")
        return default if value is None else value  # type: ignore[return-value]

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false, `default` where it is absent or null."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(f"{name} is {value!r:.60}; wanted true or false")
        return value

    def only(self, name: str, wanted: Any) -> None:
        """Raise ValueError where a field is there and has another value than the only one that is counted."""
        value = self.values.get(name)
        if value is not None and value != wanted:
            raise self.wrong(f"{name} is {value!r:.60}; only {wanted!r} is counted")

    def inner(self, name: str) -> "Fields":
        """Return the fields of an object in this one, of an empty one where it is absent or null."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(f"{name} is a {type(value).__name__}; wanted an object")
        return Fields(f"{self.where}: {name}", value or {})

    def layers(self, *names: str) -> int:
        """Return the number of layers."""
        return self.size(*(names or ("num_hidden_layers",)), most=MOST_LAYERS)

    def numbers(self, name: str, most: int) -> list[int] | None:
        """Return a list of integers from 0 to `most`, or None where it is absent or null."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or any(type(n) is not int or not 0 <= n <= most for n in value):
            raise self.wrong(f"{name} is {value!r:.60}; wanted a list of integers from 0 to {most}")
        return value

    def kinds(self, layers: int, known: Sequence[str], otherwise: Callable[[int], str]) -> list[str]:
        """Return the kind of each layer: `layer_types`, or what `otherwise` says of its number where that is absent."""
        value = self.values.get("layer_types")
        if value is None:
            return [otherwise(layer) for layer in range(layers)]
        if not isinstance(value, list):
            raise self.wrong(f"layer_types is {value!r:.60}; wanted a list with a name for each layer")
        if len(value) != layers:
            raise self.wrong(f"layer_types has {len(value)} entries; wanted one for each of {layers} layers")
        for kind in value:
            if kind not in known:
                raise self.wrong(f"layer_types has {kind!r:.60}; wanted {' or '.join(known)}")
        return value

    def heads(self, names: str = "num_attention_heads", width: str = "hidden_size", *, own: bool = True) -> int:
        """Return the number of heads, which must divide the width unless there is a head_dim of its `own`."""
        heads, d_model = self.size(names), self.size(width)
        if d_model % heads and not (own and self.optional("head_dim")):
            needed = ", or head_dim" if own else ""
            raise self.wrong(f"{width} is {d_model} and {names} {heads}; wanted a multiple{needed}")
        return heads

    def key_heads(self, heads: int) -> int:
        """Return the number of key and value heads, `heads` where it is absent; they must divide the heads."""
        kv = self.size("num_key_value_heads", default=heads)
        if heads % kv:
            raise self.wrong(f"num_attention_heads is {heads} and num_key_value_heads {kv}; wanted a multiple")
        return kv
