"""Mistakes that show in the second call, in another batch, or in the arrays of the caller."""

from refattn.testing.mutants.patch import Mutant

_SCALE = "scale = 1 / math.sqrt(D) if scale is None else float(scale)"
_OUT = "o = np.zeros((B, H, Tq, Dv), q.dtype)"
_LSE = "lse = np.full((B, H, Tq), -np.inf, acc)"
_ACC = "acc = compute_dtype(q.dtype)"
_SEEN = "first, stop = _seen_by(seq, i, q_i.shape[1])"
_KEYS = '_padded("keys", k[b], head_of, length, tile_k, acc)'
_MASK = "np.broadcast_to(mask, (B, H, Tq, Tk))[b]"


def _state(name: str, old: str, new: str) -> Mutant:
    return Mutant(name, "state", old, new)


MUTANTS = (
    _state("workspace is cleared only when it is new", "    buffer.fill(0)\n", ""),
    _state(
        "the result is overwritten by the next call",
        _OUT,
        f'o = _WORKSPACES.setdefault(("o", B, H, Tq, Dv, q.dtype), {_OUT[4:]})',
    ),
    _state(
        "lse is overwritten by the next call",
        _LSE,
        f'lse = _WORKSPACES.setdefault(("lse", B, H, Tq, acc), {_LSE[6:]})',
    ),
    _state(
        "tiles that see nothing keep what memory held",
        _SEEN,
        f"{_SEEN}\n"
        "            if stop <= first and sink is None:\n"
        '                o[b, :, i : i + tile_q] = _WORKSPACES.get("last", q.dtype.type(0))\n'
        "                continue\n"
        '            _WORKSPACES["last"] = q[b, 0, i, 0]',
    ),
    _state(
        "keys of the first call of a shape are kept",
        _KEYS,
        f'_WORKSPACES.setdefault(("kept", b, k.shape, H, length, tile_k, acc), {_KEYS}.copy())',
    ),
    _state(
        "mask of the first call of a shape is kept",
        _MASK,
        f'_WORKSPACES.setdefault(("mask", b, H, Tq, Tk), {_MASK}.copy())',
    ),
    _state(
        "scale of the first call of a width is kept",
        _SCALE,
        f'{_SCALE}\n    scale = _WORKSPACES.setdefault(("scale", D), scale)',
    ),
    _state(
        "every third call takes smaller tiles",
        _ACC,
        f"{_ACC}\n"
        '    _WORKSPACES["calls"] = _WORKSPACES.get("calls", 0) + 1\n'
        '    tile_k = max(1, tile_k // 2) if _WORKSPACES["calls"] % 3 == 0 else tile_k',
    ),
    _state(
        "a batch of one is split", "tile_k, num_splits)):", "tile_k, max(2, num_splits) if B == 1 else num_splits)):"
    ),
    _state("queries are scaled in place", _SCALE, f"{_SCALE}\n    q *= q.dtype.type(scale)\n    scale = 1.0"),
    _state(
        "the result is written over the queries",
        _OUT,
        f"{_OUT[:4]}q if Dv == D and q.flags.writeable else {_OUT[4:]}",
    ),
)
