"""What may mix the tokens of a layer, as costs see it: its matrices, the work of one call, what it keeps per sequence.

Every mechanism answers the same questions about a `Transformer` m, whose heads and widths it takes where it has none of
its own. `Softmax` is here, and what all share; `latent` has MLA, `recurrent` the linear-time family.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from refattn.arrays import check_count
from refattn.costs.pairs import causal_window, pairs
from refattn.masks import Mask, as_mask, causal, window

if TYPE_CHECKING:
    from refattn.costs.transformer import Transformer

SOFTMAX_FLOPS = 5
"""Operations of a pair in softmax: subtract the maximum, exponential, sum, divide, and the comparison before them."""


class Matrix(NamedTuple):
    """A matrix that multiplies each token."""

    name: str
    rows: int
    """How many numbers of a token go in."""
    columns: int
    """How many come out."""
    bias: bool = False

    @property
    def params(self) -> int:
        """Entries, those of the bias included."""
        return (self.rows + self.bias) * self.columns

    def flops(self, tokens: int) -> int:
        """FLOPs for so many tokens, 2 per multiply-add."""
        return 2 * tokens * self.rows * self.columns


class Work(NamedTuple):
    """FLOPs of mixing tokens, without the matrices before and after."""

    scores: int = 0
    values: int = 0
    softmax: int = 0
    scan: int = 0
    """Of what keeps a state, and of short convolutions."""
    exps: int = 0
    """Exponentials, which no matrix unit computes."""


@dataclass(frozen=True)
class Call:
    """One call of a layer: `batch` sequences, each with `new` tokens after `past` cached ones."""

    batch: int
    new: int
    past: int = 0
    causal: bool = True
    mask: Mask | None = None
    """Beside the mechanism's own."""

    @property
    def keys(self) -> int:
        """Keys of a sequence: cached and new."""
        return self.past + self.new

    @property
    def tokens(self) -> int:
        """New tokens of all sequences."""
        return self.batch * self.new


class Mechanism:
    """The questions; a mechanism answers those whose answer here is not its own."""

    name: str = ""
    softmax: bool = False
    """Whether it has a matrix of scores."""

    def matrices(self, m: "Transformer") -> list[Matrix]:
        """Return what multiplies each token before and after mixing."""
        raise NotImplementedError

    def other_params(self, m: "Transformer") -> int:
        """Return the parameters that are no such matrices: gates' biases, norms of heads, decays, convolutions."""
        return 0

    def projection_flops(self, m: "Transformer", call: Call) -> int:
        """Return the FLOPs of the matrices."""
        return sum(matrix.flops(call.tokens) for matrix in self.matrices(m))

    def work(self, m: "Transformer", call: Call) -> Work:
        """Return the FLOPs of mixing."""
        raise NotImplementedError

    def feed(self, m: "Transformer", width: int) -> list[Matrix]:
        """Return the matrices of the feed-forward network, of hidden `width`."""
        names = ("gate", "up") if m.gated else ("up",)
        hidden = [Matrix(name, m.d_model, width, m.bias) for name in names]
        return [*hidden, Matrix("down", width, m.d_model, m.bias)]

    def pairs(self, m: "Transformer", call: Call) -> int:
        """Return the visible pairs of all heads and sequences; 0 without scores."""
        return 0

    def matrix_entries(self, m: "Transformer", seq: int) -> int:
        """Return the entries of a head's matrix of scores, materialised, hidden ones included; 0 without scores."""
        return seq * seq if self.softmax else 0

    def kept(self, m: "Transformer", tokens: int) -> int:
        """Return how many numbers a sequence of so many tokens keeps for the next one."""
        raise NotImplementedError

    def stored(self, m: "Transformer") -> int:
        """Return the numbers of a token that backward needs: what the matrices made, in and out of mixing."""
        return sum(x.columns for x in self.matrices(m)[:-1]) + self.matrices(m)[-1].rows

    def check(self, m: "Transformer") -> None:
        """Raise ValueError if this mechanism cannot stand in m."""


@dataclass(frozen=True)
class Softmax(Mechanism):
    """Softmax attention: full, GQA or MQA by m's kv_heads, windowed, or under any mask.

    Examples
    --------
    >>> from refattn import masks
    >>> Softmax(window=4096), Softmax(mask=masks.prefix_lm(2))
    (Softmax(window=4096, mask=None), Softmax(window=None, mask=prefix_lm(2)))
    """

    window: int | None = None
    """A token sees itself and the window - 1 before it, and as many after it where nothing is causal."""
    mask: Mask | None = None
    """What a token may look at besides; in a causal call, of what is before it."""

    name = "softmax"
    softmax = True

    def __post_init__(self) -> None:
        if self.window is not None:
            check_count("Softmax", "window", self.window)
        object.__setattr__(self, "mask", as_mask(self.mask))

    def matrices(self, m: "Transformer") -> list[Matrix]:
        D, Dv = m.head_width, m.value_width
        sizes = (("q", m.heads * D), ("k", m.kv * D), ("v", m.kv * Dv))
        before = [Matrix(name, m.d_model, columns, m.qkv_biased) for name, columns in sizes]
        return [*before, Matrix("o", m.heads * Dv, m.d_model, m.o_biased)]

    def other_params(self, m: "Transformer") -> int:
        return 2 * m.head_width if m.qk_norm else 0

    def widths(self, m: "Transformer", call: Call) -> tuple[int, int]:
        """Return the widths of a query and of a value of a head, as the call computes them."""
        return m.head_width, m.value_width

    def keys_and_values(self, m: "Transformer", call: Call) -> int:
        """Return the numbers of all keys and values of a sequence."""
        return call.keys * m.kv * (m.head_width + m.value_width)

    def cached(self, tokens: int) -> int:
        """Return how many of the tokens are kept."""
        return tokens if self.window is None else min(tokens, self.window)

    def visible(self, call: Call) -> Mask | None:
        """Return the mask of a call."""
        parts: list[Any] = [self.mask, call.mask]
        if self.window is not None:
            parts.append(causal_window(self.window) if call.causal else window(self.window - 1, self.window - 1))
        elif call.causal:
            parts.append(causal())
        found: Mask | None = None
        for part in parts:
            found = part if found is None else found if part is None else found & part
        return found

    def pairs(self, m: "Transformer", call: Call) -> int:
        mask, all_heads = self.visible(call), call.batch * m.heads
        patterns = 1 if mask is None else math.prod(mask.lead)
        if all_heads % patterns:
            raise ValueError(f"costs: mask has {patterns} patterns; wanted a number that divides {all_heads} heads")
        return pairs(mask, call.new, call.keys) * (all_heads // patterns)

    def work(self, m: "Transformer", call: Call) -> Work:
        seen, (d, dv) = self.pairs(m, call), self.widths(m, call)
        return Work(2 * seen * d, 2 * seen * dv, SOFTMAX_FLOPS * seen, 0, seen)

    def kept(self, m: "Transformer", tokens: int) -> int:
        return self.cached(tokens) * m.kv * (m.head_width + m.value_width)


@dataclass(frozen=True)
class GatedSoftmax(Softmax):
    """Softmax attention whose output is multiplied by a gate, which a matrix makes of each token, as in Qwen3-Next."""

    name = "gated_softmax"

    def matrices(self, m: "Transformer") -> list[Matrix]:
        gate = Matrix("gate", m.d_model, m.heads * m.value_width, m.qkv_biased)
        return [*super().matrices(m)[:-1], gate, super().matrices(m)[-1]]
