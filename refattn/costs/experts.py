"""A feed-forward network in parts, of which each token visits a few."""

from dataclasses import dataclass

from refattn.arrays import check_count


@dataclass(frozen=True)
class Experts:
    """A feed-forward network of which each token visits a few parts (Shazeer et al., 2017, arXiv:1701.06538).

    Examples
    --------
    >>> Experts(count=8, active=2, ffn=14336).shared
    0
    """

    count: int
    active: int
    """How many each token visits."""
    ffn: int
    """The hidden width of one."""
    shared: int = 0
    """Hidden width of what every token visits besides."""
    first: int = 0
    """The layers before this one have m's plain network."""
    every: int = 1
    """From `first` on, one in so many layers has experts."""
    shared_gate: bool = False
    """A number a token weighs the shared part."""

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("active", 1), ("ffn", 1), ("shared", 0), ("first", 0), ("every", 1)):
            check_count("Experts", name, getattr(self, name), least=least)
        if self.active > self.count:
            raise ValueError(f"Experts: active is {self.active}, of {self.count}; wanted no more than there are")
