"""Mistakes at the edges of tiles, and in how arrays lie in memory."""

from refattn.testing.mutants.patch import Mutant

_PRODUCT = "s = q_i @ k_j.swapaxes(-1, -2)"
_RANGE = "first, stop = 0, seq.length"
_LOOP = "for j in range(start, end, seq.tile_k):"
_VALUES = "v_j = seq.values[:, j : j + seq.tile_k]"
_SCORES = "s = _scores(seq, q_i, k_j, i, j)"
_STOP = "i + n - 1 + seq.offset + seq.right + 1)"
_WRITE = "o[b, :, i : i + tile_q] = o_i.astype(q.dtype)"


def _tile(name: str, old: str, new: str) -> Mutant:
    return Mutant(name, "tiles", old, new)


def _layout(name: str, old: str, new: str) -> Mutant:
    return Mutant(name, "layout", old, new)


TILES = (
    _tile(
        "the padding of the tail tile counts as keys",
        "np.broadcast_to(key < seq.length, (n, seq.tile_k))",
        "np.ones((n, seq.tile_k), bool)",
    ),
    _tile(
        "keys behind the last whole tile are left out",
        _RANGE,
        "first, stop = 0, seq.length // seq.tile_k * seq.tile_k",
    ),
    _tile("a tail tile of one key is left out", _RANGE, "first, stop = 0, seq.length - (seq.length % seq.tile_k == 1)"),
    _tile("keys beyond 256 are left out", _RANGE, "first, stop = 0, min(seq.length, 256)"),
    _tile("the tile that begins at the diagonal is skipped", _STOP, "i + n - 1 + seq.offset + seq.right)"),
    _tile("keys stop where the first query of the tile stops", _STOP, "i + seq.offset + seq.right + 1)"),
    _tile(
        "the first tile of the window is rounded up",
        "return first // seq.tile_k * seq.tile_k, stop",
        "return -(-first // seq.tile_k) * seq.tile_k, stop",
    ),
    _tile(
        "the window starts where that of the last query starts",
        "first = max(first, i + seq.offset - seq.left)",
        "first = max(first, i + n - 1 + seq.offset - seq.left)",
    ),
    _tile("a tile on the diagonal is not masked", "last <= top + seq.right", "last <= bottom + seq.right"),
    _tile("a tile on the left edge is not masked", "j >= bottom - seq.left", "j >= top - seq.left"),
    _tile("a tile that lacks one key is not masked", "inside = last < seq.length", "inside = last <= seq.length"),
    _tile(
        "only the last tile is masked",
        "if visible is not None:",
        "if visible is not None and j + seq.tile_k >= end:",
    ),
    _tile(
        "a tail tile of one query is left out",
        "for i in range(0, Tq, tile_q):",
        "for i in range(0, Tq - (Tq % tile_q == 1), tile_q):",
    ),
    _tile(
        "values of the tail tile are read too early",
        _VALUES,
        "t = max(0, min(j, seq.length - seq.tile_k))\n        v_j = seq.values[:, t : t + seq.tile_k]",
    ),
    _tile(
        "values are those of the tile before",
        _VALUES,
        "t = max(start, j - seq.tile_k)\n        v_j = seq.values[:, t : t + seq.tile_k]",
    ),
    _tile(
        "the first key of every further tile is hidden",
        _SCORES,
        f"{_SCORES}\n        if j > start:\n            s[..., 0] = -np.inf",
    ),
    _tile(
        "tiles are taken in pairs and an odd one is dropped",
        _LOOP,
        "pairs = -(-(end - start) // seq.tile_k) // 2\n"
        "    end = min(end, start + 2 * pairs * seq.tile_k) if pairs else end\n"
        f"    {_LOOP}",
    ),
    _tile("bias is that of the first query tile", "_tile(seq.bias, i,", "_tile(seq.bias, 0,"),
    _tile("mask is that of the first key tile", "_tile(seq.mask, i, n, j,", "_tile(seq.mask, i, n, 0,"),
    _tile(
        "alibi counts queries from the start of their tile",
        "distance = i + seq.offset + ",
        "distance = seq.offset + ",
    ),
    _tile(
        "the tail tile skips the soft cap",
        "if seq.softcap is not None:",
        "if seq.softcap is not None and j + seq.tile_k <= seq.length:",
    ),
    _tile(
        "the tail tile skips the bias",
        "if seq.bias is not None:",
        "if seq.bias is not None and j + seq.tile_k <= seq.length:",
    ),
)

LAYOUT = (
    _layout(
        "queries are read in the order of memory",
        "q_i = q[b, :, i : i + tile_q].astype(acc)",
        'q_i = np.ravel(q, order="K").reshape(q.shape)[b, :, i : i + tile_q].astype(acc)',
    ),
    _layout(
        "values are read in the order of memory",
        '_padded("values", v[b],',
        '_padded("values", np.ravel(v, order="K").reshape(v.shape)[b],',
    ),
    _layout(
        "keys are read as if they had no gaps",
        "seq = Sequence(\n            keys=",
        "memory = k\n"
        "        while isinstance(memory.base, np.ndarray):\n"
        "            memory = memory.base\n"
        "        if memory.dtype == k.dtype and memory is not k:\n"
        "            begin = (k.ctypes.data - memory.ctypes.data) // k.itemsize\n"
        '            run = np.ravel(memory, order="K")[max(begin, 0) : begin + k.size]\n'
        "            k = run.reshape(k.shape) if run.size == k.size else k\n"
        "        seq = Sequence(\n            keys=",
    ),
    _layout(
        "channels behind the last multiple of 8 are left out",
        _PRODUCT,
        "whole = q_i.shape[-1] // 8 * 8\n    s = q_i[..., :whole] @ k_j[..., :whole].swapaxes(-1, -2)",
    ),
    _layout("channels beyond 64 are left out", _PRODUCT, "s = q_i[..., :64] @ k_j[..., :64].swapaxes(-1, -2)"),
    _layout("padded channels hold ones", _PRODUCT, f"{_PRODUCT}\n    s += -q_i.shape[-1] % 8"),
    _layout(
        "default scale is that of the padded width",
        "1 / math.sqrt(D) if",
        "1 / math.sqrt(-(-D // 32) * 32) if",
    ),
    _layout(
        "value channels beyond the width of the keys are not written",
        _WRITE,
        "o[b, :, i : i + tile_q, :D] = o_i[..., :D].astype(q.dtype)",
    ),
    _layout(
        "value channels behind the last multiple of 8 are not written",
        _WRITE,
        "o[b, :, i : i + tile_q, : Dv // 8 * 8] = o_i[..., : Dv // 8 * 8].astype(q.dtype)",
    ),
    _layout(
        "heads per key head are rounded down to a power of two",
        "np.arange(H) // (H // Hk)",
        "np.minimum(np.arange(H) >> ((H // Hk).bit_length() - 1), Hk - 1)",
    ),
    _layout("every sequence reads the keys of the first", '_padded("keys", k[b],', '_padded("keys", k[0],'),
    _layout(
        "every sequence reads the values of the one before",
        '_padded("values", v[b],',
        '_padded("values", v[max(b - 1, 0)],',
    ),
    _layout(
        "heads of the result are written group by group",
        _WRITE,
        f"o_i = o_i.reshape(Hk, H // Hk, *o_i.shape[1:]).swapaxes(0, 1).reshape(o_i.shape)\n            {_WRITE}",
    ),
)

MUTANTS = TILES + LAYOUT
