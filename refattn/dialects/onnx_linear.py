"""ONNX's operators with a state, `LinearAttention` and `CausalConvWithState`, as released with onnx 1.23 (opset 27).

https://onnx.ai/onnx/operators/onnx__LinearAttention.html and onnx__CausalConvWithState.html.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from refattn.arrays import Array, check_count, check_floats, check_number, check_shape, compute_dtype
from refattn.linear.delta_rule import delta_rule_chunked
from refattn.linear.gated_delta_rule import gated_delta_rule_chunked
from refattn.linear.gated_linear_attention import gated_linear_attention_chunked
from refattn.linear.kda import kda_chunked
from refattn.linear.simple_gla import simple_gla_chunked
from refattn.ssm.causal_conv1d import causal_conv1d

RULES = {"linear": (False, False), "gated": (True, False), "delta": (False, True), "gated_delta": (True, True)}
"""Of each update rule, whether it wants the input decay, and the input beta."""
ACTIVATIONS = {"none": None, "silu": "silu", "swish": "silu"}


def LinearAttention(
    query: Array,
    key: Array,
    value: Array,
    past_state: Array | None = None,
    decay: Array | None = None,
    beta: Array | None = None,
    *,
    chunk_size: int = 64,
    kv_num_heads: int,
    q_num_heads: int,
    scale: float = 0.0,
    update_rule: str | bytes = "gated_delta",
    backend: str = "numpy",
) -> tuple[Array, Array]:
    r"""Compute the operator LinearAttention: linear attention, gated or by a delta rule, as `update_rule` says.

    .. math::
        S_t = e^{g_t} S_{t-1} + k_t \left(\beta_t (v_t - (e^{g_t} S_{t-1})^T k_t)\right)^T, \qquad
        o_t = \text{scale} \cdot S_t^T q_t

    Without decay (`linear`, `delta`) g is 0; without beta (`linear`, `gated`) the bracket is v.

    Parameters
    ----------
    query : array, (B, T, H·D)
        Queries, the heads side by side.
    key, value : array, (B, T, Hk·D), (B, T, Hk·Dv)
        Keys and values.
    past_state : array, (B, Hk, D, Dv), optional
        The state from before; zeros unless given.
    decay : array, (B, T, Hk) or (B, T, Hk·D), optional
        Natural logs of the decays, per head or per key. With D = 1 both are the same. Of the rules `gated` and
        `gated_delta`, and of no other.
    beta : array, (B, T, Hk) or (B, T, 1), optional
        How much of the new value is written. Of the rules `delta` and `gated_delta`, and of no other.
    chunk_size : int
        Tokens that are computed at once; changes rounding only.
    kv_num_heads, q_num_heads : int
        Hk and H, a multiple of Hk.
    scale : float
        0 for 1 / sqrt(D).
    update_rule : str
        "linear", "gated", "delta" or "gated_delta".
    backend : str
        Who computes; see `refattn.backends`.

    Returns
    -------
    output : array, (B, T, H·Dv)
        In the dtype of query.
    present_state : array, (B, Hk, D, Dv)
        In the dtype of past_state, or of query where that is not given.

    Raises
    ------
    TypeError, ValueError
        For what onnx's evaluator refuses, with its reason; and for decays above 0, which `refattn` refuses.
    Unsupported
        If the backend does not cover the call.

    Notes
    -----
    Different from `refattn.gated_delta_rule` and its kin: heads lie side by side in the last axis; one operator for all
    rules; scale=0 means the default; there are no packed sequences; float64 is computed in float64 (the evaluator
    computes everything in float32); a decay of -inf forgets NaN and infinities, too.

    Examples
    --------
    >>> one = np.ones((1, 3, 1))
    >>> output, state = LinearAttention(one, one, one, q_num_heads=1, kv_num_heads=1, update_rule="linear")
    >>> output.ravel(), state.ravel()
    (array([1., 2., 3.]), array([3.]))
    """
    rule = update_rule.decode() if isinstance(update_rule, bytes) else update_rule
    _check_linear(query, key, value, past_state, decay, beta, kv_num_heads, q_num_heads, scale, rule)
    compute = compute_dtype(query.dtype)
    q, k, v = _heads(query, q_num_heads), _heads(key, kv_num_heads), _heads(value, kv_num_heads)
    given: dict[str, Any] = {"scale": scale if scale != 0 else None, "chunk": chunk_size, "backend": backend}
    if past_state is not None:
        given["initial_state"] = past_state.astype(compute)
    gates = []
    per_key = decay is not None and decay.shape[-1] != kv_num_heads
    if decay is not None:
        g = decay.astype(compute)
        gates.append(_heads(g, kv_num_heads) if per_key else g.swapaxes(1, 2))
    if beta is not None:
        gates.append(np.broadcast_to(beta.astype(compute), (*beta.shape[:2], kv_num_heads)).swapaxes(1, 2))
    if rule == "linear":
        gates.append(np.zeros(v.shape[:-1], compute))
    operations: dict[str, Callable[..., Any]] = {
        "linear": simple_gla_chunked,
        "gated": gated_linear_attention_chunked if per_key else simple_gla_chunked,
        "delta": delta_rule_chunked,
        "gated_delta": kda_chunked if per_key else gated_delta_rule_chunked,
    }
    o, state = operations[rule](q, k, v, *gates, **given)
    output = o.swapaxes(1, 2).reshape(*query.shape[:2], -1)
    return output, state.astype(query.dtype if past_state is None else past_state.dtype)


def _heads(x: Array, n: int) -> Array:
    """Return (B, n, T, D) of (B, T, n·D)."""
    return x.reshape(*x.shape[:2], n, x.shape[2] // n).swapaxes(1, 2)


def _check_linear(
    query: Any, key: Any, value: Any, past_state: Any, decay: Any, beta: Any, Hk: Any, H: Any, scale: Any, rule: Any
) -> None:
    name = "LinearAttention"
    if rule not in RULES:
        raise ValueError(f"{name}: update_rule is {rule!r}; wanted one of {', '.join(RULES)}")
    check_number(name, "scale", scale)
    check_count(name, "q_num_heads", H)
    check_count(name, "kv_num_heads", Hk)
    if H % Hk:
        raise ValueError(f"{name}: q_num_heads is {H}; wanted a multiple of kv_num_heads, {Hk}")
    for what, x, wanted in (("decay", decay, RULES[rule][0]), ("beta", beta, RULES[rule][1])):
        if (x is not None) != wanted:
            raise ValueError(f"{name}: update_rule {rule!r} {'requires' if wanted else 'forbids'} the input {what}")
    check_floats(name, 0, query=query, key=key, value=value)
    for what, x, n in (("query", query, H), ("key", key, Hk), ("value", value, Hk)):
        if x.ndim != 3 or x.shape[2] == 0 or x.shape[2] % n:
            raise ValueError(f"{name}: {what} has shape {x.shape}; wanted (B, T, a multiple of {n} heads)")
    B, T = query.shape[:2]
    D, Dv = query.shape[2] // H, value.shape[2] // Hk
    check_shape(name, "key", key, (B, T, Hk * D), "(B, T, Hk·D)")
    check_shape(name, "value", value, (B, T, Hk * Dv), "(B, T, Hk·Dv)")
    for what, x, widths in (("decay", decay, (Hk, Hk * D)), ("beta", beta, (Hk, 1))):
        if x is not None:
            check_floats(name, 0, **{what: x})
            if x.ndim != 3 or x.shape[:2] != (B, T) or x.shape[2] not in widths:
                raise ValueError(f"{name}: {what} has shape {x.shape}; wanted (B, T, {widths[0]} or {widths[1]})")
    if past_state is not None:
        check_floats(name, 0, past_state=past_state)
        check_shape(name, "past_state", past_state, (B, Hk, D, Dv), "(B, Hk, D, Dv)")


def CausalConvWithState(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    past_state: Array | None = None,
    *,
    activation: str | bytes = "none",
    backend: str = "numpy",
) -> tuple[Array, Array]:
    r"""Compute the operator CausalConvWithState: a causal convolution of each channel by itself.

    .. math:: y_{ct} = f\left(b_c + \sum_{i < k} w_{ci}\, x_{c, t - k + 1 + i}\right)

    Parameters
    ----------
    input : array, (B, C, T)
        Channels first.
    weight : array, (C, 1, k)
        Taps, the last one that of the token itself.
    bias : array, (C,), optional
        Added before the activation.
    past_state : array, (B, C, k - 1), optional
        The inputs before the first token; zeros unless given.
    activation : str
        "none", or "silu", which is also called "swish".
    backend : str
        Who computes; see `refattn.backends`.

    Returns
    -------
    output : array, (B, C, T)
        In the dtype of input.
    present_state : array, (B, C, k - 1)
        The last k - 1 inputs, those from before among them where there are fewer new ones.

    Raises
    ------
    TypeError, ValueError
        For what onnx's evaluator refuses.
    Unsupported
        If the backend does not cover the call.

    Notes
    -----
    Different from `refattn.causal_conv1d`: channels come before tokens; weight has an axis of 1; "none" means no
    activation. 16-bit inputs are rounded once, after the activation (the evaluator rounds before it, too).

    Examples
    --------
    >>> y, state = CausalConvWithState(np.array([[[1.0, 2.0, 4.0]]]), np.array([[[1.0, 10.0]]]))
    >>> y.ravel(), state.ravel()
    (array([10., 21., 42.]), array([4.]))
    """
    name = "CausalConvWithState"
    how = activation.decode() if isinstance(activation, bytes) else activation
    if how not in ACTIVATIONS:
        raise ValueError(f"{name}: activation is {how!r}; wanted one of {', '.join(ACTIVATIONS)}")
    check_floats(name, 0, input=input, weight=weight)
    if input.ndim != 3 or weight.ndim != 3 or weight.shape[2] == 0:
        shapes = f"input {input.shape}, weight {weight.shape}"
        raise ValueError(f"{name}: wanted input (B, C, T) and weight (C, 1, k), got {shapes}")
    B, C, _ = input.shape
    check_shape(name, "weight", weight, (C, 1, weight.shape[2]), "(C, 1, k)")
    if bias is not None:
        check_floats(name, 0, input=input, bias=bias)
        check_shape(name, "bias", bias, (C,), "(C,)")
    if past_state is not None:
        check_floats(name, 0, input=input, past_state=past_state)
        check_shape(name, "past_state", past_state, (B, C, weight.shape[2] - 1), "(B, C, k - 1)")
        past_state = past_state.swapaxes(1, 2)
    o, state = causal_conv1d(
        input.swapaxes(1, 2),
        weight[:, 0],
        bias,
        activation=ACTIVATIONS[how],
        initial_state=past_state,
        backend=backend,
    )
    return o.swapaxes(1, 2), state.swapaxes(1, 2)
