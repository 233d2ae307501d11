"""FlexAttention (`torch.nn.attention.flex_attention`), as PyTorch 2.13 computes it in eager mode.

Dong et al., "Flex Attention", 2024, arXiv:2412.05496. Source: pytorch/pytorch, tag v2.13.0,
torch/nn/attention/flex_attention.py and torch/_higher_order_ops/flex_attention.py (`math_attention`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn.arrays import Array, check_broadcasts, check_floats, compute_dtype
from refattn.dense.attention import attention
from refattn.dense.common import Bools, repeat_heads

Ints = NDArray[np.integer[Any]]
MaskMod = Callable[[Ints, Ints, Ints, Ints], Any]
ScoreMod = Callable[[Array, Ints, Ints, Ints, Ints], Any]
NAME = "flex_attention"


class AuxRequest(NamedTuple):
    """What `flex_attention` returns besides the output."""

    lse: bool = False
    max_scores: bool = False


class AuxOutput(NamedTuple):
    """Log-sum-exp (B, H, Tq) by the natural logarithm, and the greatest modified score of each query."""

    lse: Array | None = None
    max_scores: Array | None = None


def flex_attention(
    query: Array,
    key: Array,
    value: Array,
    score_mod: ScoreMod | None = None,
    block_mask: "BlockMask | None" = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    *,
    return_aux: AuxRequest | None = None,
    backend: str = "numpy",
) -> Any:
    r"""Compute softmax(score_mod(scale · query keyᵀ), where block_mask lets it) value.

    Where it differs from `refattn.attention`:

    - ``score_mod(score, b, h, q_idx, kv_idx)`` rewrites the scaled scores, and so takes the place of soft caps and
      biases. PyTorch calls it with scalars under vmap; here it gets the scores (B, H, Tq, Tk) and index arrays
      (B, 1, 1, 1), (H, 1, 1), (Tq, 1), (Tk,), and must broadcast. An index times a Python number is float64 here and
      float32 in PyTorch.
    - ``mask_mod(b, h, q_idx, kv_idx)`` inside the block mask knows indices, not positions: ``q_idx >= kv_idx`` is
      causal from the top left, whatever Tq and Tk are.
    - The mask is applied after score_mod: what that returns for a hidden pair does not matter.
    - A block mask made for other lengths is refused. One made with B=None or H=None serves every b and h.
    - Heads are shared only with ``enable_gqa=True``. Keys of batch size 1 serve every query batch if there is a block
      mask with as many.
    - The lse of a row that sees nothing is -inf and its output 0, as here; a row whose scores are all -inf by score_mod
      counts as one that sees nothing.
    - Nothing is 2-D or 3-D: (B, H, T, D). There are no sinks and no dropout. ``kernel_options`` are not taken.
    - Scores are selected, so that a hidden key that is NaN does nothing; but a weight of 0 is still multiplied, and NaN
      or inf in a hidden value leaks into its column of every row.

    Parameters
    ----------
    query : array, (B, H, Tq, D)
    key, value : array, (B, Hk, Tk, D), (B, Hk, Tk, Dv)
    score_mod : function, optional
    block_mask : BlockMask, optional
        From `create_block_mask`.
    scale : float, optional
        1 / sqrt(D) unless given.
    enable_gqa, return_lse : bool
    return_aux : AuxRequest, optional
        The newer way to ask for lse.
    backend : str
        Who computes; see `refattn.backends`.

    Returns
    -------
    array (B, H, Tq, Dv), or (array, lse), or (array, AuxOutput)

    Raises
    ------
    TypeError, ValueError
        For what PyTorch refuses.

    Examples
    --------
    >>> q, k, v = np.zeros((1, 1, 1, 2)), np.zeros((1, 1, 2, 2)), np.array([[[[0.0], [4.0]]]])
    >>> flex_attention(q, k, v, lambda score, b, h, i, j: score + np.log(3) * j)  # weights 1 : 3
    array([[[[3.]]]])
    """
    check_floats(NAME, query=query, key=key, value=value)
    if return_lse and return_aux is not None:
        raise ValueError(f"{NAME}: return_lse and return_aux exclude each other")
    key, value = _checked(query, key, value, block_mask, enable_gqa)
    shape = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    index = _indices(*shape)
    s = _scores(query, key, scale)
    if score_mod is not None:
        s = np.broadcast_to(np.asarray(score_mod(s, *index)), shape).astype(s.dtype)
    if block_mask is not None:
        s = np.where(_visible(block_mask.mask_mod, index, shape), s, -np.inf)
    q, k = np.zeros_like(query), np.zeros_like(key)  # the whole score stands in the bias
    o, lse = attention(q, k, value, bias=s, return_lse=True, backend=backend)
    if return_aux is not None:
        most = s.max(axis=-1, initial=-np.inf) if return_aux.max_scores else None
        return o, AuxOutput(lse if return_aux.lse else None, most)
    return (o, lse) if return_lse else o


@dataclass(frozen=True)
class BlockMask:
    """A mask function, and which blocks of BLOCK_SIZE it leaves empty, partial or full.

    kv_num_blocks (B, H, rows) counts the partial blocks of a row of blocks, and kv_indices (B, H, rows, columns) lists
    them first, in order; full_kv_num_blocks and full_kv_indices the same for full ones. A block that reaches over the
    border is partial, as in PyTorch.
    """

    mask_mod: MaskMod
    shape: tuple[int, int, int, int]
    BLOCK_SIZE: tuple[int, int]
    kv_num_blocks: Ints
    kv_indices: Ints
    full_kv_num_blocks: Ints
    full_kv_indices: Ints

    def sparsity(self) -> float:
        """Return which percentage of the pairs lies in no block; below 0 where blocks reach far over the border."""
        inside = int(self.kv_num_blocks.sum() + self.full_kv_num_blocks.sum()) * self.BLOCK_SIZE[0] * self.BLOCK_SIZE[1]
        return 100.0 * (1 - inside / math.prod(self.shape))


def create_mask(mod_fn: Any, B: int | None, H: int | None, Q_LEN: int, KV_LEN: int) -> Bools:
    """Return what a mask_mod lets through, bool (B or 1, H or 1, Q_LEN, KV_LEN).

    Examples
    --------
    >>> create_mask(lambda b, h, i, j: i >= j, None, None, 2, 3)[0, 0]
    array([[ True, False, False],
           [ True,  True, False]])
    """
    shape = (1 if B is None else B, 1 if H is None else H, Q_LEN, KV_LEN)
    return np.array(_visible(mod_fn, _indices(*shape), shape))


def create_block_mask(
    mask_mod: MaskMod,
    B: int | None,
    H: int | None,
    Q_LEN: int,
    KV_LEN: int,
    BLOCK_SIZE: int | tuple[int, int] = 128,
) -> BlockMask:
    """Return the block mask of a mask_mod, for sequences of exactly Q_LEN and KV_LEN."""
    rows, columns = (BLOCK_SIZE, BLOCK_SIZE) if isinstance(BLOCK_SIZE, int) else BLOCK_SIZE
    mask = create_mask(mask_mod, B, H, Q_LEN, KV_LEN)
    n, m = -(-Q_LEN // rows), -(-KV_LEN // columns)
    padded = np.pad(mask, ((0, 0), (0, 0), (0, n * rows - Q_LEN), (0, m * columns - KV_LEN)))
    counts = padded.reshape(*mask.shape[:2], n, rows, m, columns).sum(axis=(3, 5))  # (B, H, n, m)
    full = counts == rows * columns
    partial = (counts > 0) & ~full
    shape = (mask.shape[0], mask.shape[1], Q_LEN, KV_LEN)
    return BlockMask(mask_mod, shape, (rows, columns), *_listed(partial), *_listed(full))


def and_masks(*mask_mods: MaskMod) -> MaskMod:
    """Return the mask_mod that lets through what all of them let through; all pairs if there are none."""

    def both(b: Ints, h: Ints, q_idx: Ints, kv_idx: Ints) -> Any:
        seen: Any = np.ones((), bool)
        for mask_mod in mask_mods:
            seen = seen & np.asarray(mask_mod(b, h, q_idx, kv_idx))
        return seen

    return both


def or_masks(*mask_mods: MaskMod) -> MaskMod:
    """Return the mask_mod that lets through what one of them lets through; nothing if there are none."""

    def either(b: Ints, h: Ints, q_idx: Ints, kv_idx: Ints) -> Any:
        seen: Any = np.zeros((), bool)
        for mask_mod in mask_mods:
            seen = seen | np.asarray(mask_mod(b, h, q_idx, kv_idx))
        return seen

    return either


def _indices(B: int, H: int, Tq: int, Tk: int) -> tuple[Ints, Ints, Ints, Ints]:
    b, h, i, j = (np.arange(n) for n in (B, H, Tq, Tk))
    return b[:, None, None, None], h[:, None, None], i[:, None], j


def _visible(mask_mod: MaskMod, index: tuple[Ints, Ints, Ints, Ints], shape: tuple[int, ...]) -> Bools:
    seen = np.asarray(mask_mod(*index))
    if seen.dtype != bool:
        raise TypeError(f"{NAME}: mask_mod returned {seen.dtype}; wanted bool, True = may look")
    check_broadcasts(NAME, "the result of mask_mod", seen.shape, shape, "(B, H, Tq, Tk)")
    return np.broadcast_to(seen, shape)


def _scores(query: Array, key: Array, scale: float | None) -> Array:
    """Return the scaled scores (B, H, Tq, Tk) that score_mod gets."""
    compute = compute_dtype(query.dtype)
    k = repeat_heads(key, query.shape[1]).astype(compute)
    return (query.astype(compute) @ k.swapaxes(-1, -2)) * (query.shape[-1] ** -0.5 if scale is None else float(scale))


def _listed(chosen: Bools) -> tuple[Ints, Ints]:
    """Count the chosen columns (..., rows, columns) of each row, and list them before all others, each in order."""
    return chosen.sum(axis=-1), np.argsort(~chosen, axis=-1, kind="stable")


def _checked(
    query: Array, key: Array, value: Array, block_mask: BlockMask | None, enable_gqa: bool
) -> tuple[Array, Array]:
    """Refuse what PyTorch refuses; return key and value with the batch size of query."""
    if not query.ndim == key.ndim == value.ndim == 4:
        raise ValueError(f"{NAME}: query, key, value have {query.ndim}, {key.ndim}, {value.ndim} axes; wanted 4 each")
    if query.shape[1] != key.shape[1] and not enable_gqa:
        raise ValueError(
            f"{NAME}: {query.shape[1]} query heads and {key.shape[1]} key heads; wanted the same, or enable_gqa=True"
        )
    if query.shape[3] != key.shape[3]:
        raise ValueError(f"{NAME}: query and key have widths {query.shape[3]} and {key.shape[3]}; wanted the same")
    B = query.shape[0]
    if block_mask is not None and block_mask.shape[2:] != (query.shape[2], key.shape[2]):
        raise ValueError(
            f"{NAME}: block_mask was made for {block_mask.shape[2:]} queries and keys; "
            f"there are {(query.shape[2], key.shape[2])}"
        )
    if key.shape[0] == B:
        return key, value
    if block_mask is None or block_mask.shape[0] != B or key.shape[0] != 1 or value.shape[0] != 1:
        raise ValueError(f"{NAME}: query and key have batch sizes {B} and {key.shape[0]}; wanted the same")
    return np.repeat(key, B, axis=0), np.repeat(value, B, axis=0)
