"""What the operations of the linear-time family take and return, by name and axes.

Axes are letters: B sequences, T tokens, H heads of q, G heads of k (or groups of B and C), V heads of v and of the
state, O heads of o (the larger of H and V), D and W widths of keys and values, E channels, N states, P channels of a
head, K taps of a filter, J taps less one. A star marks what is float32 (float64 for float64) whatever the dtype: gates
and parameters.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """One array."""

    name: str
    axes: str
    """A letter for each."""
    wide: bool
    """Whether it is float32 (float64 for float64) whatever the dtype."""


def fields(text: str) -> tuple[Field, ...]:
    """Read fields as they are written below.

    Examples
    --------
    >>> fields("v:BVTW beta*:BVT")[1]
    Field(name='beta', axes='BVT', wide=True)
    """
    parts = [word.split(":") for word in text.split()]
    return tuple(Field(name.rstrip("*"), axes, name.endswith("*")) for name, axes in parts)


@dataclass(frozen=True)
class Family:
    """One operation."""

    name: str
    arrays: tuple[Field, ...]
    """The positional arguments."""
    states: tuple[Field, ...]
    """One array, or several, which are a tuple then; `initial_state` is the same."""
    o: str
    options: tuple[Field, ...] = ()
    """Arrays that are keywords."""
    plain: tuple[str, ...] = ()
    """Other keywords."""
    linear: tuple[str, ...] = ()
    """What o and the states scale with, all together."""
    scale: bool = False
    """Whether `scale` is a keyword."""
    packed: bool = False
    """Whether `cu_seqlens` is one: sequences one after the other along T, B = 1, a state for each."""

    @property
    def keywords(self) -> tuple[str, ...]:
        """Return every keyword that a kernel may take."""
        names = ["initial_state", *(["scale"] if self.scale else []), *(["cu_seqlens"] if self.packed else [])]
        return (*names, *(field.name for field in self.options), *self.plain)

    def takes(self, name: str) -> bool:
        """Say whether an array or a keyword has that name."""
        return name in self.keywords or any(field.name == name for field in self.arrays)

    @property
    def all_fields(self) -> tuple[Field, ...]:
        """Return the fields of arrays and of keywords."""
        return (*self.arrays, *self.options)

    @property
    def tokens(self) -> tuple[str, ...]:
        """Return the names of the arrays that have a row for each token, gates not included."""
        return tuple(field.name for field in self.arrays if "T" in field.axes and not field.wide)


QKV = "q:BHTD k:BGTD v:BVTW"


def _of_values(name: str, gates: str = "", packed: bool = True) -> Family:
    return Family(name, fields(f"{QKV} {gates}"), fields("state*:BVDW"), "BOTW", (), (), ("v",), True, packed)


_FAMILIES = (
    Family(
        "linear_attention",
        fields(QKV),
        fields("state*:BVDW normaliser*:BVD"),
        "BOTW",
        plain=("normalize",),
        linear=("v",),
    ),
    _of_values("retention", "log_decay*:V", packed=False),
    _of_values("simple_gla", "log_decay*:BVT"),
    _of_values("gated_linear_attention", "log_decay*:BVTD"),
    _of_values("delta_rule", "beta*:BVT"),
    _of_values("gated_delta_rule", "log_decay*:BVT beta*:BVT"),
    _of_values("kda", "log_decay*:BVTD beta*:BVT"),
    Family(
        "ssd",
        fields("x:BHTP dt*:BHT A*:H B:BGTN C:BGTN"),
        fields("state*:BHNP"),
        "BHTP",
        fields("D*:H z:BHTP dt_bias*:H"),
        ("dt_softplus", "dt_limit"),
        ("x",),
        packed=True,
    ),
    Family(
        "selective_scan",
        fields("u:BTE delta*:BTE A*:EN B:BTN C:BTN"),
        fields("state*:BEN"),
        "BTE",
        fields("D*:E z:BTE delta_bias*:E"),
        ("delta_softplus",),
        ("u",),
    ),
    Family(
        "causal_conv1d",
        fields("x:BTE weight:EK"),
        fields("state:BJE"),
        "BTE",
        fields("bias:E"),
        ("activation",),
        ("x",),
    ),
    Family("rwkv4", fields("w*:E u*:E k:BTE v:BTE"), fields("num*:BE den*:BE max*:BE"), "BTE", linear=("v",)),
    Family(
        "rwkv6",
        fields("r:BHTD k:BHTD v:BHTW log_decay*:BHTD u*:HD"),
        fields("state*:BHDW"),
        "BHTW",
        linear=("v",),
        scale=True,
    ),
    Family(
        "rwkv7",
        fields("r:BHTD k:BHTD v:BHTW log_decay*:BHTD kappa_hat:BHTD a*:BHTD"),
        fields("state*:BHDW"),
        "BHTW",
        linear=("v",),
        scale=True,
    ),
)
FAMILIES: dict[str, Family] = {family.name: family for family in _FAMILIES}
"""By the operation's name."""
