"""A small GPT: a whole network made of this project's operations.

The block is Llama's (Touvron et al., 2023, arXiv:2302.13971): RMSNorm before each half, rotary positions on queries
and keys (arXiv:2104.09864), key heads shared by groups of query heads (arXiv:2305.13245), SwiGLU. The head may share
its matrix with the embedding (Press and Wolf, 2017, arXiv:1608.05859). A token sees the `Config.context` tokens up to
itself, so that a text of any length gives each layer the distances that it was trained on (arXiv:2310.06825, Fig. 1).
"""

import unicodedata
from collections import namedtuple
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from refattn.arrays import Array, check_count, check_number
from refattn.dense.attention import attention, attention_vjp
from refattn.dense.decode import KVCache
from refattn.dense.rope import rope, rope_vjp
from refattn.dispatch import use_backend
from refattn.models.checkpoint import Config, check_parameters, read, write
from refattn.models.layers import (
    Tokens,
    cross_entropy,
    embedding,
    linear,
    linear_vjp,
    merge_heads,
    rms_norm,
    rms_norm_vjp,
    split_heads,
    swiglu,
    swiglu_vjp,
)
from refattn.models.sampling import pick

Saved = namedtuple("Saved", "x h q k v o x_1 h_1 gate up")  # what `block` computed and `block_vjp` reads


def block(
    x: Array, w: dict[str, Array], config: Config, positions: Tokens, cache: KVCache | None = None
) -> tuple[Array, Saved]:
    """Add attention to the stream, then the feed-forward network, each on a normalised copy.

    Parameters
    ----------
    x : array, (..., T, E)
        The stream.
    w : dict of array
        The layer's parameters, by the last part of their names in `Config.shapes`.
    config : Config
    positions : int array, (T,)
    cache : KVCache, optional
        Holds what was before, and takes what is new.

    Returns
    -------
    x_2 : array, (..., T, E)
    saved : Saved
    """
    h = rms_norm(x, w["norm_1"])
    q = split_heads(linear(h, w["w_q"]), config.heads)  # (..., H, T, D)
    k = split_heads(linear(h, w["w_k"]), config.kv_heads)  # (..., Hk, T, D)
    v = split_heads(linear(h, w["w_v"]), config.kv_heads)
    q, k = (rope(y, positions, theta=config.theta) for y in (q, k))
    if cache is not None:
        k, v = cache.append(k, v)  # (..., Hk, past + T, D)
    o = merge_heads(attention(q, k, v, mask=config.mask))  # (..., T, H * D)
    x_1 = x + linear(o, w["w_o"])

    h_1 = rms_norm(x_1, w["norm_2"])
    gate, up = linear(h_1, w["w_gate"]), linear(h_1, w["w_up"])  # (..., T, F)
    x_2 = x_1 + linear(swiglu(gate, up), w["w_down"])
    return x_2, Saved(x, h, q, k, v, o, x_1, h_1, gate, up)


def block_vjp(
    dx_2: Array, saved: Saved, w: dict[str, Array], config: Config, positions: Tokens
) -> tuple[Array, dict[str, Array]]:
    """Pull the cotangent of `block`'s stream back to its input and its parameters; read it beside `block`, upwards.

    Returns
    -------
    dx : array, (..., T, E)
    dw : dict of array
        In the names of w.
    """
    x, h, q, k, v, o, x_1, h_1, gate, up = saved
    dw = {}
    dy, dw["w_down"] = linear_vjp(dx_2, swiglu(gate, up), w["w_down"])  # was: x_2 = x_1 + swiglu(gate, up) @ w_down
    dgate, dup = swiglu_vjp(dy, gate, up)
    dh_gate, dw["w_gate"] = linear_vjp(dgate, h_1, w["w_gate"])
    dh_up, dw["w_up"] = linear_vjp(dup, h_1, w["w_up"])
    dx_1, dw["norm_2"] = rms_norm_vjp(dh_gate + dh_up, x_1, w["norm_2"])
    dx_1 += dx_2

    do, dw["w_o"] = linear_vjp(dx_1, o, w["w_o"])  # was: x_1 = x + o @ w_o
    dq, dk, dv, *_ = attention_vjp(split_heads(do, config.heads), q, k, v, mask=config.mask)
    dq, dk = (rope_vjp(dy, positions, theta=config.theta) for dy in (dq, dk))
    dh_q, dw["w_q"] = linear_vjp(merge_heads(dq), h, w["w_q"])
    dh_k, dw["w_k"] = linear_vjp(merge_heads(dk), h, w["w_k"])
    dh_v, dw["w_v"] = linear_vjp(merge_heads(dv), h, w["w_v"])
    dx, dw["norm_1"] = rms_norm_vjp(dh_q + dh_k + dh_v, x, w["norm_1"])
    return dx + dx_1, dw


class GPT:
    """A decoder of characters.

    Parameters
    ----------
    config : Config
    parameters : dict of array
        As `Config.shapes` names and shapes them, of one dtype, in which the network computes.
    record : dict, optional
        How it was trained: kept with the checkpoint, read by nobody.

    Raises
    ------
    ValueError
        If parameters are missing, do not fit, or are not finite.

    Examples
    --------
    >>> gpt = GPT.bundled()
    >>> gpt.decode(gpt.encode("attention"))
    'attention'
    >>> gpt.logits(gpt.encode("attention")).shape == (9, len(gpt.config.vocabulary))
    True
    """

    def __init__(self, config: Config, parameters: dict[str, Array], record: dict[str, Any] | None = None) -> None:
        check_parameters(config, parameters)
        self.config, self.parameters, self.record = config, parameters, dict(record or {})
        self._tokens = {character: token for token, character in enumerate(config.vocabulary)}

    @classmethod
    def bundled(cls) -> "GPT":
        """Load the checkpoint that comes with the package; ``examples/train_gpt.py`` made it."""
        with as_file(files("refattn.models.data").joinpath("gpt.npz")) as path:
            return cls.load(path)

    @classmethod
    def load(cls, path: str | Path) -> "GPT":
        """Read a checkpoint; ValueError if it is none, or a damaged one."""
        return cls(*read(path))

    def save(self, path: str | Path) -> None:
        """Write a checkpoint, as float16; the file at `path` is the old one or the new one at every moment."""
        write(path, self.config, self.parameters, self.record)

    def layer(self, n: int) -> dict[str, Array]:
        """Return the parameters of layer n, by the last part of their names."""
        prefix = f"layers.{n}."
        return {name.removeprefix(prefix): x for name, x in self.parameters.items() if name.startswith(prefix)}

    def encode(self, text: str) -> Tokens:
        """Return the token of each character, (T,); ValueError names a character that the vocabulary lacks."""
        for place, character in enumerate(text):
            if character not in self._tokens:
                name = unicodedata.name(character, "unnamed")
                raise ValueError(f"encode: character {character!r} ({name}) at {place} is not in the vocabulary")
        return np.array([self._tokens[character] for character in text], np.int64)

    def decode(self, tokens: Tokens) -> str:
        """Return the characters of the tokens (T,)."""
        return "".join(self.config.vocabulary[token] for token in self.checked("decode", tokens))

    def new_cache(self, capacity: int, batch: tuple[int, ...] = ()) -> list[KVCache]:
        """Return one empty `KVCache` per layer, for `logits` to fill; room for `capacity` tokens."""
        c, dtype = self.config, self.parameters["embedding"].dtype
        return [KVCache(batch, c.kv_heads, capacity, c.head_dim, dtype=dtype) for _ in range(c.layers)]

    def logits(self, tokens: Tokens, *, cache: Sequence[KVCache] | None = None, backend: str | None = None) -> Array:
        """Return what the network expects after each token.

        Parameters
        ----------
        tokens : int array, (..., T)
            With a cache, those that follow what it holds.
        cache : sequence of KVCache, optional
            From `new_cache`; takes the new keys and values.
        backend : str, optional
            Who computes; see `refattn.backends`. By default that of `refattn.use_backend`, else "numpy".

        Returns
        -------
        array, (..., T, V)

        Raises
        ------
        TypeError, ValueError
            For tokens that are none, and for more than the cache has room for, which then stays as it was.
        """
        tokens = self.checked("logits", tokens)
        caches = [None] * self.config.layers if cache is None else cache
        if len(caches) != self.config.layers:
            raise ValueError(f"logits: cache has {len(caches)} layers; wanted {self.config.layers}")
        positions = np.arange(tokens.shape[-1]) + (0 if cache is None else len(cache[0]))
        x = embedding(tokens, self.parameters["embedding"])  # (..., T, E)
        with nullcontext() if backend is None else use_backend(backend):
            for n in range(self.config.layers):
                x, _ = block(x, self.layer(n), self.config, positions, caches[n])
        return linear(rms_norm(x, self.parameters["norm"]), self.head)

    @property
    def head(self) -> Array:
        """From the stream to logits, (E, V)."""
        return self.parameters["embedding"].T if self.config.tied else self.parameters["head"]

    def loss(self, tokens: Tokens, *, backend: str | None = None) -> float:
        """Return the mean surprise, in nats, at each of tokens (..., T + 1) after the first, given those before it."""
        tokens = self.checked("loss", tokens, least=2)
        return cross_entropy(self.logits(tokens[..., :-1], backend=backend), tokens[..., 1:])

    def attention_inputs(self, tokens: Tokens, layer: int) -> tuple[Array, Array, Array]:
        """Return what layer 0, 1 ... gives to `attention`: q (..., H, T, D) and k, v (..., Hk, T, D)."""
        tokens = self.checked("attention_inputs", tokens)
        check_count("attention_inputs", "layer", layer, least=0)
        if layer >= self.config.layers:
            raise ValueError(f"attention_inputs: layer is {layer}; wanted one below {self.config.layers}")
        x = embedding(tokens, self.parameters["embedding"])
        for n in range(layer + 1):
            x, saved = block(x, self.layer(n), self.config, np.arange(tokens.shape[-1]))
        return saved.q, saved.k, saved.v

    def generate(
        self,
        prompt: str,
        tokens: int = 200,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int = 0,
        on_character: Callable[[str], object] | None = None,
        backend: str | None = None,
    ) -> str:
        """Continue a text.

        Parameters
        ----------
        prompt : str
            One character at least, all from the vocabulary.
        tokens : int
            How many characters to add.
        temperature : float
            0 always takes the likeliest; 1 draws as the network expects; between, more carefully.
        top_k : int, optional
            Draw among the k likeliest only.
        seed : int
            Same seed, same text.
        on_character : function, optional
            Called with each character as it comes.
        backend : str, optional
            Who computes; see `refattn.backends`. By default that of `refattn.use_backend`, else "numpy".

        Returns
        -------
        str
            What follows the prompt.

        Raises
        ------
        TypeError, ValueError
            For arguments out of range, and for a character that the vocabulary lacks.
        """
        check_count("generate", "tokens", tokens, least=0)
        check_number("generate", "temperature", temperature)
        check_count("generate", "top_k", 1 if top_k is None else top_k)
        check_count("generate", "seed", seed, least=0)
        if temperature < 0 or not prompt:
            raise ValueError(f"generate: temperature is {temperature}, prompt {prompt!r}; wanted >= 0, and a character")
        rng = np.random.default_rng(seed)
        new, written = self.encode(prompt), ""
        cache = self.new_cache(len(prompt) + tokens)
        for _ in range(tokens):
            z = self.logits(new, cache=cache, backend=backend)[-1]  # (V,)
            new = np.array([pick(z, temperature, top_k, rng)])
            written += self.decode(new)
            if on_character is not None:
                on_character(written[-1])
        return written

    def checked(self, operation: str, tokens: Any, least: int = 0) -> Tokens:
        """Return `tokens` (..., at least so many), or raise TypeError or ValueError in the name of `operation`."""
        if getattr(tokens, "dtype", None) is None or tokens.dtype.kind not in "iu" or tokens.ndim < 1:
            raise TypeError(f"{operation}: tokens must be an integer array of one axis at least")
        if tokens.shape[-1] < least:
            raise ValueError(f"{operation}: tokens has shape {tokens.shape}; wanted at least {least} on the last axis")
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < len(self.config.vocabulary):
            raise ValueError(
                f"{operation}: tokens reach from {tokens.min()} to {tokens.max()}; "
                f"wanted 0 to {len(self.config.vocabulary) - 1}"
            )
        return tokens
