"""This project's networks, measured: the same functions, in which names stand for measured ones."""

from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from refattn.arrays import Array
from refattn.costs.mechanisms import Softmax
from refattn.costs.transformer import Transformer
from refattn.dense.attention import attention
from refattn.dense.multihead import multi_head_attention
from refattn.dense.rope import rope
from refattn.models.block import block
from refattn.models.gpt import GPT
from refattn.models.layers import Tokens, embedding, linear, rms_norm, swiglu
from refattn.models.minilm import MiniLM, gelu, layer_norm
from refattn.watch.monitor import Monitor

F = TypeVar("F", bound=Callable[..., Any])


def rebound(f: F, **functions: Callable[..., Any]) -> F:
    """Return a copy of a function in which some global names stand for other functions; `f` stays as it is.

    Raises
    ------
    TypeError
        For what is no Python function.
    LookupError
        For a name that `f` does not use.

    Examples
    --------
    >>> def area(x):
    ...     return abs(x) ** 2
    >>> rebound(area, abs=lambda x: 10)(-3), area(-3)
    (100, 9)
    """
    if not isinstance(f, FunctionType):
        raise TypeError(f"rebound: f is {type(f).__name__}; wanted a Python function")
    strangers = sorted(functions.keys() - _names(f.__code__))
    if strangers:
        raise LookupError(f"rebound: {f.__name__} does not use {', '.join(strangers)}")
    copy = FunctionType(f.__code__, f.__globals__ | functions, f.__name__, f.__defaults__, f.__closure__)
    copy.__kwdefaults__, copy.__doc__ = f.__kwdefaults__, f.__doc__
    return copy  # type: ignore[return-value]


def _names(code: CodeType) -> set[str]:
    inner = (_names(part) for part in code.co_consts if isinstance(part, CodeType))
    return set(code.co_names).union(*inner)


def gpt_costs(gpt: GPT) -> Transformer:
    """Return a `GPT` with attention as costs see it; ValueError for another mixer.

    Examples
    --------
    >>> gpt = GPT.bundled()
    >>> gpt_costs(gpt).params() == sum(x.size for x in gpt.parameters.values())
    True
    """
    c = gpt.config
    if c.mixer != "attention":
        raise ValueError(f"monitor: the mixer of this GPT is {c.mixer}; wanted attention")
    return Transformer(
        layers=c.layers,
        d_model=c.width,
        heads=c.heads,
        kv_heads=c.kv_heads,
        head_dim=c.head_dim,
        ffn=c.hidden,
        gated=True,
        vocab=len(c.vocabulary),
        tied=c.tied,
        mechanism=Softmax(mask=c.mask),  # a mask and not a window: the cache keeps all tokens
        name="gpt",
    )


def minilm_costs(minilm: MiniLM) -> Transformer:
    """Return the layers of a `MiniLM` as costs see them, without its table of words."""
    width = minilm.words.shape[1]
    ffn = minilm.layers[0].w_up.shape[1]
    return Transformer(layers=len(minilm.layers), d_model=width, heads=minilm.heads, ffn=ffn, bias=True, name="minilm")


class WatchedGPT(GPT):
    """A `GPT` whose passes are measured: a prefill, then steps of decoding.

    Several tokens onto a cache are counted as a prefill of all that it then holds.

    Parameters
    ----------
    gpt : GPT
    monitor : Monitor
        With `gpt_costs` of it as its model.
    all_parts : bool
        Measure every component; else attention, embedding and head only, and the others are the rest.

    Examples
    --------
    >>> from prometheus_client import CollectorRegistry
    >>> gpt, registry = GPT.bundled(), CollectorRegistry()
    >>> watched = WatchedGPT(gpt, Monitor(gpt_costs(gpt), registry=registry))
    >>> watched.generate("def ", tokens=3) == gpt.generate("def ", tokens=3)
    True
    >>> labels = {"phase": "decode", "backend": "numpy", "mechanism": "softmax"}
    >>> registry.get_sample_value("refattn_sequence_length_count", labels)
    2
    """

    def __init__(self, gpt: GPT, monitor: Monitor, all_parts: bool = True) -> None:
        super().__init__(gpt.config, gpt.parameters, gpt.record)
        self._monitor = monitor

        def part(f: Callable[..., Any], component: str) -> Callable[..., Any]:
            return monitor.wrap(f, component=component)

        inside = {"attention": part(attention, "attention")}
        outside = {"embedding": part(embedding, "embedding"), "linear": part(linear, "head")}
        if all_parts:
            ffn, projection = part(linear, "ffn"), part(linear, "projection")
            hidden, attended = gpt.config.hidden, gpt.config.heads * gpt.config.head_dim
            if hidden in (attended, gpt.config.kv_heads * gpt.config.head_dim, gpt.config.width):
                ffn = projection  # the shapes do not tell them apart

            def ffn_or_projection(x: Array, w: Array) -> Array:
                y: Array = (ffn if hidden in w.shape else projection)(x, w)
                return y

            inside |= {"linear": ffn_or_projection, "rms_norm": part(rms_norm, "norm")}
            inside |= {"swiglu": part(swiglu, "ffn"), "rope": part(rope, "projection")}
            outside["rms_norm"] = part(rms_norm, "norm")
        self._logits = rebound(GPT.logits, block=rebound(block, **inside), **outside)

    def logits(self, tokens: Tokens, *, cache: list[Any] | None = None, backend: str | None = None) -> Array:
        """Return what `GPT.logits` does."""
        if not isinstance(tokens, np.ndarray) or not tokens.size or not tokens.ndim:
            return super().logits(tokens, cache=cache, backend=backend)
        past = 0 if not cache or cache[0] is None else len(cache[0])
        batch, new = tokens.size // tokens.shape[-1], tokens.shape[-1]
        phase = "decode" if new == 1 and past else "prefill"
        with self._monitor.call(phase, seq=past + new, batch=batch):
            return self._logits(self, tokens, cache=cache, backend=backend)


class WatchedMiniLM(MiniLM):
    """A `MiniLM` whose batches are measured: attention with its projections, norms, and the rest as feed-forward.

    Make one with `WatchedMiniLM.of`.
    """

    _monitor: Monitor
    _encode: Callable[..., Array]

    @classmethod
    def of(cls, minilm: MiniLM, monitor: Monitor) -> "WatchedMiniLM":
        """Return `minilm`, measured by a monitor with `minilm_costs` of it, not causal, as its model."""
        watched = cls(**{name: getattr(minilm, name) for name in MiniLM.__dataclass_fields__})
        encode = rebound(
            MiniLM.encode,
            multi_head_attention=monitor.wrap(multi_head_attention, component="attention"),
            layer_norm=monitor.wrap(layer_norm, component="norm"),
            gelu=monitor.wrap(gelu, component="ffn"),
        )
        object.__setattr__(watched, "_monitor", monitor)
        object.__setattr__(watched, "_encode", encode)
        return watched

    def encode(self, ids: NDArray[Any], lengths: NDArray[Any], *, backend: str | None = None) -> Array:
        """Return what `MiniLM.encode` does."""
        batch, seq = ids.shape
        with self._monitor.call("prefill", seq=seq, batch=batch, rest="ffn"):
            return self._encode(self, ids, lengths, backend=backend)
