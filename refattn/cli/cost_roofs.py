"""What a device adds to a count: three roofs, and whether its memory holds what must be there."""

import math

from refattn.cli.cost_model import Asked
from refattn.cli.cost_numbers import Cell, Number, Section, cache_name, exps, matrix_bytes, moved, step_flops
from refattn.costs.flops import RECOMPUTED
from refattn.costs.roofs import BANDWIDTH, EXPONENTIALS, PRODUCTS

OPTIMIZER = "adam-mixed"


def times(asked: Asked) -> dict[str, tuple[Number, Number, Number]]:
    """Return (work, rate, seconds) of each roof that is known: no computation with that much work is faster."""
    training, hw = asked.phase == "train", asked.hw
    flops = step_flops(asked, "attention")["total"]
    kind = "measured" if asked.calibrated else "bound"
    found = {PRODUCTS: (Number(flops, "FLOP"), Number(hw.rate(asked.dtype), "FLOP/s", kind))}
    if math.isfinite(hw.exp_rate):
        work = exps(asked) * (2 if training else 1)  # attention computes them again in backward
        found[EXPONENTIALS] = (Number(work, "exp"), Number(hw.exp_rate, "exp/s", kind))
    for name, number in _bytes(asked).items():
        found[name] = (number, Number(hw.bandwidth, "B/s", kind))
    return {name: (work, r, Number(work.value / r.value, "s", "bound")) for name, (work, r) in found.items()}


def _bytes(asked: Asked) -> dict[str, Number]:
    if asked.past:  # the new tokens' bytes, and what is cached once
        cached = asked.model.kv_cache_bytes(asked.batch, asked.past, asked.dtype)
        return {BANDWIDTH: Number(moved(asked, "flash")["total"] + cached, "B", "bound")}
    found = {name: Number(moved(asked, name)["total"], "B") for name in ("flash", "materialised")}
    if not any(x.softmax for x in asked.model.mechanism):
        return {BANDWIDTH: found["flash"]}
    return {f"{BANDWIDTH}, {name}": number for name, number in found.items()}


def bound(asked: Asked) -> tuple[str, Number]:
    """Return which roof bounds the call, without a matrix of scores in memory, and its time."""
    found = {name: row[2] for name, row in times(asked).items() if not name.endswith("materialised")}
    name = max(found, key=lambda roof: found[roof].value)
    return name.split(",")[0], found[name]


def roofs(asked: Asked) -> Section:
    """Return the table of roofs."""
    rows: dict[str, tuple[Cell, ...]] = dict(times(asked))
    name, least = bound(asked)
    rows["at least"] = (None, None, least)
    notes = [f"Bound by {name}: however well everything overlaps, these operations and bytes take no less."]
    if name == BANDWIDTH:
        notes.append("Larger tiles and fused steps move fewer bytes.")
    if EXPONENTIALS not in rows:
        notes.append("Its rate of exponentials is not known: they bound nothing here.")
    if asked.phase == "train":
        notes.append("With attention computed again in backward, as FlashAttention does.")
    if asked.past:
        notes.append("The bytes are those of the new tokens, and the cache once.")
    return Section("roofs", f"Roofs of {asked.hw.name}", ("work", "rate", "time"), rows, tuple(notes))


def components(asked: Asked) -> Section:
    """Return the time of each component, one after the other: bounds of hardware, predictions of a calibration."""
    from refattn.costs.prediction import predict

    found = predict(
        asked.model,
        on=asked.hw,
        batch=asked.batch,
        seq=asked.seq,
        phase=asked.phase,
        dtype=asked.dtype,
        causal=asked.causal,
    )
    rows: dict[str, tuple[Cell, ...]] = {
        name: (Number(seconds, "s", found.kind), Number(100 * seconds / found.seconds, "%", found.kind), by)
        for name, seconds, by in ((name, n, found.bound_by.get(name, "")) for name, n in found.parts.items())
    }
    rows["total"] = (Number(found.seconds, "s", found.kind), Number(100.0, "%", found.kind), "")
    notes = [
        "Each step by the roof nearest to it, one step after the other: what does not overlap takes at least this."
    ]
    if found.kind == "predicted":
        rows["from"] = (Number(found.low, "s", found.kind), None, "")
        rows["to"] = (Number(found.high, "s", found.kind), None, "")
        notes = ["On NumPy; from and to hold 80 % of the cases that the calibration has measured."]
    return Section("components", f"Time on {asked.hw.name}", ("time", "share", "bound by"), rows, tuple(notes))


def device(asked: Asked) -> Section:
    """Return what must lie in the device's memory, and what share of it that is."""
    m = asked.model
    parts: dict[str, int] = {}
    if asked.phase == "train":
        state = m.training_state_bytes(OPTIMIZER)
        parts[f"weights, gradients, {OPTIMIZER}"] = state
        for recompute in RECOMPUTED:
            kept = m.activation_bytes(asked.batch, asked.seq, recompute)
            parts[f"with activations, recompute {recompute}"] = state + kept
    else:
        parts["weights"] = int(m.params() * asked.size)
        if asked.keeps:
            parts[cache_name(m)] = m.kv_cache_bytes(asked.batch, asked.call.keys, asked.dtype)
            parts["both"] = sum(parts.values())
        if matrix_bytes(asked):
            kept = parts.get("both", parts["weights"])
            parts["and scores of a layer, materialised"] = kept + matrix_bytes(asked)
    rows: dict[str, tuple[Cell, ...]] = {}
    for name, n in parts.items():
        fits = "fits" if n <= asked.hw.memory else "does not fit"
        rows[name] = (Number(n, "B", "bound"), Number(100 * n / asked.hw.memory, "%", "bound"), fits)
    rows["device"] = (Number(asked.hw.memory, "B", "measured" if asked.calibrated else "exact"), None, None)
    notes = ("Without workspaces, fragments and what else a program keeps: it needs at least this.",)
    return Section("device", f"Memory of {asked.hw.name}", ("at least", "of device", ""), rows, notes)
