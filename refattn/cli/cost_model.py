"""Which model, call and device `refattn cost` counts for: read from its arguments, or refused."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from refattn import masks
from refattn.arrays import check_count
from refattn.costs.mechanisms import Call, Mechanism, Softmax
from refattn.costs.memory import itemsize
from refattn.costs.names import PHASES, check_phase
from refattn.costs.transformer import Transformer
from refattn.masks import Mask

SIZES = ("heads", "head_dim", "d_model", "layers", "kv_heads", "ffn", "gated", "vocab", "mechanism")
"""Arguments that say what the model is, and that --model says instead."""

LONGEST = 131_072
"""Under --mask: a mask without structure is counted pair by pair."""


@dataclass(frozen=True)
class Asked:
    """A model, a call of it, and a device or None."""

    model: Transformer
    batch: int
    seq: int
    past: int
    phase: str
    causal: bool
    dtype: str
    hw: Any = None
    free_mask: bool = False
    """Whether --mask is among what may be seen."""

    @property
    def call(self) -> Call:
        """The layers' call: in decoding the last of `seq` tokens is new."""
        decoding = self.phase == "decode"
        new, past = (1, self.seq - 1) if decoding else (self.seq, self.past)
        return self.model.call(self.batch, new, past, self.causal)

    @property
    def calibrated(self) -> bool:
        """Whether the device's numbers were measured."""
        return hasattr(self.hw, "overhead")  # which no data sheet gives

    @property
    def keeps(self) -> bool:
        """Whether something is kept for a next token: nothing follows where every token sees all."""
        return self.phase != "train" and (self.causal or self.phase == "decode")

    @property
    def size(self) -> float:
        """Bytes of a number."""
        return itemsize(self.dtype)

    def facts(self) -> dict[str, str]:
        """Return the model, the call and the device in words."""
        from refattn.cli.calibrate import about  # which measures, and needs all that is measured

        call = self.call
        cached = f" behind {call.past:,} cached" if call.past else ""
        many = f"{call.batch:,} × " if call.batch > 1 else ""
        sees = "causal" if self.causal else "bidirectional"
        what = {"prefill": "prefill", "decode": "decode", "train": "training step"}[self.phase]
        tokens = f"{many}{call.new:,} token{'s' if call.new > 1 else ''}"
        found = {"model": describe(self.model), "call": f"{what}: {tokens}{cached}, {sees}, {self.dtype}"}
        if 0 < self.model.positions < call.keys:
            found["note"] = f"the model has learned {self.model.positions:,} positions: it could not run this"
        if self.hw is None:
            return found
        source = about(self.hw) if self.calibrated else self.hw.source
        return found | {"device": f"{self.hw.name}: {source}, {self.hw.date}"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that say what is counted."""
    group = parser.add_argument_group("the model: --model, or its sizes")
    group.add_argument("--model", metavar="NAME", help="one that --list shows, or a config.json or its folder")
    for option, text in (
        ("--heads", "query heads"),
        ("--head-dim", "width of a head (default: d_model / heads)"),
        ("--d-model", "width of the model (default: heads × head_dim)"),
        ("--layers", "layers (default: 1)"),
        ("--kv-heads", "heads of keys and values (default: as many as heads)"),
        ("--ffn", "hidden width of the feed-forward network, 0 for none (default: 4 d_model)"),
        ("--vocab", "tokens of the vocabulary; 0 for neither embedding nor head (default)"),
    ):
        group.add_argument(option, type=int, metavar="N", help=text)
    group.add_argument("--gated", action="store_true", default=None, help="three matrices in the feed-forward network")
    group.add_argument("--mechanism", metavar="NAME", help="what mixes tokens (default: softmax); see --list")
    group = parser.add_argument_group("the call")
    group.add_argument("--seq", type=int, metavar="N", help="tokens of a sequence; in decoding the last one is new")
    group.add_argument("--batch", type=int, metavar="B", help="sequences (default: 1)")
    group.add_argument("--past", type=int, metavar="P", help="cached tokens before those of a prefill (default: 0)")
    group.add_argument("--phase", default="prefill", metavar="P", help=f"of {', '.join(PHASES)} (default: prefill)")
    group.add_argument("--dtype", default="bfloat16", metavar="T", help="of all numbers (default: bfloat16)")
    group.add_argument(
        "--causal",
        action=argparse.BooleanOptionalAction,
        help="a token sees itself and those before it (default, but for encoders)",
    )
    group.add_argument("--window", type=int, metavar="W", help="of them, itself and the W - 1 nearest")
    group.add_argument("--mask", metavar="EXPR", help='of them, what a mask shows, such as "window(255, 0)"')
    group.add_argument("--hw", metavar="NAME", help="one that --list shows, or a file of refattn calibrate")


def read(args: argparse.Namespace, seq: int | None, batch: int) -> Asked:
    """Return what is asked, checked.

    Raises
    ------
    ValueError, TypeError, LookupError, OSError
        For arguments that are missing, contradict each other, or name nothing.
    """
    if seq is None:
        raise ValueError("cost: no length; give --seq N")
    check_phase("cost", "--phase", args.phase)
    past = 0 if args.past is None else args.past
    check_count("cost", "--seq", seq)
    check_count("cost", "--batch", batch)
    check_count("cost", "--past", past, least=0)
    if past and args.phase != "prefill":
        raise ValueError(f"cost: --past is of a prefill, not of {args.phase}; in decoding --seq counts the cached ones")
    itemsize(args.dtype)
    model = _narrowed(_model(args), args.window, None if args.mask is None else masks.parse(args.mask))
    if args.mask is not None and seq + past > LONGEST:
        raise ValueError(f"cost: --seq is {seq + past}; wanted at most {LONGEST} under --mask")
    causal = model.logits if args.causal is None else args.causal
    hw = None
    if args.hw is not None:
        hw = device(args.hw)
        hw.rate(args.dtype)  # LookupError for a dtype that it has no rate of
    return Asked(model, batch, seq, past, args.phase, causal, args.dtype, hw, args.mask is not None)


def describe(m: Transformer) -> str:
    """Return a model's sizes in words.

    Examples
    --------
    >>> describe(Transformer(layers=1, d_model=768, heads=12, ffn=3072))
    '1 layer of width 768: softmax, 12 heads of 64, ffn 3,072'
    """
    parts = [", ".join(dict.fromkeys(x.name for x in m.mechanism))]
    shared = f", {m.kv} of keys and values" if m.kv < m.heads and any(x.softmax for x in m.mechanism) else ""
    parts.append(f"{m.heads} heads of {m.head_width}{shared}" if m.heads > 1 else f"1 head of {m.head_width}")
    parts += [f"ffn {m.ffn_width:,}{' gated' if m.gated else ''}"] if m.ffn_width else []
    parts += [f"{m.experts.active} of {m.experts.count} experts of {m.experts.ffn:,}"] if m.experts else []
    parts += [f"vocabulary {m.vocab:,}"] if m.vocab else []
    layers = f"{m.layers} layer{'s' if m.layers > 1 else ''} of width {m.d_model:,}"
    return f"{m.name + ', ' if m.name else ''}{layers}: {', '.join(parts)}"


def _model(args: argparse.Namespace) -> Transformer:
    given = [f"--{name.replace('_', '-')}" for name in SIZES if getattr(args, name) is not None]
    if args.model is not None:
        if given:
            raise ValueError(f"cost: --model and {', '.join(given)} both say what the model is; wanted one of the two")
        return named(args.model)
    if args.heads is None or (args.head_dim is None and args.d_model is None):
        raise ValueError("cost: no model; give --model NAME, or --heads N and --head-dim N (or --d-model N)")
    for name in ("heads", "head_dim", "d_model", "layers", "kv_heads"):
        if getattr(args, name) is not None:
            check_count("cost", f"--{name.replace('_', '-')}", getattr(args, name))
    return Transformer(
        layers=1 if args.layers is None else args.layers,
        d_model=args.heads * args.head_dim if args.d_model is None else args.d_model,
        heads=args.heads,
        kv_heads=args.kv_heads,
        head_dim=args.head_dim,
        ffn=args.ffn,
        gated=bool(args.gated),
        vocab=0 if args.vocab is None else args.vocab,
        mechanism=args.mechanism,
    )


def named(name: str) -> Transformer:
    """Return a preset's model, or that of a config.json or of its folder."""
    from refattn.costs.presets import preset

    path = Path(name)
    if path.suffix == ".json" or path.is_dir() or len(path.parts) > 1:
        return Transformer.from_config(name)
    return preset(name)


def device(name: str) -> Any:
    """Return a processor by its name, or the calibration in a file."""
    from refattn.costs.hardware import hardware

    if not name.endswith(".json"):
        return hardware(name)
    from refattn.cli.calibrate import load

    return load(name)[0]


def _narrowed(m: Transformer, window: int | None, mask: Mask | None) -> Transformer:
    """Return m with less to be seen in each layer that has scores."""
    if window is None and mask is None:
        return m
    if window is not None:
        check_count("cost", "--window", window)
    if not any(isinstance(x, Softmax) for x in m.mechanism):
        raise ValueError(f"cost: no layer has scores, all are {m.mechanism[0].name}; --window and --mask need some")

    def one(mechanism: Mechanism) -> Mechanism:
        if not isinstance(mechanism, Softmax):
            return mechanism
        windows = [w for w in (mechanism.window, window) if w is not None]
        seen = mask if mechanism.mask is None else mechanism.mask if mask is None else mechanism.mask & mask
        return replace(mechanism, window=min(windows, default=None), mask=seen)

    return replace(m, mechanism=tuple(one(x) for x in m.mechanism))
