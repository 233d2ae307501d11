"""Attention with linear biases: a penalty that grows with the distance, instead of position embeddings.

Press, Smith and Lewis, 2021, arXiv:2108.12409, section 3.
"""

import numpy as np

from refattn.arrays import Array, check_count, check_floats, check_shape


def alibi_slopes(heads: int) -> Array:
    """Return the paper's slope for each head, float64 (H,).

    For a power of two they are the geometric series 2^(-8/H), 2^(-16/H) ...; otherwise those of the power of two
    below, and then every second one of the power of two above, as in the paper's own code.

    Parameters
    ----------
    heads : int
        H.

    Returns
    -------
    array, (H,)
        Positive slopes.

    Raises
    ------
    TypeError, ValueError
        If `heads` is not a positive integer.

    Examples
    --------
    >>> alibi_slopes(4)
    array([0.25      , 0.0625    , 0.015625  , 0.00390625])
    """
    check_count("alibi_slopes", "heads", heads)
    heads = int(heads)
    below = 1 << (heads.bit_length() - 1)
    slopes = 2.0 ** (-8 / below * np.arange(1, below + 1))
    between = 2.0 ** (-4 / below * np.arange(1, 2 * below + 1, 2))
    return np.concatenate([slopes, between])[:heads]


def alibi_bias(slopes: Array, Tq: int, Tk: int) -> Array:
    """Return the bias -slope · |i + Tk - Tq - j|, (H, Tq, Tk), for the ``bias=`` of `attention`.

    Parameters
    ----------
    slopes : array, (H,)
        From `alibi_slopes`.
    Tq, Tk : int
        Queries and keys; the last query stands where the last key stands.

    Returns
    -------
    array, (H, Tq, Tk)
        In the dtype of `slopes`.

    Raises
    ------
    TypeError, ValueError
        If `slopes` is not a float array of one axis.

    Examples
    --------
    >>> alibi_bias(np.array([0.5]), 2, 2)
    array([[[-0. , -0.5],
            [-0.5, -0. ]]])
    """
    check_floats("alibi_bias", slopes=slopes)
    check_shape("alibi_bias", "slopes", slopes, (slopes.size,), "(H,)")
    for name, count in (("Tq", Tq), ("Tk", Tk)):
        check_count("alibi_bias", name, count, least=0)
    distance = np.abs(np.arange(Tq)[:, None] + (Tk - Tq) - np.arange(Tk)).astype(slopes.dtype)
    return -slopes[:, None, None] * distance
