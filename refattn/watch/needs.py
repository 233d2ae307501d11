"""What a pass needs: arguments that make sense, memory, and the counts that its time is held against."""

import dataclasses
from typing import Any

from refattn import dispatch
from refattn.arrays import check_count
from refattn.costs.flops import forward_flops, train_flops
from refattn.costs.machine import free_memory
from refattn.costs.mechanisms import Softmax
from refattn.costs.names import check_phase, unknown
from refattn.costs.transformer import Transformer
from refattn.costs.units import size
from refattn.watch.network import Network

ASSUMED = 5e10
"""FLOP/s that a pass is taken to reach when layers are chosen."""
DRAWN = 1 << 31
"""Bytes of layers that are drawn without being asked for."""


def check(m: Transformer, causal: bool, batch: int, seq: int, phase: str, backend: str) -> None:
    """Raise what `profile` raises for bad arguments, and where the pass does not fit into free memory."""
    check_count("profile", "batch", batch)
    check_count("profile", "seq", seq)
    check_phase("profile", "phase", phase)
    if backend not in (*dispatch.backends(), dispatch.AUTO):
        raise unknown("backend", backend, [*dispatch.backends(), dispatch.AUTO])
    if m.positions and seq > m.positions:
        raise ValueError(f"profile: seq is {seq}; the model has {m.positions} positions")
    if phase == "decode" and not causal:
        raise ValueError("profile: phase is decode; this model sees all tokens at once, so it has none")
    needed, free = needed_bytes(m, batch, seq, phase, backend), free_memory()
    if free is not None and needed > free:
        raise ValueError(f"profile: a pass needs about {size(needed)} beside the weights; {size(free)} are free")


def needed_bytes(m: Transformer, batch: int, seq: int, phase: str, backend: str) -> int:
    """Return roughly what a pass over m's layers allocates in float32, the weights not included."""
    tokens = batch * (1 if phase == "decode" else seq)
    widest = max(m.d_model, *(x.columns for n in range(m.layers) for x in (*m.mechanism[n].matrices(m), *m.feed(n))))
    found = 4 * tokens * (4 * widest + (2 * m.vocab if m.logits else 0))
    if phase == "decode":
        return int(found + m.kv_cache_bytes(batch=batch, seq=seq, dtype="float32"))
    if any(isinstance(x, Softmax) for x in m.mechanism):
        said = backend in dispatch.backends() and hasattr(_module(backend), "peak_attention_bytes")
        reference = backend == dispatch.REFERENCE
        peak = m.peak_attention_bytes(batch=batch, seq=seq, backend=backend) if said or reference else 0
        found += peak * (2 if phase == "train" else 1)
    if phase == "train":
        found += 2 * m.activation_bytes(batch=batch, seq=seq, recompute="attention") + 4 * m.active_params()
    return int(found)


def _module(backend: str) -> Any:
    return None if backend == dispatch.REFERENCE else dispatch.load(backend)


def counts(
    network: Network, batch: int, seq: int, phase: str, backend: str
) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Return FLOPs, exponentials, and the bytes of materialised scores, by component."""
    m, train, causal = network.sizes, phase == "train", network.causal
    new, past = (1, seq - 1) if phase == "decode" else (seq, 0)
    found = train_flops(m, batch, seq, causal, "attention") if train else forward_flops(m, batch, new, past, causal)
    flops = {
        "projection": found["qkvo"],
        "attention": found["scores"] + found["values"],
        "scan": found["scan"],
        "ffn": found["ffn"],
        "head": found["head"],
    }
    call, twice = m.call(batch, new, past, causal), 2 if train else 1
    exps = {"attention": 0, "scan": 0, "ffn": 0}
    for layer, mechanism in enumerate(m.mechanism):
        exps["attention" if mechanism.softmax else "scan"] += twice * mechanism.work(m, call).exps
        exps["ffn"] += twice * call.tokens * sum(x.columns for x in m.feed(layer) if x.name in ("up", "k"))
    nbytes = {}
    if backend == dispatch.REFERENCE:
        moved = m.bytes_moved(batch, seq, phase, "materialised", "float32", causal)
        nbytes["attention"] = moved["scores"]
    return flops, exps, nbytes


def fitting(m: Transformer, batch: int, seq: int, phase: str, backend: str, seconds: float) -> int:
    """Return how many of m's layers run in a pass of about `seconds`; 1 at least.

    They have 2 GiB of weights at most, and all that is allocated takes half of the free memory at most.

    Examples
    --------
    >>> m = Transformer(layers=4, d_model=128, heads=4)
    >>> fitting(m, 1, 64, "prefill", "numba", 1e9), fitting(m, 1, 64, "prefill", "numba", 1e-9)
    (4, 1)
    """
    free = free_memory()
    for layers in range(m.layers, 1, -1):
        part = first_layers(m, layers)
        held = weight_bytes(part, phase) + needed_bytes(part, batch, seq, phase, backend)
        new = 1 if phase == "decode" else seq
        flops = part.forward_flops(batch, new, seq - new)["total"] * (3 if phase == "train" else 1)
        quick = flops <= seconds * ASSUMED and 4 * (part.params() - m.vocab * m.d_model) <= DRAWN
        if quick and (free is None or 2 * held <= free):
            return layers
    return 1


def first_layers(m: Transformer, layers: int) -> Transformer:
    """Return m with its first layers only."""
    return dataclasses.replace(m, layers=layers, mechanism=m.mechanism[:layers])


def weight_bytes(m: Transformer, phase: str) -> int:
    """Return the bytes of m's float32 parameters, and of their gradients where it is trained."""
    return 4 * m.params() * (2 if phase == "train" else 1)
