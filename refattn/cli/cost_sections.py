"""The tables of `refattn cost` for one call: model, FLOPs, pairs, memory, bytes moved, and what a device adds."""

import math
from dataclasses import replace

from refattn.arrays import FLOATS
from refattn.cli import cost_roofs
from refattn.cli.cost_model import Asked
from refattn.cli.cost_numbers import Cell, Number, Section, cache_name, exps, label, matrix_bytes, moved, step_flops
from refattn.costs.flops import RECOMPUTED
from refattn.costs.latent import Latent
from refattn.costs.mechanisms import Call, Mechanism, Softmax
from refattn.costs.memory import OPTIMIZERS
from refattn.costs.pairs import tile_pairs
from refattn.costs.traffic import ALGORITHMS, TILE

TILES = (64, 128)
LONGEST_TILED = 262_144
"""Keys up to which tiles are counted, one by one."""


def sections(asked: Asked) -> list[Section]:
    """Return everything that is counted for a call, in the order of the print."""
    found = [_model(asked), _training_flops(asked) if asked.phase == "train" else _flops(asked), _pairs(asked)]
    found += [_memory(asked)]
    found += [_kept(asked), _state(asked)] if asked.phase == "train" else []
    found += [] if asked.past else [_moved(asked)]
    if asked.hw is not None:
        found += [cost_roofs.roofs(asked)]
        found += [] if asked.past else [cost_roofs.components(asked)]
        found += [cost_roofs.device(asked)]
    return found


def _model(asked: Asked) -> Section:
    m = asked.model
    rows: dict[str, tuple[Cell, ...]] = {"parameters": (Number(m.params(), "parameters"),)}
    if m.active_params() != m.params():
        rows["parameters that a token visits"] = (Number(m.active_params(), "parameters"),)
    rows["weights"] = (Number(int(m.params() * asked.size), "B"),)
    notes = []
    if not asked.free_mask:
        crossover = m.crossover_length(asked.causal)
        if crossover is None:
            notes = ["At no length do scores and values cost as much as the rest of the layers."]
        else:
            rows["crossover length"] = (Number(crossover, "tokens"),)
            notes = ["Crossover: from that length on, scores and values cost as much as the rest of the layers."]
    return Section("model", "Model", ("",), rows, tuple(notes))


def _flops(asked: Asked) -> Section:
    """FLOPs by part; in decoding with MLA, as it is and with keys and values made again."""
    ways = {"FLOPs": asked}
    if asked.phase == "decode" and any(isinstance(x, Latent) for x in asked.model.mechanism):
        ways = {"absorbed": _latent(asked, absorbed=True), "expanded": _latent(asked, absorbed=False)}
    found = {name: step_flops(way) for name, way in ways.items()}
    columns = tuple(x for name in found for x in (name, "share" if len(ways) == 1 else f"share {name}"))

    def row(part: str) -> tuple[Cell, ...]:
        pairs = [(Number(f[part], "FLOP"), Number(100 * f[part] / f["total"], "%")) for f in found.values()]
        return tuple(cell for pair in pairs for cell in pair)

    parts = [part for part in next(iter(found.values())) if part not in ("softmax", "total")]
    rows = {part: row(part) for part in (*parts, "total")}
    for name, numbers in (
        ("softmax", [Number(f["softmax"], "FLOP") for f in found.values()]),
        ("exponentials", [Number(exps(way), "exp") for way in ways.values()]),
    ):
        rows[name] = tuple(cell for number in numbers for cell in (number, None))
    notes = ["2 a multiply-add. The softmax, 5 operations a pair, runs beside the matrix unit: not in the total."]
    if len(ways) > 1:
        notes.append("Expanded makes the keys and values of all cached tokens again; absorbed reads what is cached.")
    return Section("flops", f"FLOPs of one {_pass(asked)}", columns, rows, tuple(notes))


def _pass(asked: Asked) -> str:
    return "token" if asked.phase == "decode" and asked.batch == 1 else "pass"


def _latent(asked: Asked, absorbed: bool) -> Asked:
    mixed = tuple(replace(x, absorbed=absorbed) if isinstance(x, Latent) else x for x in asked.model.mechanism)
    return replace(asked, model=replace(asked.model, mechanism=mixed))


def _training_flops(asked: Asked) -> Section:
    call = asked.call
    found = [asked.model.forward_flops(call.batch, call.new, 0, call.causal)]
    found += [step_flops(asked, recompute) for recompute in RECOMPUTED]
    rows: dict[str, tuple[Cell, ...]] = {}
    for part in [part for part in found[0] if part not in ("softmax", "total")] + ["total", "softmax"]:
        rows[part] = tuple(Number(f[part], "FLOP") for f in found)
    once = exps(asked)
    rows["exponentials"] = (Number(once, "exp"), *(Number(once * (1 + (r != "none")), "exp") for r in RECOMPUTED))
    notes = (
        "forward: one pass; the others: a step, forward and backward, by what backward computes again.",
        "The softmax, 5 operations a pair, runs beside the matrix unit: it is not in the total.",
    )
    return Section("flops", "FLOPs of one training step", ("forward", *RECOMPUTED), rows, notes)


def _pairs(asked: Asked) -> Section:
    """Visible pairs of a layer, and those in tiles that show any, for each kind of layer."""
    m, call = asked.model, asked.call
    heads = call.batch * m.heads
    rows: dict[str, tuple[Cell, ...]] = {}
    for mechanism in dict.fromkeys(m.mechanism):
        if not mechanism.softmax:
            continue
        layers = m.mechanism.count(mechanism)
        exact = mechanism.pairs(m, call)
        cells: list[Cell] = [None if exact % heads else Number(exact // heads, "pairs"), Number(exact, "pairs")]
        for side in TILES:
            tiled = _tiled(mechanism, call, heads, side)
            waste = None if tiled is None or not exact else Number(100 * (tiled / exact - 1), "%")
            cells += [None if tiled is None else Number(tiled, "pairs"), waste]
        rows[f"{label(mechanism)}, {layers} layer{'s' if layers > 1 else ''}"] = tuple(cells)
    columns = ["a head", "a layer", *(text for n in TILES for text in (f"tiles {n}", f"waste {n}"))]
    notes = ["Waste: hidden pairs of square tiles that show any, which a tiled kernel computes too."]
    if call.keys > LONGEST_TILED:
        notes = [f"Tiles are counted up to {LONGEST_TILED:,} keys."]
    if not rows:
        notes = ["No layer has scores."]
    return Section("pairs", "Query-key pairs", tuple(columns), rows, tuple(notes))


def _tiled(mechanism: Mechanism, call: Call, heads: int, side: int) -> int | None:
    """Return the pairs of a layer in tiles that show any."""
    if not isinstance(mechanism, Softmax) or call.keys > LONGEST_TILED:
        return None
    mask = mechanism.visible(call)
    patterns = 1 if mask is None else math.prod(mask.lead)
    return tile_pairs(mask, call.new, call.keys, side, side) * (heads // patterns)


def _memory(asked: Asked) -> Section:
    m, call, dtype = asked.model, asked.call, asked.dtype
    layer = matrix_bytes(asked)
    rows: dict[str, tuple[Cell, ...]] = {}
    if layer:
        rows["scores, one head"] = (Number(layer // (asked.batch * m.heads), "B"),)
        rows["scores, one layer"] = (Number(layer, "B"),)
    if asked.phase == "prefill" and not call.past and dtype in FLOATS and all(type(x) is Softmax for x in m.mechanism):
        peak = m.peak_attention_bytes(asked.batch, asked.seq, dtype, "numpy", asked.causal)
        rows["refattn.attention on numpy, at its peak"] = (Number(peak, "B"),)
    if asked.keeps:
        kept = m.kv_cache_bytes(asked.batch, call.keys, dtype)
        further = m.kv_cache_bytes(1, call.keys + 1, dtype) - m.kv_cache_bytes(1, call.keys, dtype)
        name = cache_name(m)
        rows[f"{name}, each further token"] = (Number(further, "B"),)
        rows[f"{name}, all layers and sequences"] = (Number(kept, "B"),)
    notes = () if layer else ("No layer has a matrix of scores.",)
    return Section("memory", f"Memory, {dtype}", ("",), rows, notes)


def _kept(asked: Asked) -> Section:
    m = asked.model
    kept = {r: m.activation_bytes(asked.batch, asked.seq, r) for r in RECOMPUTED}
    rows: dict[str, tuple[Cell, ...]] = {
        r: (Number(n, "B"), Number(n / kept["none"], "×"), Number(step_flops(asked, r)["total"], "FLOP"))
        for r, n in kept.items()
    }
    notes = (
        "In 16 bits, whatever --dtype says; recompute: what backward computes again instead of keeping it.",
        "attention keeps no scores, as FlashAttention; full keeps the input of each layer.",
    )
    return Section("activations", "Activations kept for backward", ("bytes", "of none", "FLOPs"), rows, notes)


def _state(asked: Asked) -> Section:
    rows: dict[str, tuple[Cell, ...]] = {
        name: (Number(asked.model.training_state_bytes(name), "B"), Number(n, "B/parameter"))
        for name, n in OPTIMIZERS.items()
    }
    return Section("state", "Weights, gradients and optimizer", ("bytes", "a parameter"), rows)


def _moved(asked: Asked) -> Section:
    ways = {name: moved(asked, name) for name in reversed(ALGORITHMS)}
    recompute = {"flash": "attention", "materialised": "none"}
    if not any(x.softmax for x in asked.model.mechanism):
        ways = {"bytes": ways["flash"]}
    rows: dict[str, tuple[Cell, ...]] = {
        part: tuple(Number(found[part], "B") for found in ways.values()) for part in next(iter(ways.values()))
    }
    work = {name: step_flops(asked, recompute.get(name, "none"))["total"] for name in ways}
    rows["intensity"] = tuple(Number(work[name] / found["total"], "FLOP/B") for name, found in ways.items())
    notes = ["stream: what the matrices around mixing read and write. scores: written, read, written, read."]
    if len(ways) > 1:
        notes.append(f"flash reads k and v once for each {TILE} queries, materialised once.")
    return Section("moved", "Bytes moved between memory and processor", tuple(ways), rows, tuple(notes))
