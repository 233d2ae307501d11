"""The attention problem that `refattn compare` works on: from the bundled GPT, from a file, or random."""

import argparse
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refattn.arrays import FLOATS, Array, check_count, check_floats
from refattn.dense.common import check_attention
from refattn.masks import EMPTY, Mask, causal, from_array, parse

LAYER, TOKENS, DTYPE = "the middle one", 2048, "float32"
NUMBERS = ("scale", "softcap")
KEYS = ("q", "k", "v", "mask", "bias", "sinks", *NUMBERS)


@dataclass(frozen=True)
class Problem:
    """One call of attention: q (..., H, Tq, D), k (..., Hk, Tk, D), v (..., Hk, Tk, Dv), and its options."""

    q: Array
    k: Array
    v: Array
    source: str
    """Where it comes from, for people."""
    options: dict[str, Any] = field(default_factory=dict)
    """What `attention` takes beside q, k, v; a mask is a `Mask`."""

    def __post_init__(self) -> None:
        check_attention(self.q, self.k, self.v, operation="compare", **self.options)

    @property
    def mask(self) -> Mask | None:
        """Which pairs are visible; None: all."""
        return self.options.get("mask")

    @property
    def scores(self) -> tuple[int, ...]:
        """The shape (..., H, Tq, Tk)."""
        return (*self.q.shape[:-1], self.k.shape[-2])

    @property
    def visible_pairs(self) -> int:
        """How many (query, key) pairs are visible, over all heads and sequences."""
        if self.mask is None:
            return math.prod(self.scores)
        return self.mask.pairs(*self.scores[-2:]) * (math.prod(self.scores[:-2]) // math.prod(self.mask.lead))

    def tile_pairs(self, tile_q: int, tile_k: int, *, together: bool) -> int:
        """How many pairs lie in tiles that are not empty; `together`: for all heads as soon as one sees something."""
        lead, (Tq, Tk) = self.scores[:-2], self.scores[-2:]
        if self.mask is None:
            return math.prod(self.scores)
        wanted = self.mask.blocks(Tq, Tk, tile_q, tile_k).kinds() != EMPTY
        if together:
            wanted = wanted.any(axis=tuple(range(wanted.ndim - 2)))
        heights = np.minimum(tile_q, Tq - np.arange(0, Tq, tile_q))
        widths = np.minimum(tile_k, Tk - np.arange(0, Tk, tile_k))
        pairs = np.einsum("a,...ab,b->...", heights, wanted.astype(np.int64), widths)
        return int(pairs.sum()) * (math.prod(lead) // math.prod(pairs.shape))

    def rows(self, i: slice) -> tuple[slice, dict[str, Any]]:
        """Return the keys that the queries `i` see, from the first to the last, and the options for that part.

        Numbers are in float64, the mask is an array.
        """
        part = dict(self.options)
        Tq, Tk = self.scores[-2:]
        queries, j = np.arange(Tq)[i], slice(0, Tk)
        if self.mask is not None:
            seen = self.mask.see(queries[:, None], np.arange(Tk), Tq, Tk)
            seen = np.broadcast_to(seen, (*self.mask.lead, len(queries), Tk))
            keys = np.flatnonzero(seen.reshape(-1, Tk).any(axis=0))
            j = slice(int(keys[0]), int(keys[-1]) + 1) if len(keys) else slice(0, 0)
            part["mask"] = seen[..., j]
        if "bias" in part:
            bias = part["bias"].astype(np.float64)
            bias = bias[..., i, :] if bias.ndim > 1 and bias.shape[-2] != 1 else bias
            part["bias"] = bias[..., j] if bias.ndim > 0 and bias.shape[-1] != 1 else bias
        if "sinks" in part:
            part["sinks"] = part["sinks"].astype(np.float64)
        return j, part

    def facts(self) -> dict[str, str]:
        """Return what the report says about the input."""
        share = self.visible_pairs / max(1, math.prod(self.scores))
        mask = "none" if self.mask is None else repr(self.mask)
        mask = mask if len(mask) <= 60 else f"{mask[:57]}..."
        facts = {
            "input": self.source,
            "shapes": f"q {self.q.shape}, k {self.k.shape}, v {self.v.shape}, {self.q.dtype}",
            "mask": f"{mask}: {self.visible_pairs:,} visible pairs over all heads, {100 * share:.3g} % of all",
        }
        extras = [f"{name} {self.options[name]:g}" for name in NUMBERS if name in self.options]
        extras += [f"{name} {self.options[name].shape}" for name in ("bias", "sinks") if name in self.options]
        return facts | ({"options": ", ".join(extras)} if extras else {})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that choose the input."""
    group = parser.add_argument_group("input (by default: a layer of the bundled GPT on its text)")
    group.add_argument("--layer", type=int, metavar="N", help=f"the GPT's layer (default: {LAYER})")
    group.add_argument("--tokens", type=int, metavar="N", help=f"characters of the text (default: {TOKENS})")
    group.add_argument("--npz", metavar="FILE", help=f"arrays q, k, v; optional {', '.join(KEYS[3:])}")
    group.add_argument("--shape", metavar="B,H,HK,T,D", help="random input: batch, heads, kv heads, tokens, head size")
    group.add_argument("--dtype", metavar="NAME", help=f"convert the input to {', '.join(FLOATS)}")
    group.add_argument("--mask", metavar="EXPR", help='such as "causal() & window(255, 0)", or none')
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of random input and of the order (default: 0)")


def read(args: argparse.Namespace) -> Problem:
    """Return the problem that the options describe.

    Raises
    ------
    ValueError, TypeError, OSError, ImportError
        For options that contradict each other, unreadable files, and arrays that are no attention problem.
    """
    given = [option for option in ("npz", "shape") if getattr(args, option) is not None]
    if len(given) == 2:
        raise ValueError("compare: --npz and --shape are two inputs; wanted one")
    for option in ("layer", "tokens"):
        if given and getattr(args, option) is not None:
            raise ValueError(f"compare: --{option} belongs to the bundled GPT, not to --{given[0]}")
    if args.seed < 0:
        raise ValueError(f"compare: --seed is {args.seed}; wanted 0 or more")
    dtype = None if args.dtype is None else float_type(args.dtype)
    if args.npz is not None:
        return from_npz(args.npz, dtype, args.mask)
    mask = causal() if args.mask is None else mask_of(args.mask)
    options = {} if mask is None else {"mask": mask}
    if args.shape is not None:
        q, k, v = random_inputs(args.shape, args.seed, float_type(DTYPE) if dtype is None else dtype)
        return Problem(q, k, v, f"standard normal, seed {args.seed}", options)
    q, k, v, source = bundled_inputs(args.layer, TOKENS if args.tokens is None else args.tokens)
    q, k, v = (x if dtype is None else x.astype(dtype) for x in (q, k, v))
    return Problem(q, k, v, source, options)


def float_type(name: str) -> np.dtype[Any]:
    """Return the dtype of one of the names in `refattn.arrays.FLOATS`."""
    if name not in FLOATS:
        raise ValueError(f"compare: --dtype is {name!r}; wanted one of {', '.join(FLOATS)}")
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError("dtype bfloat16 needs ml_dtypes: python -m pip install ml_dtypes") from error
    return np.dtype(ml_dtypes.bfloat16)


def mask_of(text: str) -> Mask | None:
    """Return the mask that `text` spells, None for "none"."""
    return None if text.strip().lower() == "none" else parse(text)


def bundled_inputs(layer: int | None, tokens: int) -> tuple[Array, Array, Array, str]:
    """Return q, k, v of one layer of the bundled GPT while it reads its text, and a line that says so."""
    from refattn.models import corpus  # the other inputs do not need the models
    from refattn.models.gpt import GPT

    check_count("compare", "--tokens", tokens)
    text = corpus.text()
    if tokens > len(text):
        raise ValueError(f"compare: --tokens is {tokens}, but the bundled text has {len(text)} characters")
    gpt = GPT.bundled()
    layers = gpt.config.layers
    layer = layers // 2 if layer is None else layer
    if not 0 <= layer < layers:
        raise ValueError(f"compare: --layer is {layer}; the bundled GPT has the layers 0 to {layers - 1}")
    q, k, v = gpt.attention_inputs(gpt.encode(text[:tokens]), layer)
    return q, k, v, f"layer {layer} of {layers} of the bundled GPT, reading {tokens:,} characters of its text"


def random_inputs(shape: str, seed: int, dtype: np.dtype[Any]) -> tuple[Array, Array, Array]:
    """Return standard normal q (b, h, t, d), k and v (b, hk, t, d) for the text "b,h,hk,t,d".

    Examples
    --------
    >>> q, k, v = random_inputs("1,4,2,8,16", 0, np.dtype(np.float32))
    >>> q.shape, k.shape
    ((1, 4, 8, 16), (1, 2, 8, 16))
    """
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in shape.split(",")]
    if len(numbers) != 5 or min(numbers) < 1:
        raise ValueError(f"compare: --shape is {shape!r}; wanted five positive integers, as in 1,8,2,1024,64")
    b, h, hk, t, d = numbers
    rng = np.random.default_rng(seed)
    drawn = np.float64 if dtype == np.float64 else np.float32
    q, k, v = (rng.standard_normal((b, heads, t, d), drawn).astype(dtype) for heads in (h, hk, hk))
    return q, k, v


def from_npz(path: str, dtype: np.dtype[Any] | None, mask: str | None) -> Problem:
    """Read a problem from an npz file; see `KEYS` for the arrays that it may hold."""
    arrays = _load(path)
    unknown, missing = sorted(set(arrays) - set(KEYS)), [key for key in KEYS[:3] if key not in arrays]
    if missing or unknown:
        wrong = [f"no {key}" for key in missing] + [f"an unknown {key}" for key in unknown]
        raise ValueError(f"{path}: there is {' and '.join(wrong)}; wanted q, k, v, and at most {', '.join(KEYS[3:])}")
    if "mask" in arrays and mask is not None:
        raise ValueError(f"{path} has a mask of its own; leave out --mask, or the mask in the file")
    floats = {key: arrays[key] for key in ("q", "k", "v", "bias", "sinks") if key in arrays}
    for name, x in floats.items():
        check_floats(path, 0, **{name: x})
    if dtype is not None:
        floats = {key: x.astype(dtype) for key, x in floats.items()}
    options: dict[str, Any] = {key: floats[key] for key in ("bias", "sinks") if key in floats}
    for key in NUMBERS:
        if key in arrays:
            if arrays[key].size != 1 or arrays[key].dtype.kind not in "iuf":
                raise ValueError(f"{path}: {key} is {arrays[key].dtype} {arrays[key].shape}; wanted one number")
            options[key] = arrays[key].item()
    pattern = mask_of(mask) if mask is not None else from_array(arrays["mask"]) if "mask" in arrays else None
    if pattern is not None:
        options["mask"] = pattern
    return Problem(floats["q"], floats["k"], floats["v"], path, options)


def _load(path: str) -> dict[str, Array]:
    with open(path, "rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.lib.npyio.NpzFile):
                return {key: archive[key] for key in archive.files}
        except Exception as error:  # a damaged archive fails in many ways: zipfile, zlib, struct, the header's parser
            raise ValueError(f"{path}: not a readable npz file: {error}") from error
    raise ValueError(f"{path}: a single array, not an npz file with q, k, v")
