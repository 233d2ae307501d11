"""Mistakes in who may look at what, and in dropout: off by one, counted from the wrong end, of the wrong head."""

from refattn.testing.mutants.patch import Mutant

_CAUSAL = "if causal:\n            right = 0"
_WINDOW = "left, right = (None, None) if window is None else window"
_LENGTH = "length = Tk if seqlens_k is None else int(seqlens_k[b])"
_DEFAULT = "offset = length - Tq"
_OFFSET = "offset = int(np.broadcast_to(q_offset, (B,))[b])"
_MASK_OF = "np.broadcast_to(mask, (B, H, Tq, Tk))[b]"
_KEEP_OF = "np.broadcast_to(dropout_mask, (B, H, Tq, Tk))[b]"
_DROP = "p = np.where(_tile(seq.keep, i, n, j, seq.tile_k), p / (1 - seq.dropout_p), 0)"
_SUM = "l = l * shrink + p.sum(axis=-1, keepdims=True)"


def _mask(name: str, old: str, new: str, diagnosis: str) -> Mutant:
    return Mutant(name, "masks", old, new, diagnosis=diagnosis)


def _window(name: str, then: str, diagnosis: str) -> Mutant:
    """Return a mutant that does something to the window after it was read."""
    return _mask(name, _WINDOW, f"{_WINDOW}\n        {then}", diagnosis)


def _seqlens(name: str, length: str, diagnosis: str) -> Mutant:
    """Return a mutant that takes another number of keys; queries stand where they stood."""
    offset = "offset = (Tk if seqlens_k is None else int(seqlens_k[b])) - Tq"
    return _mask(name, f"{_LENGTH}\n        {_DEFAULT}", f"length = {length}\n        {offset}", diagnosis)


def _dropout(name: str, old: str, new: str, diagnosis: str) -> Mutant:
    return Mutant(name, "dropout", old, new, diagnosis=diagnosis)


MUTANTS = (
    _mask("causal is ignored", "if causal:", "if False:", "causal ignored"),
    _mask(
        "causal mask starts at the top left",
        _CAUSAL,
        "if causal:\n            right = -offset if q_offset is None else 0",
        "causal top left",
    ),
    _mask("causal mask hides the diagonal", _CAUSAL, "if causal:\n            right = -1", "causal strict"),
    _mask("causal mask shows the next key", _CAUSAL, "if causal:\n            right = 1", "causal one too wide"),
    _mask("a mask replaces causal", "if causal:", "if causal and mask is None:", "mask replaces causal"),
    _mask("a window replaces causal", "if causal:", "if causal and window is None:", "window replaces causal"),
    _window(
        "window reaches one key too far to the left",
        "left = None if left is None else left + 1",
        "window left one too wide",
    ),
    _window(
        "window ends one key early on the left",
        "left = None if left is None else left - 1",
        "window left one too narrow",
    ),
    _window(
        "window reaches one key too far to the right",
        "right = None if right is None else right + 1",
        "window right one too wide",
    ),
    _window(
        "window ends one key early on the right",
        "right = None if right is None else right - 1",
        "window right one too narrow",
    ),
    _window(
        "window counts the key itself",
        "left, right = (None if side is None else max(side - 1, 0) for side in (left, right))",
        "window counts self",
    ),
    _window(
        "window is counted from the first key",
        "left, right = None if left is None else left + offset, None if right is None else right - offset",
        "window without offset",
    ),
    _window("window sides are exchanged", "left, right = right, left", "window sides swapped"),
    _window("window has no left side", "left = None", "window left ignored"),
    _mask("window is ignored", _WINDOW, "left, right = None, None", "window ignored"),
    _mask("lengths are ignored", _LENGTH, "length = Tk", "seqlens ignored"),
    _seqlens(
        "one key more than the length is seen",
        "Tk if seqlens_k is None else min(int(seqlens_k[b]) + 1, Tk)",
        "seqlens one too long",
    ),
    _seqlens(
        "one key less than the length is seen",
        "Tk if seqlens_k is None else max(int(seqlens_k[b]) - 1, 0)",
        "seqlens one too short",
    ),
    _mask(
        "every sequence has the length of the first",
        _LENGTH,
        "length = Tk if seqlens_k is None else int(seqlens_k[0])",
        "seqlens of the first sequence",
    ),
    _mask("queries are placed by the padded length", _DEFAULT, "offset = Tk - Tq", "offset from the padded length"),
    _mask("offset of the queries is ignored", "if q_offset is not None:", "if False:", "q_offset ignored"),
    _mask(
        "every sequence has the offset of the first",
        _OFFSET,
        "offset = int(np.broadcast_to(q_offset, (B,))[0])",
        "q_offset of the first sequence",
    ),
    _mask(
        "offset is added to the default one",
        _OFFSET,
        "offset += int(np.broadcast_to(q_offset, (B,))[b])",
        "q_offset added to the default",
    ),
    _mask("mask is inverted", "visible & _tile(seq.mask", "visible & ~_tile(seq.mask", "mask inverted"),
    _mask("mask is ignored", "visible = visible & _tile(seq.mask, i, n, j, seq.tile_k)", "pass", "mask ignored"),
    _mask(
        "every head takes the mask of the first",
        _MASK_OF,
        "np.broadcast_to(mask, (B, H, Tq, Tk))[b, :1]",
        "mask of the first head",
    ),
    _mask(
        "every sequence takes the mask of the first",
        _MASK_OF,
        "np.broadcast_to(mask, (B, H, Tq, Tk))[0]",
        "mask of the first sequence",
    ),
    _mask(
        "mask is read column by column",
        _MASK_OF,
        "np.broadcast_to(mask, (B, H, Tq, Tk))[b].reshape(H, Tk, Tq).swapaxes(-1, -2)",
        "mask transposed",
    ),
    _mask("rows that see nothing divide by zero", "np.where(l == 0, 1, l)", "l", "blind rows nan"),
    _mask(
        "hidden scores are -1e9",
        "s = np.where(visible, s, -np.inf)",
        "s = np.where(visible, s, -1e9).astype(acc)",
        "blind rows mean",
    ),
    _dropout("dropout is not rescaled", "p / (1 - seq.dropout_p), 0)", "p, 0)", "dropout not rescaled"),
    _dropout("dropout is ignored", "if seq.keep is not None:", "if False:", "dropout ignored"),
    _dropout(
        "weights are dropped before they are summed",
        f"{_SUM}\n        if seq.keep is not None:\n            {_DROP}",
        f"if seq.keep is not None:\n            {_DROP}\n        {_SUM}",
        "dropout before normalisation",
    ),
    _dropout(
        "dropout keeps what it should drop",
        "np.where(_tile(seq.keep",
        "np.where(~_tile(seq.keep",
        "dropout mask inverted",
    ),
    _dropout(
        "every head drops what the first drops",
        _KEEP_OF,
        "np.broadcast_to(dropout_mask, (B, H, Tq, Tk))[b, :1]",
        "dropout mask of the first head",
    ),
    _dropout(
        "every sequence drops what the first drops",
        _KEEP_OF,
        "np.broadcast_to(dropout_mask, (B, H, Tq, Tk))[0]",
        "dropout mask of the first sequence",
    ),
    _dropout(
        "dropout mask is read column by column",
        _KEEP_OF,
        "np.broadcast_to(dropout_mask, (B, H, Tq, Tk))[b].reshape(H, Tk, Tq).swapaxes(-1, -2)",
        "dropout mask transposed",
    ),
    _dropout(
        "dropout multiplies by the share that is kept",
        "p / (1 - seq.dropout_p)",
        "p * (1 - seq.dropout_p)",
        "dropout rescaled the wrong way",
    ),
    _dropout(
        "dropout divides by the share that is dropped",
        "p / (1 - seq.dropout_p)",
        "p / seq.dropout_p",
        "dropout rescaled by the drop rate",
    ),
    _dropout(
        "every key tile drops what the first drops",
        "_tile(seq.keep, i, n, j,",
        "_tile(seq.keep, i, n, 0,",
        "dropout mask of the first key tile",
    ),
)
