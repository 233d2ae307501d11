"""Kernels whose arrays lie in another order: tokens before heads, packed sequences, pages.

The kit thinks in (B, H, T, D). `from_layout` rearranges the arrays of each call for the kernel and the results for the
kit. Whatever the rearranged form has room for besides, such as unused slots of a page, is NaN: it must not matter.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.testing.adapters.common import (
    BACKWARD,
    FORWARD,
    Kernel,
    Witness,
    input_names,
    name_of,
    parameters_of,
    present,
    signature,
)
from refattn.testing.adapters.dlpack import to_numpy
from refattn.testing.faults import KernelFault

NO_ROOM = {"packed": ("bias", "mask", "dropout_mask", "dropout_p")}  # (B, H, Tq, Tk) is no shape of packed sequences
COUNTS_KEYS = ("packed", "paged")  # layouts that say themselves how many keys a sequence has
LAYOUTS = ("bhtd", "bthd", *COUNTS_KEYS)


def from_layout(kernel: Kernel, layout: str, *, page: int = 16) -> Kernel:
    """Return a kernel on (B, H, T, D) arrays that asks a kernel on arrays in another layout.

    ============ =======================================================================================
    ``bthd``     arrays (B, T, H, D), contiguous; lse, bias and mask as in bhtd
    ``packed``   ``kernel(q, k, v, *, cu_seqlens_q, cu_seqlens_k, **options)``: q (total_q, H, D),
                 k (total_k, Hk, D), int32 cumulative lengths (B + 1,), o (total_q, H, Dv), lse (H, total_q)
    ``paged``    ``kernel(q, k_pages, v_pages, *, page_table, seqlens_k, **options)``: q (B, H, Tq, D), pages
                 (n_pages, page, Hk, D) in shuffled order, page_table (B, max_pages) and seqlens_k (B,) int32
    ============ =======================================================================================

    Packed sequences hold the keys that exist; their number is the option seqlens_k of the case. There is no room in
    them for bias, mask and dropout, which are not offered. Backward kernels get do in the layout of q and return dq, dk
    and dv in it; there are none on pages.

    Parameters
    ----------
    kernel : callable
        In the other layout.
    layout : str
        bhtd, bthd, packed or paged.
    page : int
        How many keys a page holds.

    Returns
    -------
    callable
        The same kernel on (B, H, T, D) arrays. It raises KernelFault if the kernel writes to its arguments or returns
        packed arrays of a wrong shape.

    Raises
    ------
    ValueError
        For an unknown layout.

    Examples
    --------
    >>> import refattn
    >>> def first_value(q, k, v):  # (B, T, H, D)
    ...     return np.broadcast_to(v[:, :1], (*q.shape[:3], v.shape[3]))
    >>> v = np.arange(6.0).reshape(1, 2, 3, 1)  # two heads, three keys
    >>> from_layout(first_value, "bthd")(np.ones((1, 2, 1, 4)), np.ones((1, 2, 3, 4)), v).ravel()
    array([0., 3.])
    """
    if layout not in LAYOUTS:
        raise ValueError(f"from_layout: layout is {layout!r}; wanted one of {', '.join(LAYOUTS)}")
    if page < 1:
        raise ValueError(f"from_layout: page is {page}; wanted at least 1")
    if layout == "bhtd":
        return kernel

    def adapted(*arrays: Array, **options: Any) -> Any:
        if layout == "bthd":
            return _tokens_first(kernel, arrays, options)
        if layout == "packed":
            return _packed(kernel, arrays, options)
        return _paged(kernel, arrays, options, page)

    backward, taken = parameters_of(kernel)
    offered = [name for name in taken if name not in NO_ROOM.get(layout, ())]
    if layout in COUNTS_KEYS and "seqlens_k" not in offered:
        offered.append("seqlens_k")
    return present(adapted, name_of(kernel), signature(BACKWARD if backward else FORWARD, offered))


def _ask(kernel: Kernel, arrays: Sequence[Array], options: Mapping[str, Any]) -> tuple[bool, list[Any]]:
    """Call the kernel; return whether its result is one array, and the results."""
    witness = Witness(dict(zip(input_names(arrays), arrays, strict=True)) | dict(options))
    result = to_numpy(kernel(*arrays, **options))
    witness.check()
    return not isinstance(result, tuple | list), list(result) if isinstance(result, tuple | list) else [result]


def _answer(single: bool, results: list[Any]) -> Any:
    return results[0] if single else tuple(results)


def _tokens_first(kernel: Kernel, arrays: Sequence[Array], options: Mapping[str, Any]) -> Any:
    single, results = _ask(kernel, [np.ascontiguousarray(x.swapaxes(1, 2)) for x in arrays], options)
    shaped = 3 if len(arrays) == len(BACKWARD) else 1  # dq, dk, dv or o; what comes after them has no tokens first
    for n, x in enumerate(results[:shaped]):
        if np.ndim(x) == 4:
            results[n] = x.swapaxes(1, 2)
    return _answer(single, results)


def _existing(T: int, lengths: Array) -> Array:
    """Return which of T slots of each sequence exist: (B, T)."""
    return np.arange(T) < lengths[:, None]


def _key_lengths(seqlens_k: Any, B: int, Tk: int) -> Array:
    return np.full(B, Tk) if seqlens_k is None else np.asarray(seqlens_k).astype(np.int64).reshape(B)


def _packed(kernel: Kernel, arrays: Sequence[Array], options: dict[str, Any]) -> Any:
    q, k, v = arrays[-3:]
    B, H, Tq, _ = q.shape
    lengths = _key_lengths(options.pop("seqlens_k", None), B, k.shape[2])
    queries, keys = _existing(Tq, np.full(B, Tq)), _existing(k.shape[2], lengths)
    slots = dict(zip(BACKWARD, (queries, queries, keys, keys), strict=True))
    given = [x.swapaxes(1, 2)[slots[name]] for name, x in zip(input_names(arrays), arrays, strict=True)]
    for name, n in (("cu_seqlens_q", np.full(B, Tq)), ("cu_seqlens_k", lengths)):
        options[name] = np.concatenate([[0], np.cumsum(n)]).astype(np.int32)
    if options.get("dlse") is not None:
        options["dlse"] = np.ascontiguousarray(options["dlse"].swapaxes(0, 1)).reshape(H, B * Tq)
    single, results = _ask(kernel, given, options)

    def unpacked(name: str, x: Any, exist: Array, like: Array, width: int) -> Array:
        _check_shape(name, x, (int(exist.sum()), like.shape[1], width), "(total, heads, width)")
        y = np.zeros((*exist.shape, like.shape[1], width), x.dtype)
        y[exist] = x
        return y.swapaxes(1, 2)

    if len(arrays) == len(BACKWARD):
        targets = (("dq", queries, q), ("dk", keys, k), ("dv", keys, v))
        for i, (name, exist, like) in enumerate(targets[: len(results)]):
            results[i] = unpacked(name, results[i], exist, like, like.shape[3])
        return _answer(single, results)
    results[0] = unpacked("o", results[0], queries, q, v.shape[3])
    if len(results) > 1:
        _check_shape("lse", results[1], (H, B * Tq), "(H, total_q)")
        results[1] = results[1].reshape(H, B, Tq).swapaxes(0, 1)
    return _answer(single, results)


def _check_shape(name: str, x: Any, want: tuple[int, ...], meaning: str) -> None:
    if not isinstance(x, np.ndarray) or x.shape != want:
        raise KernelFault(f"{name} is {getattr(x, 'shape', type(x).__name__)}; wanted {want} = {meaning}")


def _paged(kernel: Kernel, arrays: Sequence[Array], options: dict[str, Any], page: int) -> Any:
    if len(arrays) != len(FORWARD):
        raise TypeError("from_layout: there are no backward kernels on pages")
    q, k, v = arrays
    B, Hk, Tk, _ = k.shape
    lengths = _key_lengths(options.pop("seqlens_k", None), B, Tk)
    used = -(-lengths // page)  # pages per sequence
    wide = max(1, -(-Tk // page))
    spare = B + 1
    order = np.random.default_rng(0).permutation(int(used.sum()) + spare).astype(np.int32)
    holding = _existing(wide, used)
    table = np.full((B, wide), order[-1], np.int32)  # an entry that is not used names a page that nobody has
    table[holding] = order[: int(used.sum())]
    pages = []
    for x in (k, v):
        full = nans((B, wide * page, Hk, x.shape[3]), x.dtype)
        exist = _existing(Tk, lengths)
        full[:, :Tk][exist] = x.swapaxes(1, 2)[exist]
        pool = nans((len(order), page, Hk, x.shape[3]), x.dtype)
        pool[table[holding]] = full.reshape(B, wide, page, Hk, x.shape[3])[holding]
        pages.append(pool)
    options |= {"page_table": table, "seqlens_k": lengths.astype(np.int32)}
    return _answer(*_ask(kernel, [np.ascontiguousarray(q), *pages], options))


def nans(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return an array of NaN; in uint16, those of bfloat16."""
    return np.full(shape, 0x7FC0 if dtype == np.uint16 else np.nan, dtype)
