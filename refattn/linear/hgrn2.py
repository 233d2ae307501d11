r"""HGRN2: gated linear attention whose keys are what its gates let go, k = 1 - e^g.

Qin et al., 2024, "HGRN2: Gated Linear RNNs with State Expansion", arXiv:2404.07904, section 3: the recurrence of HGRN
with its state made a matrix by an outer product; what a row of the state forgets, the same share of the value fills.

| here | paper |
|---|---|
| S (D, Dv) | h_t |
| e^{log_decay} | f_t (or g_t), the forget gate, after its lower bound |
| 1 - e^{log_decay} | 1 - f_t, the input gate, used as the key |
| q, v | o_t, the output gate, used as the query; i_t, the input |
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from refattn.arrays import Array, check_floats, check_number, compute_dtype
from refattn.dispatch import dispatched
from refattn.linear.common import check_of, decayed
from refattn.linear.gated_linear_attention import (
    gated_linear_attention,
    gated_linear_attention_chunked,
    gated_linear_attention_recurrent,
    gated_linear_attention_vjp,
)
from refattn.results import Hgrn2Gradients, Recurrent


def check_gates_as_keys(operation: str) -> Callable[..., None]:
    """Return the check of an operation on q, log_decay and v: that of GLA, with keys that fit whatever v is."""
    check_gla = check_of(operation, log_decay="HTD")
    names = ["do"] * operation.endswith("_vjp") + ["q", "log_decay", "v"]

    def check(*arrays: Any, **given: Any) -> None:
        found = dict(zip(names, arrays, strict=False)) | given
        if len(arrays) > len(names) or not found.keys() >= set(names):
            raise TypeError(f"{operation}: wanted {', '.join(names)}")
        q, v = found["q"], found["v"]
        check_floats(operation, 2, q=q, v=v)
        check_number(operation, "scale", found.get("scale", 1.0))
        check_gla(**found, k=np.broadcast_to(np.zeros((), q.dtype), (*v.shape[:-1], q.shape[-1])))

    return check


def keys_of(log_decay: Array, dtype: Any) -> tuple[Array, Array]:
    """Return the gates and the keys 1 - e^g in the dtype of computation; near g = 0 the difference loses nothing."""
    g = log_decay.astype(dtype)
    return g, -np.expm1(g)


@dispatched(check_gates_as_keys("hgrn2"))
def hgrn2(
    q: Array,
    log_decay: Array,
    v: Array,
    *,
    scale: float = 1.0,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    backend: str = "numpy",
) -> Recurrent:
    r"""Read a state whose rows are running means of the values, each with a gate of its own; all pairs at once.

    .. math::
        o_i = \text{scale} \sum_{j \le i} \Big( \sum_d q_{id}\, (1 - e^{g_{jd}})\, e^{G_{ijd}} \Big) v_j, \qquad
        G_{ijd} = \sum_{j < s \le i} g_{sd}

    Parameters
    ----------
    q : array, (..., H, T, D)
        Queries, the paper's output gates; a matrix is one head.
    log_decay : array, (..., Hv, T, D)
        Natural logs g <= 0 of the forget gates, in the dtype of q or that of computation; -inf puts the value in place
        of all that this row of the state held.
    v : array, (..., Hv, T, Dv)
        Values; one of H and Hv is a multiple of the other.
    scale : float
        1 as in the paper.
    initial_state : array, (..., Hv, D, Dv), optional
        The state before the first token, zeros unless given; (N, Hv, D, Dv) for packed sequences.
    cu_seqlens : array of int, (N + 1,), optional
        Borders of sequences packed along T, from 0 to T; then there are no batch axes.
    backend : str
        Who computes.

    Returns
    -------
    Recurrent
        o (..., Ho, T, Dv), Ho the larger of H and Hv, in the dtype of q; and the state after the last token, shaped as
        `initial_state`, in the dtype of computation.

    Raises
    ------
    TypeError, ValueError
        If shapes, dtypes or values do not fit; the message names the argument.

    Examples
    --------
    Half of the state goes, half of the value comes:

    >>> v = np.array([[4.0], [4.0], [0.0]])
    >>> hgrn2(np.ones((3, 1)), np.full((3, 1), np.log(0.5)), v).o[:, 0]
    array([2. , 3. , 1.5])
    """
    dtype = compute_dtype(q.dtype)
    g, k = keys_of(log_decay, dtype)
    options: dict[str, Any] = {"scale": scale, "initial_state": initial_state, "cu_seqlens": cu_seqlens}
    o, state = gated_linear_attention(q.astype(dtype), k, v.astype(dtype), g, **options)
    return Recurrent(o.astype(q.dtype), state)


@dispatched(check_gates_as_keys("hgrn2_recurrent"))
def hgrn2_recurrent(
    q: Array,
    log_decay: Array,
    v: Array,
    *,
    scale: float = 1.0,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    backend: str = "numpy",
) -> Recurrent:
    r"""`hgrn2` a token at a time.

    .. math::
        S_t = \operatorname{diag}(e^{g_t})\, S_{t-1} + (1 - e^{g_t})\, v_t^T, \qquad o_t = \text{scale} \cdot S_t^T q_t

    Parameters
    ----------
    q, log_decay, v, scale, initial_state, cu_seqlens, backend
        As in `hgrn2`; a call with T = 1 and the last state is a step of decoding.

    Returns
    -------
    Recurrent
        As of `hgrn2`.

    Raises
    ------
    TypeError, ValueError
        As `hgrn2`.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> hgrn2_recurrent(one, np.log(one / 4), 8 * one, initial_state=4 * one).o
    array([[7.]])
    """
    dtype = compute_dtype(q.dtype)
    g, k = keys_of(log_decay, dtype)
    options: dict[str, Any] = {"scale": scale, "initial_state": initial_state, "cu_seqlens": cu_seqlens}
    o, state = gated_linear_attention_recurrent(q.astype(dtype), k, v.astype(dtype), g, **options)
    return Recurrent(o.astype(q.dtype), state)


@dispatched(check_gates_as_keys("hgrn2_chunked"))
def hgrn2_chunked(
    q: Array,
    log_decay: Array,
    v: Array,
    *,
    scale: float = 1.0,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    chunk: int = 64,
    backend: str = "numpy",
) -> Recurrent:
    r"""`hgrn2` in chunks: all pairs at once within a chunk, the state from one chunk to the next.

    Parameters
    ----------
    q, log_decay, v, scale, initial_state, cu_seqlens, backend
        As in `hgrn2`.
    chunk : int
        Tokens of a chunk; the last may have fewer. Changes rounding, time and memory only.

    Returns
    -------
    Recurrent
        As of `hgrn2`.

    Raises
    ------
    TypeError, ValueError
        As `hgrn2`, and for a chunk below 1.

    Examples
    --------
    >>> v = np.array([[4.0], [4.0], [0.0]])
    >>> hgrn2_chunked(np.ones((3, 1)), np.full((3, 1), np.log(0.5)), v, chunk=2).o[:, 0]
    array([2. , 3. , 1.5])
    """
    dtype = compute_dtype(q.dtype)
    g, k = keys_of(log_decay, dtype)
    options: dict[str, Any] = {"scale": scale, "initial_state": initial_state, "cu_seqlens": cu_seqlens}
    o, state = gated_linear_attention_chunked(q.astype(dtype), k, v.astype(dtype), g, **options, chunk=chunk)
    return Recurrent(o.astype(q.dtype), state)


@dispatched(check_gates_as_keys("hgrn2_vjp"))
def hgrn2_vjp(
    do: Array,
    q: Array,
    log_decay: Array,
    v: Array,
    *,
    scale: float = 1.0,
    initial_state: Array | None = None,
    cu_seqlens: Any = None,
    dstate: Array | None = None,
    backend: str = "numpy",
) -> Hgrn2Gradients:
    r"""Return the gradients of `hgrn2`: those of GLA, and the gates have theirs as decays and as keys.

    .. math:: dg = dg_\text{decay} - e^g \odot dk

    Parameters
    ----------
    do : array, (..., Ho, T, Dv)
        Gradient of o.
    q, log_decay, v, scale, initial_state, cu_seqlens, backend
        As in `hgrn2`.
    dstate : array, (..., Hv, D, Dv), optional
        Gradient of the last state, zeros unless given.

    Returns
    -------
    Hgrn2Gradients
        dq, dlog_decay, dv, and dinitial_state if that was given. A gate of -inf has the gradient 0.

    Raises
    ------
    TypeError, ValueError
        As `hgrn2`, and for `do` or `dstate` of another shape.

    Examples
    --------
    More of a state of 4 and less of a value of 8, half of each:

    >>> one = np.ones((1, 1))
    >>> hgrn2_vjp(one, one, np.log(one / 2), 8 * one, initial_state=4 * one).dlog_decay
    array([[-2.]])
    """
    dtype = compute_dtype(q.dtype)
    g, k = keys_of(log_decay, dtype)
    options: dict[str, Any] = {"scale": scale, "initial_state": initial_state, "cu_seqlens": cu_seqlens}
    wide = do.astype(dtype), q.astype(dtype), k, v.astype(dtype), g
    of_gla = gated_linear_attention_vjp(*wide, **options, dstate=dstate)
    dlog_decay = np.asarray(of_gla.dlog_decay) - decayed(g, of_gla.dk)  # was: k = 1 - e^g
    narrow = of_gla.dq.astype(q.dtype), dlog_decay.astype(log_decay.dtype), of_gla.dv.astype(v.dtype)
    return Hgrn2Gradients(*narrow, of_gla.dinitial_state)
