"""A whole model whose parts can be timed: one forward pass for decoders, encoders and every mechanism.

Its equations are those of `refattn.models.block` (norms before, RoPE, SwiGLU), `refattn.models.minilm` (norms after,
GELU, biases) and `refattn.models.mixers`; its numbers are theirs to rounding, or random.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refattn.arrays import Array, check_count
from refattn.costs.latent import Latent
from refattn.costs.mechanisms import Call as Asked
from refattn.costs.mechanisms import Mechanism, Softmax
from refattn.costs.names import mechanism_named
from refattn.costs.transformer import Transformer
from refattn.dense.decode import KVCache
from refattn.masks import as_mask
from refattn.models.elementwise import add, part, swap
from refattn.models.gpt import GPT
from refattn.models.layers import embedding, linear
from refattn.models.minilm import MiniLM
from refattn.models.tape import Call, direct
from refattn.watch import draw
from refattn.watch.clock import inside
from refattn.watch.draw import Layer, Weights
from refattn.watch.mixing import Pass, feed, mix, normalise

GPT_NAMES = ("w_gate", "w_up", "w_down", "norm_1", "norm_2")


@dataclass(frozen=True)
class Network:
    """A model that runs: ``network(x, call=...)``. Make one with `random`, `from_gpt` or `from_minilm`.

    Examples
    --------
    >>> net = Network.random(Transformer(layers=2, d_model=8, heads=2))
    >>> net(np.zeros((1, 3, 8), np.float32)).shape
    (1, 3, 8)
    """

    sizes: Transformer
    """Of what runs; its `layers` are those that are here."""
    layers: list[Layer]
    outer: Weights
    """words, positions, segment and head, where there are any."""
    norm: tuple[Array, ...]
    """Of the embedding where norms come after, else of the last layer's result; () for none."""
    after: bool = False
    """Norms come after adding, as in BERT."""
    causal: bool = True
    rotated: bool = True
    """Queries and keys are rotated by their positions."""
    theta: float = 10000.0
    eps: float = 1e-5
    source: str = "random weights"
    whole: int = field(default=0)
    """Layers of the model that these are the first of."""

    @classmethod
    def random(
        cls,
        m: Transformer,
        *,
        layers: int | None = None,
        seed: int = 0,
        causal: bool | None = None,
        tick: Callable[[str, float], None] = lambda text, share: None,
    ) -> "Network":
        """Draw a network of a model's sizes, float32.

        Parameters
        ----------
        m : Transformer
            Without a vocabulary (0) the network takes the embedded stream, and returns it after the last layer.
        layers : int, optional
            The first so many; all unless given.
        seed : int
        causal : bool, optional
            A token sees those before it; unless given, where m has logits.
        tick : function, optional
            Called with what is drawn and which share is done.

        Raises
        ------
        ValueError
            For sizes that are counted but cannot be run: experts, biases and norms that a mixer here does not have.
        """
        wanted = m.layers if layers is None else layers
        check_count("Network.random", "layers", wanted)
        if wanted > m.layers:
            raise ValueError(f"Network.random: layers is {wanted}; wanted at most the model's {m.layers}")
        causal = m.logits if causal is None else causal
        if m.norms not in (1, 2, 4):
            raise ValueError(f"Network: norms is {m.norms} in a layer; only 1, 2 or 4 can be run")
        rng = np.random.default_rng(seed)
        drawn = []
        for n in range(wanted):
            tick(f"layer {n + 1} of {wanted}", n / wanted)
            drawn.append(draw.layer(m, n, rng))
        outer: Weights = {}
        if m.vocab:
            outer["words"] = draw.matrix(rng, m.vocab, m.d_model)
        if m.positions:
            outer["positions"] = draw.matrix(rng, m.positions, m.d_model)
        if m.types:
            outer["segment"] = draw.matrix(rng, m.types, m.d_model)[0]
        if m.vocab and m.logits and not m.tied:
            outer["head"] = draw.matrix(rng, m.d_model, m.vocab)
        return cls(
            dataclasses.replace(m, layers=wanted, mechanism=m.mechanism[:wanted]), drawn, outer, draw.norm(m),
            after=not m.logits and m.positions > 0, causal=causal, rotated=m.positions == 0,
            source=f"random weights in the sizes of {m.name or 'the model'}", whole=m.layers,
        )  # fmt: skip

    @classmethod
    def from_gpt(cls, gpt: GPT, mechanism: Any = None) -> "Network":
        """Take a `GPT`'s parameters; another softmax `mechanism` (a mask, a window) may stand in place of its own.

        Raises
        ------
        ValueError
            For an RWKV mixer: costs count its own feed-forward network, which is not that of the `GPT`.
        """
        c = gpt.config
        if c.mixer.startswith("rwkv"):
            raise ValueError(f"Network.from_gpt: mixer is {c.mixer}; wanted one whose feed-forward network is SwiGLU")
        own: Any = Softmax(window=c.context) if c.mixer == "attention" else _counted(c.mixer, c)
        chosen = own if mechanism is None else _softmax(mechanism)
        m = Transformer(
            layers=c.layers, d_model=c.width, heads=c.heads, kv_heads=c.kv_heads, head_dim=c.head_dim, ffn=c.hidden,
            gated=True, vocab=len(c.vocabulary), tied=c.tied, mechanism=chosen, name="gpt",
        )  # fmt: skip
        layers = []
        for n in range(c.layers):
            w = gpt.layer(n)
            feeds = {name: w[name] for name in GPT_NAMES[:3]}
            mixing = {name: x for name, x in w.items() if name not in GPT_NAMES}
            layers.append(Layer(chosen, mixing, feeds, [(w["norm_1"],), (w["norm_2"],)], c))
        outer = {"words": gpt.parameters["embedding"]} | ({} if c.tied else {"head": gpt.parameters["head"]})
        norm = (gpt.parameters["norm"],)
        return cls(m, layers, outer, norm, theta=c.theta, source="a GPT's weights", whole=c.layers)

    @classmethod
    def from_minilm(cls, model: MiniLM, mechanism: Any = None) -> "Network":
        """Take a `MiniLM`'s parameters; its tokens all see each other unless a softmax `mechanism` says otherwise."""
        d, chosen = model.words.shape[1], Softmax() if mechanism is None else _softmax(mechanism)
        m = Transformer(
            layers=len(model.layers), d_model=d, heads=model.heads, ffn=model.layers[0].w_up.shape[1], bias=True,
            vocab=len(model.words), positions=len(model.positions), logits=False, mechanism=chosen, name="minilm",
        )  # fmt: skip
        layers = []
        for x in model.layers:
            feeds = {"w_up": x.w_up, "b_up": x.b_up, "w_down": x.w_down, "b_down": x.b_down}
            layers.append(Layer(chosen, x.attention, feeds, [x.norm_1, x.norm_2]))
        outer = {"words": model.words, "positions": model.positions, "segment": model.segment}
        return cls(
            m, layers, outer, model.norm, after=True, causal=False, rotated=False, eps=model.eps,
            source="a MiniLM's weights", whole=len(layers),
        )  # fmt: skip

    def __call__(
        self, x: Any, call: Call = direct, state: list[Any] | None = None, past: int = 0, mask: Any = None
    ) -> Array:
        """Run the network.

        Parameters
        ----------
        x : int array (..., T), or float array (..., T, d_model) where there is no vocabulary
        call : function
            `direct`, a `Clock`, a `Tape` or a `ClockedTape`.
        state : list, optional
            From `new_state`; its caches take the new keys and values, its other entries are replaced.
        past : int
            How many tokens the state holds.
        mask : Mask or bool array, optional
            What softmax attention may look at besides.

        Returns
        -------
        array, (..., T, V), or (..., T, d_model) without a head

        Raises
        ------
        ValueError
            For more tokens than there are positions.
        """
        m, words = self.sizes, self.outer.get("words")
        T = x.shape[-2] if words is None else x.shape[-1]
        if m.positions and past + T > m.positions:
            raise ValueError(f"Network: {past + T} tokens; the model has {m.positions} positions")
        now = Pass(call, past, Asked(1, T, past, self.causal, as_mask(mask)), {})
        y = self._embedded(x, T, past, call)
        for n, layer in enumerate(self.layers):
            mixed, last = (None, None) if state is None else state[n]
            y, kept = self._layer(y, layer, mixed, last, now)
            if state is not None:
                state[n] = kept
        y = y if self.after or not self.norm else normalise(y, self.norm, self.eps, call)
        if words is None or not m.logits:
            return y
        head = self.outer["head"] if "head" in self.outer else inside(call, "head")(swap, words)
        logits: Array = inside(call, "head")(linear, y, head)
        return logits

    def _embedded(self, x: Any, T: int, past: int, call: Call) -> Array:
        table = inside(call, "embedding")
        y = x if "words" not in self.outer else table(embedding, x, self.outer["words"])
        if "positions" in self.outer:
            columns = table(part, table(swap, self.outer["positions"]), past, past + T)
            y = table(add, y, table(swap, columns))
        y = table(add, y, self.outer["segment"]) if "segment" in self.outer else y
        return normalise(y, self.norm, self.eps, call) if self.after and self.norm else y

    def _layer(self, x: Array, layer: Layer, state: Any, last: Any, now: Pass) -> tuple[Array, tuple[Any, Any]]:
        call = now.call
        other, norms = inside(call, "other"), layer.norms
        h = x if self.after or not norms else normalise(x, norms[0], self.eps, call)
        y, state = mix(h, layer, self, state, now)
        y = normalise(y, norms[2], self.eps, call) if len(norms) == 4 else y
        x_1 = other(add, x, y)
        x_1 = normalise(x_1, norms[0], self.eps, call) if self.after else x_1
        if not layer.feed:
            return x_1, (state, None)
        h = h if len(norms) == 1 else x_1 if self.after else normalise(x_1, norms[1], self.eps, call)
        y, last = feed(h, layer, last, call)
        y = normalise(y, norms[3], self.eps, call) if len(norms) == 4 else y
        x_2 = other(add, x_1, y)
        return (normalise(x_2, norms[1], self.eps, call) if self.after else x_2), (state, last)

    def new_state(self, batch: int, past: int, room: int = 1, seed: int = 0) -> list[Any]:
        """Return what `past` tokens of each sequence leave, for `room` more.

        Keys, values and latent vectors are random, as their numbers do not change the time. What keeps a state has
        read the last 16 of them, as its size does not depend on the length.
        """
        rng, m = np.random.default_rng(seed), self.sizes
        found: list[Any] = []
        for layer in self.layers:
            x = layer.mechanism
            sizes = (m.kv, m.head_width, m.value_width)
            sizes = (1, x.kv_rank, x.rope_dim) if isinstance(x, Latent) else sizes
            if not isinstance(x, Softmax):
                found.append((None, None))
                continue
            cache = KVCache((batch,), sizes[0], past + room, sizes[1], sizes[2])
            drawn = [rng.standard_normal((batch, sizes[0], past, d), np.float32) for d in sizes[1:]]
            cache.append(*drawn)
            found.append((cache, None))
        if any(state is None for state, _ in found) and past:
            self._warm(found, batch, min(past, 16), rng)
        return found

    def _warm(self, found: list[Any], batch: int, past: int, rng: np.random.Generator) -> None:
        x = rng.standard_normal((batch, past, self.sizes.d_model), np.float32)
        now = Pass(direct, 0, Asked(1, past, 0, self.causal), {})
        for n, layer in enumerate(self.layers):
            if found[n][0] is None:
                _, found[n] = self._layer(x, layer, None, None, now)

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters."""
        held = [x for layer in self.layers for w in (layer.mixing, layer.feed) for x in w.values()]
        held += [x for layer in self.layers for norm in layer.norms for x in norm]
        return sum(x.nbytes for x in (*held, *self.outer.values(), *self.norm))


def _softmax(given: Any) -> Softmax:
    mechanism = mechanism_named(given)
    if type(mechanism) is not Softmax:
        raise ValueError(
            f"Network: mechanism is {mechanism.name}; weights of softmax attention take a mask or a window"
        )
    return mechanism


def _counted(mixer: str, config: Any) -> Mechanism:
    """Return the mechanism of a mixer's name in the sizes that `refattn.models.mixers` draws."""
    from refattn.costs.landmarks import Linformer, Nystrom
    from refattn.costs.spaces import Mamba2

    sized: dict[str, Mechanism] = {
        "mamba2": Mamba2(state=16),
        "linformer_attention": Linformer(config.context, max(1, config.context // 4)),
        "nystrom_attention": Nystrom(8),
    }
    return sized[mixer] if mixer in sized else mechanism_named(mixer)
