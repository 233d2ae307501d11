r"""How far a result may lie from the float64 reference: rounding errors of first order, carried through each operation.

No kernel can have a score :math:`s_{ij} = \sum_d q_{id} k_{jd}` to better than about eps times

.. math::
    c_{ij} = 1 + \text{scale} \sum_d |q_{id}| |k_{jd}| + |b_{ij}|

which the exponential turns into a relative error of the weight p_ij; the sums over keys and queries then add the errors
up, in absolute values. Each function here returns those sums in units of eps of the dtype of computation. The caller
grants `SLACK` times as much, for the order of summation and the last digits of exp and tanh, and half an eps of the
result's own dtype, for the one rounding at the end.

What nothing visible contributes to has the bound zero: a blind row is exactly 0.
"""

from collections.abc import Callable
from typing import Any

from refattn.testing.bounds import delta, dense, features, gated, latent, packed, rwkv, selected, sparse, ssm
from refattn.testing.bounds.weights import SLACK, UNDERFLOW, Weights, finite

KINDS: tuple[Any, ...] = (dense, sparse, selected, packed, latent, gated, delta, features, ssm, rwkv)
BOUNDS: dict[str, Callable[..., Any]] = {
    name: bound for kind in KINDS for name, bound in getattr(kind, "BOUNDS", {}).items()
}

__all__ = ["BOUNDS", "SLACK", "UNDERFLOW", "Weights", "finite"]
