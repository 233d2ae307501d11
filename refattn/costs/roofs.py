"""What bounds a piece of work: three roofs, not two, and the calls themselves.

Williams et al., 2009, "Roofline", have products and bandwidth. Exponentials are a roof of their own: on an H100 at a
width of 128 those of attention take half as long as its products (Shah et al., 2024, arXiv:2407.08608, section 3.1).
"""

from typing import Protocol

PRODUCTS, EXPONENTIALS, BANDWIDTH, CALLS = "matrix products", "exponentials", "bandwidth", "calls"


class Machine(Protocol):
    """What `roofs` asks of a `Hardware` or a `Calibration`."""

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""

    @property
    def exp_rate(self) -> float:
        """Exponentials a second."""

    def rate(self, dtype: str) -> float:
        """Return FLOP/s."""


def roofs(on: Machine, dtype: str, flops: float, exps: float, moved: float, overhead: float = 0.0) -> dict[str, float]:
    """Return the seconds that each roof would take alone: the largest is a lower bound of the time.

    Parameters
    ----------
    on : Hardware or Calibration
    dtype : str
        Of the products.
    flops, exps : float
        Of the work.
    moved : float
        Bytes.
    overhead : float
        Seconds of the calls.

    Returns
    -------
    dict of float

    Raises
    ------
    LookupError
        For a dtype that the machine has no rate of.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> machine = SimpleNamespace(bandwidth=1e9, exp_rate=1e8, rate=lambda dtype: 1e10)
    >>> found = roofs(machine, "float32", flops=1e9, exps=1e6, moved=1e7)
    >>> max(found, key=found.get), found["bandwidth"]
    ('matrix products', 0.01)
    """
    return {
        PRODUCTS: flops / on.rate(dtype),
        EXPONENTIALS: exps / on.exp_rate,
        BANDWIDTH: moved / on.bandwidth,
        CALLS: overhead,
    }
