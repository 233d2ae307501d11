"""What the operators of `refattn.dialects.onnx` refuse: the rules of the schemas and of onnx's evaluator."""

from typing import Any

from refattn.arrays import check_count, check_floats, check_number, check_shape

PRECISIONS = (1, 10, 11, 16)  # float, float16, double, bfloat16
DOUBLE = 11


def check_attention_node(
    Q: Any,
    K: Any,
    V: Any,
    attn_mask: Any,
    past_key: Any,
    past_value: Any,
    nonpad_kv_seqlen: Any,
    *,
    is_causal: Any,
    kv_num_heads: Any,
    left_window_size: Any,
    q_num_heads: Any,
    qk_matmul_output_mode: Any,
    right_window_size: Any,
    scale: Any,
    softcap: Any,
    softmax_precision: Any,
    opset: Any,
    backend: Any,
) -> None:
    """Refuse the node that the schema of this opset, its shape inference or onnx's evaluator refuses."""
    check_count("Attention", "opset", opset, least=23)
    _check_attributes(is_causal, qk_matmul_output_mode, scale, softcap, softmax_precision)
    for name, size in (("left_window_size", left_window_size), ("right_window_size", right_window_size)):
        check_count("Attention", name, size, least=-1)
        if size != -1 and opset < 25:
            raise ValueError(f"Attention: opset {opset} has no attribute {name}; it came with opset 25")
    if nonpad_kv_seqlen is not None and opset < 24:
        raise ValueError(f"Attention: opset {opset} has no input nonpad_kv_seqlen; it came with opset 24")
    if (past_key is None) != (past_value is None):
        raise ValueError("Attention: past_key and past_value must be given together")
    if past_key is not None and nonpad_kv_seqlen is not None:
        raise ValueError("Attention: nonpad_kv_seqlen cannot be combined with past_key and past_value")
    check_floats("Attention", 3, Q=Q, K=K)
    check_floats("Attention", 3, V=V)
    if not Q.ndim == K.ndim == V.ndim or Q.ndim > 4:
        raise ValueError(
            f"Attention: Q, K, V have {Q.ndim}, {K.ndim} and {V.ndim} axes; wanted 3 or 4, the same for all"
        )
    _check_heads(Q, K, V, q_num_heads, kv_num_heads, opset)
    past = 0 if past_key is None else _check_past(K, V, past_key, past_value, kv_num_heads)
    if nonpad_kv_seqlen is not None:
        if getattr(getattr(nonpad_kv_seqlen, "dtype", None), "kind", None) not in ("i", "u"):
            raise TypeError("Attention: nonpad_kv_seqlen must be an array of integers")
        check_shape("Attention", "nonpad_kv_seqlen", nonpad_kv_seqlen, (Q.shape[0],), "(B,)")
    if attn_mask is not None:
        _check_mask(attn_mask, past + K.shape[-2 if K.ndim == 4 else 1])


def _check_attributes(is_causal: Any, mode: Any, scale: Any, softcap: Any, precision: Any) -> None:
    if is_causal not in (0, 1):
        raise ValueError(f"Attention: is_causal is {is_causal!r}; wanted 0 or 1")
    if mode not in (0, 1, 2, 3):
        raise ValueError(f"Attention: qk_matmul_output_mode is {mode!r}; wanted 0, 1, 2 or 3")
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"Attention: softmax_precision is {precision!r}; wanted one of {PRECISIONS}")
    check_number("Attention", "softcap", softcap)
    if scale is not None:
        check_number("Attention", "scale", scale)


def _check_heads(Q: Any, K: Any, V: Any, H: Any, Hk: Any, opset: int) -> None:
    if Q.ndim == 4:
        if opset >= 25 and (H is not None or Hk is not None):
            raise ValueError("Attention: q_num_heads and kv_num_heads must not be given with 4-D inputs")
        return
    if H is None or Hk is None:
        raise ValueError("Attention: 3-D inputs need q_num_heads and kv_num_heads")
    check_count("Attention", "q_num_heads", H)
    check_count("Attention", "kv_num_heads", Hk)
    for name, x, heads in (("Q", Q, H), ("K", K, Hk), ("V", V, Hk)):
        if x.shape[2] % heads:
            raise ValueError(f"Attention: {name} has a last axis of {x.shape[2]}, which {heads} heads do not divide")


def _check_past(K: Any, V: Any, past_key: Any, past_value: Any, heads: Any) -> int:
    """Refuse a past that K and V cannot follow; return its length P."""
    for name, past, x in (("past_key", past_key, K), ("past_value", past_value, V)):
        check_floats("Attention", 0, **{name: past, "K or V": x})
        if past.ndim != 4:
            raise ValueError(f"Attention: {name} has {past.ndim} axes; wanted 4")
        B, Hk, D = (x.shape[0], heads, x.shape[2] // heads) if x.ndim == 3 else (x.shape[0], x.shape[1], x.shape[3])
        check_shape("Attention", name, past, (B, Hk, past_key.shape[2], D), "(B, Hk, P, D)")
    return int(past_key.shape[2])


def _check_mask(attn_mask: Any, Tk: int) -> None:
    kind = getattr(getattr(attn_mask, "dtype", None), "kind", None)
    if kind not in ("b", "i", "u", "f") and str(getattr(attn_mask, "dtype", None)) != "bfloat16":
        raise TypeError(
            f"Attention: attn_mask is {getattr(attn_mask, 'dtype', type(attn_mask).__name__)}; wanted numbers"
        )
    if not 1 <= attn_mask.ndim <= 4:
        raise ValueError(f"Attention: attn_mask has {attn_mask.ndim} axes; wanted 1 to 4")
    if attn_mask.shape[-1] > Tk:
        raise ValueError(f"Attention: attn_mask is {attn_mask.shape[-1]} keys long; there are {Tk}")


def check_rotary_node(
    X: Any,
    cos_cache: Any,
    sin_cache: Any,
    position_ids: Any,
    *,
    interleaved: Any,
    num_heads: Any,
    rotary_embedding_dim: Any,
) -> None:
    """Refuse the node that the schema of RotaryEmbedding or onnx's evaluator refuses."""
    check_floats("RotaryEmbedding", 3, X=X)
    check_floats("RotaryEmbedding", 2, cos_cache=cos_cache, sin_cache=sin_cache)
    check_count("RotaryEmbedding", "num_heads", num_heads, least=0)
    check_count("RotaryEmbedding", "rotary_embedding_dim", rotary_embedding_dim, least=0)
    if interleaved not in (0, 1):
        raise ValueError(f"RotaryEmbedding: interleaved is {interleaved!r}; wanted 0 or 1")
    if X.ndim > 4:
        raise ValueError(f"RotaryEmbedding: X has {X.ndim} axes; wanted 3 or 4")
    if X.ndim == 3 and (num_heads == 0 or X.shape[2] % num_heads):
        raise ValueError(f"RotaryEmbedding: a 3-D X needs num_heads that divide {X.shape[2]}, got {num_heads}")
    B, T, D = (X.shape[0], X.shape[2], X.shape[3]) if X.ndim == 4 else (*X.shape[:2], X.shape[2] // num_heads)
    n = D if rotary_embedding_dim == 0 else rotary_embedding_dim
    if n % 2 or n > D:
        raise ValueError(f"RotaryEmbedding: rotary_embedding_dim is {n}; wanted an even number up to D = {D}")
    for name, cache in (("cos_cache", cos_cache), ("sin_cache", sin_cache)):
        if cache.shape[-1] != n // 2:
            raise ValueError(
                f"RotaryEmbedding: the last axis of {name} is {cache.shape[-1]}; wanted R/2 = {n // 2} for R = {n}"
            )
        if position_ids is None:
            check_shape("RotaryEmbedding", name, cache, (B, T, n // 2), "(B, T, R/2), for there are no position_ids")
        else:
            check_shape("RotaryEmbedding", name, cache, (cos_cache.shape[0], n // 2), "(max_position, R/2)")
    if position_ids is not None:
        if getattr(getattr(position_ids, "dtype", None), "kind", None) not in ("i", "u"):
            raise TypeError("RotaryEmbedding: position_ids must be an array of integers")
        check_shape("RotaryEmbedding", "position_ids", position_ids, (B, T), "(B, T)")
        rows = cos_cache.shape[0]
        if position_ids.size and not -rows <= position_ids.min() <= position_ids.max() < rows:
            raise IndexError(f"RotaryEmbedding: position_ids leave the caches, which have {rows} rows")
