"""What a kernel claims: the meaning of its arguments, the precision of each step, the shapes it takes.

The kit holds a kernel against its own claims. Where well-known libraries disagree (how a causal mask is aligned, what a
row returns that sees nothing, the base of the log-sum-exp), a contract names the choice; the defaults are those of
`refattn.attention`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from refattn.testing.formats import STORED, UNIT

ATTENTION_OPTIONS = (
    *("causal", "q_offset", "window", "scale", "softcap", "bias", "mask", "alibi_slopes", "sinks", "seqlens_k"),
    *("dropout_mask", "dropout_p", "num_splits"),
)
"""The keywords that the kit may pass to an attention kernel."""

CHOICES: dict[str, tuple[Any, ...]] = {
    "dtype": STORED,
    "causal": ("bottom_right", "top_left"),
    "window": ("sides", "total"),
    "softcap": ("before_bias", "after_bias"),
    "default_scale": ("1/sqrt(D)", "1/D", "1"),
    "blind_rows": ("zero", "nan", "mean", "any"),
    "lse": ("natural", "base2", None),
    "lse_blind": ("-inf", "+inf", "any"),
    "layout": ("bhtd", "bthd", "packed", "paged"),
    "acc": ("float32", "float64", "tf32", "tc_trunc", "float16", "bfloat16"),
}


@dataclass(frozen=True)
class Contract:
    """The claims of one kernel.

    Examples
    --------
    >>> Contract(dtype="bfloat16").numerics["p"]
    'bfloat16'
    """

    op: str = "attention"
    """attention, attention_vjp, or an operation of the linear-time family; see `refattn.testing.kit.OPERATIONS`."""
    dtype: str = "float32"
    """Of the arrays: float32, float16, bfloat16 or float64."""

    causal: str = "bottom_right"
    """Which query sees the last key when there are more keys than queries: the last (bottom_right), or the one with
    the same index (top_left)."""
    window: str = "sides"
    """sides: (left, right) neighbours besides the key itself; total: left counts the key itself."""
    softcap: str = "before_bias"
    """Whether the cap is applied to the product alone, or to product and bias."""
    default_scale: str = "1/sqrt(D)"
    """What the product is multiplied by when no scale is given: 1/sqrt(D), 1/D or 1."""
    blind_rows: str = "zero"
    """What o is for a query that sees nothing: zero, nan, mean (of all values), any."""
    lse: str | None = "natural"
    """The base of the log-sum-exp that comes with o; None if there is none."""
    lse_sinks: bool = True
    """Whether it counts the sinks."""
    lse_blind: str = "-inf"
    """What it is for a query that sees nothing."""
    gqa: bool = True
    """Whether k and v may have fewer heads than q."""
    layout: str = "bhtd"
    """bhtd (B, H, T, D); bthd (B, T, H, D); packed (total, H, D) with cu_seqlens; paged (pages, page, H, D)."""
    options: tuple[str, ...] | None = None
    """The keywords that reach the kernel; those of its signature unless given."""
    always: Mapping[str, Any] = field(default_factory=dict)
    """Options that hold in every call, such as {"causal": True} of a kernel that is causal and has no such argument."""

    products: str | None = None
    """The format that q, k and p are rounded to as operands of matrix products: "tf32" on tensor cores."""
    s: str | None = None
    """The format that scores are rounded to before the softmax."""
    p: str | None = None
    """The format of the weights as an operand of the second product; `dtype` unless given."""
    acc: str = "float32"
    """The accumulator; "tf32" is short for products="tf32", "tc_trunc" is float32 that truncates."""
    out: str | None = None
    """The format of o before it is returned; `dtype` unless given."""
    exp_ulp: float = 2.0
    """By how many units in the last place the exponential may be off."""
    q_prescaled: bool = False
    """Whether q is multiplied by the scale, and rounded to `dtype`, before the product."""
    l_rounded: bool = False
    """Whether the normaliser is summed from the weights after their rounding to `p`."""
    truncates: bool = False
    """Whether conversions to `p` and `out` cut digits off instead of rounding to nearest."""
    tile: int = 64
    """Keys per step of the online softmax; one rescaling of the sums each."""

    head_dims: tuple[int, ...] | None = None
    """The widths D that the kernel takes; any unless given."""
    value_dims: bool = True
    """Whether the values may have another width than the keys."""
    max_keys: int | None = None
    seq_multiple: int = 1
    """Lengths must be multiples of this."""
    empty: bool = True
    """Whether it takes no keys and no queries."""
    strided: bool = True
    """Whether it takes arrays that are not contiguous."""
    nan: bool = True
    """Whether NaN in an input is handled: it reaches the rows that see it, and no others."""
    deterministic: bool = True
    """Whether the same inputs give the same bits."""
    batch_invariant: bool = True
    """Whether a sequence's bits do not depend on its batch mates."""
    uint16: bool = False
    """Whether bfloat16 arrays are uint16 arrays of the bits; always so without the package ml_dtypes."""

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"Contract: {name} is {value!r}; wanted one of {', '.join(map(repr, allowed))}")
        for name in ("products", "s", "p", "out"):
            value = getattr(self, name)
            if value is not None and value not in UNIT:
                raise ValueError(f"Contract: {name} is {value!r}; wanted None or one of {', '.join(map(repr, UNIT))}")
        if self.exp_ulp < 0 or self.tile < 1 or self.seq_multiple < 1:
            raise ValueError("Contract: exp_ulp, tile and seq_multiple must not be negative or zero")
        unknown = [name for name in (*(self.options or ()), *self.always) if not isinstance(name, str)]
        if unknown:
            raise TypeError(f"Contract: options and always name keywords; got {unknown}")

    @property
    def numerics(self) -> dict[str, Any]:
        """Return the precision of each step, the defaults filled in."""
        tf32 = self.acc == "tf32"
        products = self.products or ("tf32" if tf32 else None)
        acc = {"tf32": "float32", "tc_trunc": "float32"}.get(self.acc, self.acc)
        if self.dtype == "float64":
            acc = "float64"
        return {
            "products": products,
            "s": self.s,
            "p": self.p or products or self.dtype,
            "acc": acc,
            "out": self.out or self.dtype,
            "exp_ulp": self.exp_ulp,
            "q_prescaled": self.q_prescaled,
            "l_rounded": self.l_rounded,
            "truncates": self.truncates,
            "acc_truncates": self.acc == "tc_trunc",
            "tile": self.tile,
        }

    def with_options_of(self, kernel: Callable[..., Any], known: tuple[str, ...] = ATTENTION_OPTIONS) -> "Contract":
        """Return this contract, its options those that the kernel's signature names, unless they are given."""
        if self.options is not None:
            return self
        try:
            parameters = inspect.signature(kernel).parameters.values()
        except (TypeError, ValueError):  # some builtins have no signature
            return replace(self, options=())
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        names = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
        return replace(self, options=tuple(name for name in known if takes_all or name in names))

    def described(self) -> dict[str, Any]:
        """Return what differs from the defaults, ready for JSON."""
        default = Contract()
        changed = {
            f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != getattr(default, f.name)
        }
        return {"op": self.op, "dtype": self.dtype} | {name: _plain(value) for name, value in changed.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(x) for name, x in value.items()}
    return [_plain(x) for x in value] if isinstance(value, tuple | list) else value
