"""What a pass needs: arguments that make sense, memory, and the counts that its time is held against."""

from typing import Any

from refattn import dispatch
from refattn.arrays import check_count
from refattn.costs.flops import forward_flops, train_flops
from refattn.costs.machine import free_memory
from refattn.costs.mechanisms import Softmax
from refattn.costs.names import unknown
from refattn.costs.traffic import PHASES
from refattn.costs.units import size
from refattn.watch.network import Network


def check(network: Network, batch: int, seq: int, phase: str, backend: str) -> None:
    """Raise what `profile` raises for bad arguments, and where the pass does not fit into free memory."""
    check_count("profile", "batch", batch)
    check_count("profile", "seq", seq)
    if phase not in PHASES:
        raise ValueError(f"profile: phase is {phase!r}; wanted one of {', '.join(PHASES)}")
    if backend not in (*dispatch.backends(), dispatch.AUTO):
        raise unknown("backend", backend, [*dispatch.backends(), dispatch.AUTO])
    if network.sizes.positions and seq > network.sizes.positions:
        raise ValueError(f"profile: seq is {seq}; the model has {network.sizes.positions} positions")
    if phase == "decode" and not network.causal:
        raise ValueError("profile: phase is decode; this model sees all tokens at once, so it has none")
    needed, free = needed_bytes(network.sizes, batch, seq, phase, backend), free_memory()
    if free is not None and needed > free:
        raise ValueError(f"profile: a pass needs about {size(needed)} beside the weights; {size(free)} are free")


def needed_bytes(m: Any, batch: int, seq: int, phase: str, backend: str) -> int:
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
