"""A model as costs see it: its sizes, what mixes tokens in each layer, and how many parameters that makes.

What it costs is asked here and counted in `flops`, `memory` and `traffic`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refattn.arrays import check_count
from refattn.costs import flops, memory, traffic
from refattn.costs.experts import Experts
from refattn.costs.mechanisms import Call, Matrix, Mechanism
from refattn.costs.names import mechanism_named
from refattn.masks import as_mask


@dataclass(frozen=True)
class Transformer:
    """A stack of layers, each with a mechanism and a feed-forward network, between an embedding and a head.

    Raises
    ------
    TypeError, ValueError
        For sizes that are none or do not fit each other.

    Examples
    --------
    >>> m = Transformer(layers=12, d_model=768, heads=12)
    >>> m.attention_matrix_bytes(batch=1, seq=1000)
    48000000
    >>> m.crossover_length(causal=False)  # scores and values as much as the rest of the block: 6 d_model
    4608
    """

    layers: int
    d_model: int
    heads: int
    kv_heads: int | None = None
    """`heads` unless given; fewer are shared by groups of query heads (GQA; 1 is MQA)."""
    head_dim: int | None = None
    """d_model / heads unless given."""
    v_head_dim: int | None = None
    """head_dim unless given."""
    ffn: int | None = None
    """The hidden width; 4 d_model unless given, 0 for none."""
    gated: bool = False
    """Three matrices (SwiGLU, GeGLU) in place of two."""
    vocab: int = 0
    """0: neither embedding nor head."""
    tied: bool = True
    """The head is the embedding's matrix."""
    logits: bool = True
    """There is a head; False for encoders, which stop at the last layer."""
    positions: int = 0
    """Learned positions; 0 where they are rotated, added as distances, or none."""
    bias: bool = False
    """Of all matrices and norms."""
    mechanism: Any = None
    """A `Mechanism`, a name, a mask, or one of these per layer; None is full softmax attention."""
    qkv_bias: bool | None = None
    """`bias` unless given."""
    o_bias: bool | None = None
    """`bias` unless given: of the matrix after attention."""
    norm_bias: bool | None = None
    """`bias` unless given."""
    qk_norm: bool = False
    """Queries and keys are normalised, with a gain per channel."""
    norms: int = 2
    """Norms of a layer."""
    more_norms: int = 1
    """Norms beside the layers': the last one, or the embedding's."""
    types: int = 0
    """Rows of a table of segments."""
    pooler: bool = False
    """One more biased matrix after the last layer, as in BERT."""
    experts: Experts | None = None
    name: str = ""

    def __post_init__(self) -> None:
        for name in ("layers", "d_model", "heads"):
            check_count("Transformer", name, getattr(self, name))
        for name in ("kv_heads", "head_dim", "v_head_dim"):
            if getattr(self, name) is not None:
                check_count("Transformer", name, getattr(self, name))
        for name in ("vocab", "positions", "types", "norms", "more_norms"):
            check_count("Transformer", name, getattr(self, name), least=0)
        if self.ffn is not None:
            check_count("Transformer", "ffn", self.ffn, least=0)
        if self.heads % self.kv:
            raise ValueError(
                f"Transformer: heads is {self.heads} and kv_heads {self.kv}; wanted kv_heads that divide the heads"
            )
        if self.head_dim is None and self.d_model % self.heads:
            raise ValueError(
                f"Transformer: d_model {self.d_model} is not a multiple of heads {self.heads}; give head_dim"
            )
        if self.experts is not None and not isinstance(self.experts, Experts):
            raise TypeError(f"Transformer: experts must be Experts, got {type(self.experts).__name__}")
        object.__setattr__(self, "mechanism", self._each(self.mechanism))
        for mechanism in set(self.mechanism):
            mechanism.check(self)

    def _each(self, given: Any) -> tuple[Mechanism, ...]:
        if isinstance(given, Sequence) and not isinstance(given, str):
            if len(given) != self.layers:
                raise ValueError(
                    f"Transformer: mechanism has {len(given)} entries; wanted one for each of {self.layers} layers"
                )
            return tuple(mechanism_named(one) for one in given)
        return (mechanism_named(given),) * self.layers

    @classmethod
    def from_config(cls, source: "str | Path | dict[str, Any]") -> "Transformer":
        """Read a Hugging Face config.json: see `refattn.costs.config.from_config`."""
        from refattn.costs.config import from_config  # which needs this class

        return from_config(source)

    @property
    def kv(self) -> int:
        """Key and value heads."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head_width(self) -> int:
        """The width of a head's queries and keys."""
        return self.d_model // self.heads if self.head_dim is None else self.head_dim

    @property
    def value_width(self) -> int:
        """The width of a head's values."""
        return self.head_width if self.v_head_dim is None else self.v_head_dim

    @property
    def ffn_width(self) -> int:
        """The hidden width of a plain feed-forward network."""
        return 4 * self.d_model if self.ffn is None else self.ffn

    @property
    def qkv_biased(self) -> bool:
        """Whether the matrices of queries, keys and values have a bias."""
        return self.bias if self.qkv_bias is None else self.qkv_bias

    @property
    def o_biased(self) -> bool:
        """Whether the matrix after attention has a bias."""
        return self.bias if self.o_bias is None else self.o_bias

    def has_experts(self, layer: int) -> bool:
        """Say whether a layer's feed-forward network is `experts`."""
        e = self.experts
        return e is not None and layer >= e.first and (layer - e.first) % e.every == 0

    def feed(self, layer: int) -> list[Matrix]:
        """Return the matrices of a layer's feed-forward network that each token visits."""
        mechanism, e = self.mechanism[layer], self.experts
        if e is None or not self.has_experts(layer):
            return mechanism.feed(self, self.ffn_width) if self.ffn_width else []
        found = [Matrix("router", self.d_model, e.count)]
        found += mechanism.feed(self, e.ffn) * e.active
        found += mechanism.feed(self, e.shared) if e.shared else []
        return [*found, Matrix("shared_gate", self.d_model, 1)] if e.shared_gate else found

    def params(self) -> int:
        """Return how many parameters there are, of all experts too, those of norms and tables included.

        Examples
        --------
        >>> Transformer(layers=96, d_model=12288, heads=96, vocab=50257, positions=2048, bias=True).params()
        174604259328
        """
        norm = self.d_model * (2 if (self.bias if self.norm_bias is None else self.norm_bias) else 1)
        total = self.more_norms * norm + self.d_model * (self.positions + self.types)
        total += self.vocab * self.d_model * (2 if self.logits and not self.tied else 1)
        total += self.d_model * (self.d_model + 1) if self.pooler else 0
        for layer, mechanism in enumerate(self.mechanism):
            total += sum(x.params for x in mechanism.matrices(self)) + mechanism.other_params(self)
            total += (self.norms if self.ffn_width or self.experts else min(self.norms, 1)) * norm
            total += sum(x.params for x in self.feed(layer))
        return total + self._idle_experts()

    def active_params(self) -> int:
        """Return the parameters that one token's pass reads: `params` without the experts it does not visit."""
        return self.params() - self._idle_experts()

    def _idle_experts(self) -> int:
        e = self.experts
        return 0 if e is None else (e.count - e.active) * self.expert_params()

    def expert_params(self) -> int:
        """Return the parameters of one expert of each layer that has them; 0 without."""
        e = self.experts
        if e is None:
            return 0
        having = [mechanism for layer, mechanism in enumerate(self.mechanism) if self.has_experts(layer)]
        return sum(x.params for mechanism in having for x in mechanism.feed(self, e.ffn))

    def call(self, batch: int, seq: int, past: int = 0, causal: bool = True, mask: Any = None) -> Call:
        """Return a checked `Call`."""
        check_count("costs", "batch", batch)
        check_count("costs", "seq", seq)
        check_count("costs", "past", past, least=0)
        return Call(batch, seq, past, causal, as_mask(mask))

    def forward_flops(
        self, batch: int = 1, seq: int = 1, past: int = 0, causal: bool = True, mask: Any = None
    ) -> dict[str, int]:
        """Return the FLOPs of one pass by part, exactly; see `refattn.costs.flops.forward_flops`."""
        return flops.forward_flops(self, batch, seq, past, causal, mask)

    def train_flops(self, batch: int = 1, seq: int = 1, causal: bool = True, recompute: str = "none") -> dict[str, int]:
        """Return the FLOPs of one step, forward and backward; see `refattn.costs.flops.train_flops`."""
        return flops.train_flops(self, batch, seq, causal, recompute)

    def crossover_length(self, causal: bool = True) -> int | None:
        """Return from which length scores and values cost as much as the rest; see `refattn.costs.flops`."""
        return flops.crossover_length(self, causal)

    def attention_matrix_bytes(self, batch: int = 1, seq: int = 1, dtype: str = "float32") -> int:
        """Return the bytes of one layer's matrix of scores, all heads: the largest of the layers'."""
        return memory.attention_matrix_bytes(self, batch, seq, dtype)

    def peak_attention_bytes(
        self, batch: int = 1, seq: int = 1, dtype: str = "float32", backend: str = "numpy", causal: bool = True
    ) -> int:
        """Return the most that one call of this project's attention allocates; see `refattn.costs.memory`."""
        return memory.peak_attention_bytes(self, batch, seq, dtype, backend, causal)

    def kv_cache_bytes(self, batch: int = 1, seq: int = 1, dtype: str = "bfloat16") -> int:
        """Return the bytes of what all layers keep after `seq` tokens: keys and values, latent vectors, or states."""
        return memory.kv_cache_bytes(self, batch, seq, dtype)

    def activation_bytes(
        self,
        batch: int = 1,
        seq: int = 1,
        recompute: str = "none",
        tensor_parallel: int = 1,
        sequence_parallel: bool = False,
    ) -> int:
        """Return the bytes that a device keeps of the layers from forward to backward; see `refattn.costs.memory`."""
        return memory.activation_bytes(self, batch, seq, recompute, tensor_parallel, sequence_parallel)

    def training_state_bytes(self, optimizer: str = "adam-mixed") -> int:
        """Return the bytes of weights, gradients and the optimizer's moments; see `refattn.costs.memory`."""
        return memory.training_state_bytes(self, optimizer)

    def bytes_moved(
        self,
        batch: int = 1,
        seq: int = 1,
        phase: str = "prefill",
        algorithm: str = "flash",
        dtype: str = "bfloat16",
        causal: bool = True,
    ) -> dict[str, int]:
        """Return the bytes that one pass moves between memory and processor; see `refattn.costs.traffic`."""
        return traffic.bytes_moved(self, batch, seq, phase, algorithm, dtype, causal)

    def __str__(self) -> str:
        kinds = ", ".join(dict.fromkeys(x.name for x in self.mechanism))
        sizes = f"{self.layers} layers of width {self.d_model}, {self.params():,} parameters"
        return f"{self.name or 'model'}: {sizes}, {kinds}"
