"""Bytes that move: weights, activations around mixing, keys and values, and with them the matrix of scores or not.

Materialised attention writes the scores, reads them, writes the weights, and reads those: the matrix moves four times.
Flash attention (Dao et al., 2022, arXiv:2205.14135, Theorem 2) reads q and writes o once, and k and v once for each
tile of queries that stays in fast memory.
"""

from typing import TYPE_CHECKING

from refattn.costs.memory import itemsize
from refattn.costs.names import check_phase

if TYPE_CHECKING:
    from refattn.costs.mechanisms import Call, Mechanism
    from refattn.costs.transformer import Transformer

TILE = 128
"""Queries that stay in fast memory."""

ALGORITHMS = ("materialised", "flash")


def bytes_moved(
    m: "Transformer", batch: int, seq: int, phase: str, algorithm: str, dtype: str, causal: bool
) -> dict[str, int]:
    """Return the bytes of one pass, read and written.

    Parameters
    ----------
    m : Transformer
    batch, seq : int
        In decoding `seq` tokens are cached or new, and one of them is new.
    phase : {"prefill", "decode", "train"}
        Training counts forward once and backward twice, as the products do.
    algorithm : {"materialised", "flash"}
        How softmax attention is computed.
    dtype : str
        Of all numbers.
    causal : bool
        Flash then skips tiles in which nothing is visible; a materialised matrix is whole.

    Returns
    -------
    dict of int
        ``weights``, ``q``, ``k``, ``v``, ``o`` (for a mechanism with a state: its inputs and outputs), ``scores``,
        ``state`` (read and written), ``stream`` (what the other matrices read and write), ``total``.

    Raises
    ------
    ValueError
        For a phase or an algorithm that is none of these.
    """
    check_phase("bytes_moved", "phase", phase)
    if algorithm not in ALGORITHMS:
        raise ValueError(f"bytes_moved: algorithm is {algorithm!r}; wanted one of {', '.join(ALGORITHMS)}")
    call = m.call(batch, 1 if phase == "decode" else seq, seq - 1 if phase == "decode" else 0, causal)
    found = dict.fromkeys(("weights", "q", "k", "v", "o", "scores", "state", "stream"), 0)
    found["weights"] = _weights(m, call.tokens)
    for layer, mechanism in enumerate(m.mechanism):
        for part, n in _mixing(m, mechanism, call, algorithm).items():
            found[part] += n
        widths = [x.rows + x.columns for x in (*mechanism.matrices(m), *m.feed(layer))]
        found["stream"] += call.tokens * (sum(widths) + 2 * m.d_model)
    found["stream"] += call.tokens * (m.d_model + m.vocab if m.vocab and m.logits else 0)
    size = itemsize(dtype) * (3 if phase == "train" else 1)
    found = {part: int(n * size) for part, n in found.items()}
    return found | {"total": sum(found.values())}


def _weights(m: "Transformer", tokens: int) -> int:
    """Return the parameters that a pass reads: of experts as many as so many tokens visit at most, each once."""
    read = m.active_params() - (0 if m.tied and m.logits else m.vocab * m.d_model)  # a lookup: few rows
    if m.experts is not None:
        visited = min(m.experts.count, m.experts.active * tokens) - m.experts.active
        read += visited * m.expert_params()
    return read


def _mixing(m: "Transformer", mechanism: "Mechanism", call: "Call", algorithm: str) -> dict[str, int]:
    """Return the numbers that mixing moves in one layer."""
    inputs = call.tokens * mechanism.stored(m)
    if not mechanism.softmax:
        state = 2 * call.batch * mechanism.kept(m, call.keys)
        return {"q": inputs, "state": state}
    B, H, D, Dv = call.batch, m.heads, m.head_width, m.value_width
    queries = {"q": B * H * call.new * D, "o": B * H * call.new * Dv}
    kept = B * mechanism.kept(m, call.keys)
    if algorithm == "materialised" or call.new == 1:
        keys = kept * D // (D + Dv)
        scores = 4 * B * H * call.new * call.keys if algorithm == "materialised" else 0
        return queries | {"k": keys, "v": kept - keys, "scores": scores}
    # a tile of queries reads the keys that some query of it sees
    read = -(-mechanism.pairs(m, call) // (B * H * min(TILE, call.new)))
    read = max(read, min(call.keys, kept // max(1, B * m.kv * (D + Dv))))
    return queries | {"k": B * m.kv * read * D, "v": B * m.kv * read * Dv}
