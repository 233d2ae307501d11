"""A small GPT: a whole network made of this project's operations.

Its block is that of `refattn.models.block`, or has another mixer from `refattn.models.mixers` in place of attention.
The head may share its matrix with the embedding (Press and Wolf, 2017, arXiv:1608.05859). With attention, a token sees
the `Config.context` tokens up to itself, so that a text of any length gives each layer the distances that it was
trained on (arXiv:2310.06825, Fig. 1).
"""

import unicodedata
from collections.abc import Callable
from contextlib import nullcontext
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from refattn.arrays import Array, check_count, check_number
from refattn.dense.decode import KVCache
from refattn.dispatch import use_backend
from refattn.models import mixers
from refattn.models.block import block
from refattn.models.checkpoint import Config, check_parameters, read, write
from refattn.models.layers import Tokens, cross_entropy, embedding, linear, rms_norm
from refattn.models.sampling import pick


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

    def new_cache(self, capacity: int, batch: tuple[int, ...] = ()) -> list[Any]:
        """Return one empty `KVCache` per layer, for `logits` to fill; room for `capacity` tokens.

        With another mixer than attention, a list of its states, which are None before the first token.
        """
        c, dtype = self.config, self.parameters["embedding"].dtype
        if c.mixer != "attention":
            return [None] * c.layers
        return [KVCache(batch, c.kv_heads, capacity, c.head_dim, dtype=dtype) for _ in range(c.layers)]

    def logits(self, tokens: Tokens, *, cache: list[Any] | None = None, backend: str | None = None) -> Array:
        """Return what the network expects after each token.

        Parameters
        ----------
        tokens : int array, (..., T)
            With a cache, those that follow what it holds.
        cache : list, optional
            From `new_cache`; takes the new keys and values, or the new states.
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
        caches: list[Any] = [None] * self.config.layers if cache is None else cache
        if len(caches) != self.config.layers:
            raise ValueError(f"logits: cache has {len(caches)} layers; wanted {self.config.layers}")
        x = embedding(tokens, self.parameters["embedding"])  # (..., T, E)
        with nullcontext() if backend is None else use_backend(backend):
            for n in range(self.config.layers):
                if self.config.mixer != "attention":
                    x, caches[n] = mixers.block(x, self.layer(n), self.config, caches[n])
                    continue
                positions = np.arange(tokens.shape[-1]) + (0 if caches[n] is None else len(caches[n]))
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
        if self.config.mixer != "attention":
            raise ValueError(f"attention_inputs: the mixer is {self.config.mixer}; only attention has keys to show")
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
        if self.config.mixer != "attention" and not mixers.MIXERS[self.config.mixer].causal:
            raise ValueError(f"generate: {self.config.mixer} is not causal: it needs all tokens at once")
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
