"""Mistakes in the numba backend, as changes to its source, that the conformance cases must fail.

Each is (name, module, what stands there once, what stands there instead, operations to judge, knobs). Knobs are
constants of modules, "module.NAME": value, that make the small problems of the cases take the way of large ones.
See tests/backends/test_numba_mutants.py.
"""

from typing import NamedTuple


class Mistake(NamedTuple):
    """One change to the source of one module."""

    name: str
    module: str
    old: str
    new: str
    operations: str
    knobs: dict = {}  # noqa: RUF012 - never written to


SCATTERED = {"global_.FEW": 0}
"""Global tokens are picked out however close they stand."""
STRIPS = {"select.STRIP": 40}
"""Scores are held a few rows at a time."""
GATHERED = {"paged.FEW": 0}
"""Pages are put together however few queries there are."""

PARTS = [
    Mistake(
        "lse of a part not carried",
        "parts",
        "back(lse[..., None], -np.inf)[..., 0]",
        "back(np.where(lse == -np.inf, lse, 0)[..., None], -np.inf)[..., 0]",
        "strided_attention",
    ),
    Mistake(
        "sink added in each part",
        "parts",
        "((o, lse),) = attend(call, q_part, k_part, v_part)\n        o, lse =",
        "((o, lse),) = attend(problem(q_part, k_part, v_part, mask=part.mask, sinks=sinks, **options),"
        " q_part, k_part, v_part)\n        o, lse =",
        "strided_attention dilated_attention",
    ),
    Mistake(
        "sinks forgotten where parts are merged",
        "parts",
        "    if sinks is not None:\n        add_sinks",
        "    if False:\n        add_sinks",
        "dilated_attention",
    ),
    Mistake(
        "queries of no part have lse 0",
        "parts",
        "back(lse[..., None], -np.inf)",
        "back(lse[..., None], 0)",
        "global_attention",
        SCATTERED,
    ),
    Mistake(
        "the last key of a row is not there",
        "parts",
        "-(-(Tk - np.arange(step)) // step)",
        "(Tk - np.arange(step)) // step",
        "dilated_attention",
    ),
    Mistake(
        "rows hold a place too many",
        "parts",
        "count = np.maximum(0, -(-(Tk - np.arange(step)) // step))",
        "count = np.full(step, length)",
        "dilated_attention",
    ),
    Mistake(
        "delta of the part",
        "parts",
        "dq, dk, dv, _ = gradients(",
        "delta_part = (part.queries.lay(do) * attend(call, q_part, k_part, v_part)[0][0]).sum(axis=-1)\n"
        "        dq, dk, dv, _ = gradients(",
        "strided_attention_vjp",
    ),
    Mistake(
        "lse of the part",
        "parts",
        "dq, dk, dv, _ = gradients(",
        "lse_part = attend(call, q_part, k_part, v_part)[0][1]\n        dq, dk, dv, _ = gradients(",
        "strided_attention_vjp",
    ),
    Mistake(
        "dlse with the wrong sign", "parts", "delta = delta - dlse", "delta = delta + dlse", "dilated_attention_vjp"
    ),
    Mistake("dk of the last part", "parts", "sums[1] += part", "sums[1] = part", "fixed_attention_vjp"),
    Mistake("dq of the last part", "parts", "sums[0] += part", "sums[0] = part", "strided_attention_vjp"),
    Mistake("dv of the last part", "parts", "sums[2] += part", "sums[2] = part", "strided_attention_vjp"),
    Mistake("dsinks with the wrong sign", "merge", "-np.exp(sink -", "np.exp(sink -", "dilated_attention_vjp"),
    Mistake(
        "dsinks averaged over sequences",
        "merge",
        ".sum(axis=0).astype(sinks.dtype)",
        ".mean(axis=0).astype(sinks.dtype)",
        "dilated_attention_vjp",
    ),
    Mistake(
        "do of blind rows is read",
        "parts",
        "np.where(o == 0, 0, do * o)",
        "(do * o)",
        "global_attention_vjp",
        SCATTERED,
    ),
    Mistake(
        "results stay in the compute dtype",
        "parts",
        "o.shape[-1]).astype(q.dtype, copy=False)",
        "o.shape[-1])",
        "dilated_attention",
    ),
    Mistake(
        "a summary of the own block besides",
        "parts",
        "np.minimum(self.stop[i], Tk)",
        "np.minimum(self.stop[i] + 1, Tk)",
        "fixed_attention nsa_attention",
    ),
]
PATTERNS = [
    Mistake(
        "window one step too wide",
        "dilated",
        "masks.window(window, window)",
        "masks.window(window + 1, window)",
        "dilated_attention",
    ),
    Mistake(
        "the future is hidden",
        "dilated",
        "masks.window(window, window)",
        "masks.window(window, 0)",
        "dilated_attention dilated_attention_vjp",
    ),
    Mistake("places without a key are seen", "dilated", " & masks.padding(count)", "", "dilated_attention"),
    Mistake(
        "local keys one too many",
        "strided",
        "masks.window(local - 1, 0)",
        "masks.window(local, 0)",
        "strided_attention",
    ),
    Mistake(
        "a strided key counted twice",
        "strided",
        "start - -(-local // stride)",
        "start - local // stride",
        "strided_attention",
    ),
    Mistake(
        "the nearest strided key dropped",
        "strided",
        "start - -(-local // stride)",
        "start - -(-local // stride) - 1",
        "strided_attention",
    ),
    Mistake(
        "rows aligned to the top left",
        "strided",
        "masks.causal(start - -(-local // stride))",
        "masks.causal(-(-(local - 1) // stride) - 1)",
        "strided_attention",
    ),
    Mistake("a summary dropped", "fixed", ">= block - summary", "> block - summary", "fixed_attention"),
    Mistake(
        "summaries aligned to the top left",
        "fixed",
        "(np.arange(Tq) + Tk - Tq) // block",
        "np.arange(Tq) // block",
        "fixed_attention",
    ),
    Mistake(
        "the future of the block is seen",
        "fixed",
        "masks.causal() & masks.chunked(block)",
        "masks.chunked(block)",
        "fixed_attention",
    ),
    Mistake(
        "a block of keys too many",
        "fixed",
        "Tk - Tq) // block) * summary",
        "Tk - Tq) // block + 1) * summary",
        "fixed_attention",
    ),
    Mistake(
        "global queries at the top left",
        "global_",
        "np.isin(np.arange(Tq) + Tk - Tq, keys)",
        "np.isin(np.arange(Tq), keys)",
        "global_attention",
        SCATTERED,
    ),
    Mistake(
        "global queries see global keys alone",
        "global_",
        "Part(picked(Tq, rows), AS_THEY_ARE, None)",
        "Part(picked(Tq, rows), picked(Tk, keys), None)",
        "global_attention",
        SCATTERED,
    ),
    Mistake(
        "a global token named twice counts twice",
        "global_",
        "np.unique(np.asarray(indices, np.int64))",
        "np.asarray(indices, np.int64)",
        "global_attention",
        SCATTERED,
    ),
    Mistake(
        "global queries see global keys twice",
        "global_",
        "Part(picked(Tq, others), picked(Tk, keys), None)",
        "Part(AS_THEY_ARE, picked(Tk, keys), None)",
        "global_attention",
        SCATTERED,
    ),
    Mistake("one draw for all heads", "random_", "heads[-1] if per_head else None", "None", "random_attention"),
    Mistake("the seed forgotten", "random_", "Random(n_keys, seed,", "Random(n_keys, 0,", "random_attention"),
    Mistake("one draw of blocks for all heads", "bigbird", "heads if per_head else None", "None", "bigbird_attention"),
    Mistake(
        "a window of three always",
        "bigbird",
        "masks.bigbird(block_size, n_window,",
        "masks.bigbird(block_size, 3,",
        "bigbird_attention",
    ),
    Mistake(
        "left and right exchanged",
        "local",
        "masks.window(left, right)\n    return attention(",
        "masks.window(right, left)\n    return attention(",
        "local_attention",
    ),
    Mistake(
        "one key more to the left",
        "local",
        "masks.window(left, right)\n    return attention(",
        "masks.window(None if left is None else left + 1, right)\n    return attention(",
        "local_attention",
    ),
    Mistake(
        "the layout transposed",
        "block_sparse",
        "mask = masks.block(layout, block_size)\n    return attention(",
        "mask = masks.block(layout, block_size)\n"
        "    mask = mask.dense(k.shape[-2], k.shape[-2])[..., : q.shape[-2], :].swapaxes(-1, -2).copy()"
        " if q.shape == k.shape else mask\n    return attention(",
        "block_sparse_attention",
    ),
    Mistake(
        "a bias forgotten where a form suits the mask",
        "sparse",
        "plain = bias is None and dropout_mask is None\n    if plain and isinstance(mask, Random):\n        found",
        "plain = dropout_mask is None\n    if plain and isinstance(mask, Random):\n        found",
        "sparse_attention",
    ),
    Mistake(
        "dropout forgotten where a form suits the mask",
        "sparse",
        "plain = bias is None and dropout_mask is None\n    if plain and isinstance(mask, Random):\n        lists",
        "plain = bias is None\n    if plain and isinstance(mask, Random):\n        lists",
        "sparse_attention_vjp",
    ),
    Mistake("one summary always", "sparse", "mask.block, mask.summary", "mask.block, 1", "sparse_attention"),
]
LONGFORMER = [
    Mistake(
        "window on one side",
        "longformer",
        "masks.window(window, window)",
        "masks.window(window, 0)",
        "longformer_attention",
        SCATTERED,
    ),
    Mistake(
        "global keys in the window too",
        "longformer",
        " & ~masks.global_tokens(named)",
        "",
        "longformer_attention",
        SCATTERED,
    ),
    Mistake(
        "global rows in ascending order",
        "longformer",
        "return order[",
        "return np.arange(len(given))[",
        "longformer_attention",
    ),
    Mistake("own keys forgotten", "longformer", "k if k_global is None else k_global", "k", "longformer_attention"),
    Mistake("own values forgotten", "longformer", "v if v_global is None else v_global", "v", "longformer_attention"),
    Mistake(
        "dlse of the global rows goes both ways",
        "longformer",
        "dlse_rest[..., rows] = 0",
        "dlse_rest[..., rows] *= 1",
        "longformer_attention_vjp",
    ),
    Mistake("dk of the global rows forgotten", "longformer", "dk + special.dk if", "dk if", "longformer_attention_vjp"),
    Mistake(
        "dsinks of the others alone",
        "longformer",
        "ordinary.dsinks + special.dsinks",
        "ordinary.dsinks",
        "longformer_attention_vjp",
    ),
]
CHOSEN = [
    Mistake(
        "what is forced does not count",
        "select",
        "np.where(forced, FORCED, ALLOWED)",
        "np.where(forced, ALLOWED, ALLOWED)",
        "moba_attention nsa_attention",
    ),
    Mistake(
        "no place named counts as the last",
        "select",
        "np.where(indices < 0, m, indices)",
        "np.where(indices < 0, m - 1, indices)",
        "topk_attention moba_attention nsa_attention",
    ),
    Mistake(
        "the last strip dropped",
        "select",
        "in range(0, rows, step)",
        "in range(0, max(rows - step + 1, 1), step)",
        "topk_attention nsa_attention",
        STRIPS,
    ),
    Mistake(
        "each strip asks the mask of the first",
        "selected",
        "plane_of[head], np.arange(i.start, i.stop)[:, None]",
        "plane_of[head], np.arange(i.stop - i.start)[:, None]",
        "topk_attention",
        STRIPS,
    ),
    Mistake("key heads round robin", "selected", "k[h // group]", "k[h % len(k)]", "topk_attention"),
    Mistake(
        "a negative scale does not choose",
        "selected",
        "s = factor * (q_h[i] @ k_h.T)",
        "s = q_h[i] @ k_h.T",
        "topk_attention",
    ),
    Mistake(
        "the mask of the first head for all",
        "selected",
        "pattern.at(plane_of[head],",
        "pattern.at(0 * plane_of[head],",
        "topk_attention",
    ),
    Mistake(
        "chunks: the key under the gate is hidden",
        "selected",
        "chunk, np.clip(position + 1, 0, Tk)",
        "chunk, np.clip(position, 0, Tk)",
        "moba_attention",
    ),
    Mistake(
        "chunks: the future of the own chunk is seen",
        "selected",
        "chunk, np.clip(position + 1, 0, Tk)",
        "chunk, np.full(Tq, Tk)",
        "moba_attention",
    ),
    Mistake(
        "chunks: the next one too",
        "selected",
        "allowed = chunks <= current",
        "allowed = chunks <= current + 1",
        "moba_attention",
    ),
    Mistake(
        "chunks: the own one is not forced",
        "selected",
        "as_state(allowed, chunks == current)",
        "as_state(allowed)",
        "moba_attention",
    ),
    Mistake(
        "branches: a block that has not ended is seen",
        "selected",
        "(position + 1 - block_size) // stride + 1",
        "(position - block_size) // stride + 2",
        "nsa_attention",
    ),
    Mistake("branches: the first block is not pinned", "selected", "(blocks == 0) | ", "", "nsa_attention"),
    Mistake("branches: the block before is not pinned", "selected", " | (blocks == current - 1)", "", "nsa_attention"),
    Mistake(
        "branches: window one key too wide",
        "selected",
        "masks.window(window - 1, 0)",
        "masks.window(window, 0)",
        "nsa_attention",
    ),
    Mistake(
        "branches: a head selects for its group",
        "selected",
        ".sum(axis=0)  # over the group",
        "[0]  # over the group",
        "nsa_attention",
    ),
    Mistake(
        "branches: importance of the own strides",
        "selected",
        "depth - 1 + m - n :: ratio",
        "depth - 1 + m :: ratio",
        "nsa_attention",
    ),
    Mistake(
        "branches: gates of selection and window exchanged",
        "selected",
        "enumerate((o_c, o_s, o_w))",
        "enumerate((o_c, o_w, o_s))",
        "nsa_attention",
    ),
    Mistake(
        "branches: lists of key heads round robin",
        "selected",
        "np.repeat(np.arange(len(index)), group)",
        "np.tile(np.arange(len(index)), group)",
        "nsa_attention",
    ),
    Mistake(
        "branches: the future of the own block is seen",
        "selected",
        "np.clip(position + 1, 0, Tk))\n",
        "np.full(Tq, Tk))\n",
        "nsa_attention",
    ),
    Mistake(
        "buckets: a key met twice counts twice",
        "selected",
        "index[..., 1:][index[..., 1:] == index[..., :-1]] = -1",
        "pass",
        "lsh_attention",
    ),
    Mistake("buckets: the own key besides", "selected", "& (j != own)", "", "lsh_attention"),
    Mistake(
        "buckets: who meets nobody sees nothing",
        "selected",
        "np.where(alone, np.arange(T), index[..., 0])",
        "index[..., 0]",
        "lsh_attention",
    ),
    Mistake(
        "buckets: the chunk ahead",
        "selected",
        "(rank[..., None] // chunk - 1)",
        "(rank[..., None] // chunk)",
        "lsh_attention",
    ),
    Mistake(
        "buckets: other buckets of the chunk are seen",
        "selected",
        "seen = taken & same &",
        "seen = taken &",
        "lsh_attention",
    ),
    Mistake(
        "buckets: keys keep their length", "selected", "k = q / np.where(norm == 0, 1, norm)", "k = q", "lsh_attention"
    ),
    Mistake(
        "lists of the first head for all",
        "gather",
        "planes(tuple(lead), heads)",
        "0 * planes(tuple(lead), heads)",
        "random_attention topk_attention",
    ),
    Mistake("lists: dlse ignored", "gather", "delta = delta - dlse.astype(dtype)", "pass", "random_attention_vjp"),
    Mistake(
        "dsinks of the first sequence",
        "merge",
        ".sum(axis=0).astype(sinks.dtype)",
        "[0].astype(sinks.dtype)",
        "random_attention_vjp",
    ),
    Mistake(
        "lists: do of blind rows is read",
        "gather",
        "np.where(o == 0, 0, do.astype(dtype) * o)",
        "(do.astype(dtype) * o)",
        "random_attention_vjp topk_attention",
    ),
]
PACKED = [
    Mistake(
        "last page used to its end", "paged", "[:length].swapaxes(0, 1)", ".swapaxes(0, 1)", "paged_attention", GATHERED
    ),
    Mistake(
        "last page dropped when partly filled",
        "paged",
        "pages[: -(-length // x.shape[1])]",
        "pages[: length // x.shape[1]]",
        "paged_attention",
        GATHERED,
    ),
    Mistake("page id off by one", "paged", "x[needed].reshape", "x[needed - 1].reshape", "paged_attention", GATHERED),
    Mistake(
        "gathered: the first table for all",
        "paged",
        "_gathered(x, table[b], length)",
        "_gathered(x, table[0], length)",
        "paged_attention",
        GATHERED,
    ),
    Mistake(
        "few: page id off by one",
        "paged",
        "ints(table * page)",
        "ints(np.maximum(table - 1, 0) * page)",
        "paged_attention",
    ),
    Mistake(
        "few: spans of the shortest sequence",
        "paged",
        "np.repeat(which, H)",
        "np.repeat(0 * which, H)",
        "paged_attention",
    ),
    Mistake(
        "few: mask asked with the shortest sequence",
        "paged",
        "intervals(mask, Tq, int(length))",
        "intervals(mask, Tq, int(lengths.min()))",
        "paged_attention",
    ),
    Mistake(
        "pages: softcap forgotten",
        "paged",
        "flash_attention(q[b], k, v, mask=mask, scale=scale, softcap=softcap,",
        "flash_attention(q[b], k, v, mask=mask, scale=scale,",
        "paged_attention",
        GATHERED,
    ),
    Mistake(
        "first key of the next sequence seen",
        "varlen",
        "(slice(*i), slice(*j)) for i, j",
        "(slice(*i), slice(j[0], j[1] + 1)) for i, j",
        "attention_varlen",
    ),
    Mistake(
        "last key of each sequence dropped",
        "varlen",
        "(slice(*i), slice(*j)) for i, j",
        "(slice(*i), slice(j[0], max(j[0], j[1] - 1))) for i, j",
        "attention_varlen",
    ),
    Mistake(
        "packed: dlse ignored",
        "varlen",
        "dlse=None if dlse is None else dlse[:, i]",
        "dlse=None",
        "attention_varlen_vjp",
    ),
    Mistake(
        "packed: dsinks of the last sequence",
        "varlen",
        "dsinks[n] = g.dsinks",
        "dsinks[0] = g.dsinks",
        "attention_varlen_vjp",
    ),
    Mistake(
        "packed: sinks of each sequence rounded",
        "varlen",
        "sinks.astype(dsinks.dtype, copy=False)",
        "sinks.astype(np.float16)",
        "attention_varlen_vjp",
    ),
]
LATENT = [
    Mistake(
        "scale without the rotated part",
        "mla",
        "q_nope.shape[-1] + q_rope.shape[-1]",
        "q_nope.shape[-1]",
        "mla_attention mla_attention_expanded",
    ),
    Mistake(
        "blind rows read the weights",
        "mla",
        "np.where(np.isneginf(lse)[..., None], 0, o @ w_uv)",
        "(o @ w_uv)",
        "mla_attention",
    ),
    Mistake(
        "w_uk of the first head for all",
        "mla",
        "w_uk.swapaxes(-1, -2), q_rope",
        "w_uk[:1].swapaxes(-1, -2), q_rope",
        "mla_attention",
    ),
    Mistake(
        "hidden tokens multiplied by zero",
        "mla",
        "c = np.where(seen, c_kv[..., None, :, :], 0)",
        "c = np.where(True, c_kv[..., None, :, :], 0)",
        "mla_attention_vjp",
    ),
    Mistake("dc without the values", "mla", " + g.dv @ w_uv.swapaxes(-1, -2)", "", "mla_attention_vjp"),
    Mistake(
        "dk_rope of the first head", "mla", "g.dk[..., Dn:].sum(axis=-3)", "g.dk[..., 0, :, Dn:]", "mla_attention_vjp"
    ),
    Mistake(
        "dw of the first sequence",
        "mla",
        "(c @ dx).sum(axis=tuple(range(c.ndim - 3)))",
        "(c @ dx)[(0,) * (c.ndim - 3)]",
        "mla_attention_vjp",
    ),
]
DENSE = [
    Mistake(
        "delta takes dlse with the wrong sign", "flash", "delta = delta - dlse", "delta = delta + dlse", "attention_vjp"
    ),
    Mistake(
        "dq of the first run of keys",
        "flash",
        "(dq[0] if chunks == 1 else dq.sum(axis=0))",
        "dq[0]",
        "attention_vjp flash_attention_vjp",
    ),
    Mistake("no keys forget the sink", "flash", "if call.Tk == 0 and call.sinks.size > 0", "if False", "attention"),
    Mistake(
        "hidden NaN leaks into gradients",
        "flash",
        "for careful in (False, True)",
        "for careful in (False,)",
        "attention_vjp",
    ),
    Mistake(
        "masks of the first head for all",
        "layout",
        "mask_of = planes(pattern.lead, (*batch, H))",
        "mask_of = 0 * planes(pattern.lead, (*batch, H))",
        "attention",
    ),
    Mistake(
        "bias of the first head for all",
        "layout",
        "np.arange(math.prod(lead)).reshape(lead), heads)",
        "0 * np.arange(math.prod(lead)).reshape(lead), heads)",
        "attention",
    ),
    Mistake("dropout does not rescale", "layout", "dtype.type(1 / (1 - dropout_p))", "dtype.type(1)", "attention"),
    Mistake(
        "all keys are seen",
        "layout",
        "seen[pattern[~cut], columns[~cut]] = True",
        "seen[:] = True",
        "mla_attention_vjp",
    ),
    Mistake("runs of the first sequence for all", "few", "begin[sequence]", "0 * begin[sequence]", "attention"),
    Mistake(
        "keys beyond whole runs dropped",
        "few",
        "splits = -(-lengths // SPLIT)",
        "splits = np.maximum(lengths // SPLIT, lengths > 0)",
        "attention attention_split_kv",
    ),
    Mistake(
        "few: key heads lie where values do",
        "few",
        "keys.pages, values.pages, page_size, keys.head",
        "keys.pages, values.pages, page_size, values.head",
        "attention",
    ),
    Mistake(
        "merged without the sink",
        "decode",
        "if sinks is not None:",
        "if False:",
        "merge_attention",
    ),
]
WRAPPED = [
    Mistake("dlse forgotten", "local", "sinks=sinks, dlse=dlse)", "sinks=sinks)", "local_attention_vjp"),
    Mistake(
        "softcap forgotten backward",
        "bigbird",
        "softcap=softcap, sinks=sinks, dlse=dlse)",
        "sinks=sinks, dlse=dlse)",
        "bigbird_attention_vjp",
    ),
    Mistake(
        "scale forgotten backward",
        "block_sparse",
        "scale=scale, softcap=softcap, sinks=sinks, dlse=dlse)",
        "softcap=softcap, sinks=sinks, dlse=dlse)",
        "block_sparse_attention_vjp",
    ),
    Mistake(
        "scale forgotten backward",
        "fixed",
        "scale=scale, softcap=softcap, sinks=sinks, dlse=dlse",
        "softcap=softcap, sinks=sinks, dlse=dlse",
        "fixed_attention_vjp",
    ),
    Mistake(
        "gradients of another draw",
        "random_",
        "drawn(q, k, n_keys, seed, per_head), scale=scale, softcap=softcap, sinks=sinks, dlse=dlse",
        "drawn(q, k, n_keys, 0, per_head), scale=scale, softcap=softcap, sinks=sinks, dlse=dlse",
        "random_attention_vjp",
    ),
    Mistake(
        "chosen keys of the first head for all",
        "selected",
        "named(given[head, i], Tk)",
        "named(given[0, i], Tk)",
        "topk_attention",
    ),
    Mistake(
        "chosen chunks of the first head for all",
        "selected",
        "named(given[head], count)",
        "named(given[0], count)",
        "moba_attention",
    ),
    Mistake(
        "chosen blocks of the first key head for all",
        "selected",
        "named(given[place, i], count)",
        "named(given[0, i], count)",
        "nsa_attention",
    ),
    Mistake(
        "bits of the key before",
        "layout",
        'view("<u8").ravel()',
        'view("<u8").ravel()\n        words = np.roll(words, 1)',
        "attention",
    ),
    Mistake(
        "heads in the other order",
        "multihead",
        "x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads).swapaxes(-2, -3)",
        "x.reshape(*x.shape[:-1], x.shape[-1] // heads, heads).swapaxes(-1, -2).swapaxes(-2, -3)",
        "multi_head_attention",
    ),
    Mistake(
        "context backwards",
        "multihead",
        "source = x if context is None else context",
        "source = x if context is None else context[..., ::-1, :]",
        "multi_head_attention",
    ),
    Mistake(
        "tokens get nothing from their keys",
        "multihead",
        "dx + dsource if context is None",
        "dx if context is None",
        "multi_head_attention_vjp",
    ),
    Mistake(
        "db_v of the keys",
        "multihead",
        "None if b_v is None else _rows(dv)",
        "None if b_v is None else _rows(dk)",
        "multi_head_attention_vjp",
    ),
    Mistake(
        "positions of the first sequence for all", "rope", "np.arange(items) // heads", "np.arange(items) * 0", "rope"
    ),
    Mistake(
        "frequencies of the whole width",
        "rope",
        "-np.arange(0, n, 2) / n)",
        "-np.arange(0, n, 2) / x.shape[-1])",
        "rope",
    ),
    Mistake("the gradient turns forward", "rope", "back = -positions", "back = positions", "rope_vjp"),
]
COMPILED = [
    Mistake(
        "turned the other way", "rope", "x[row + a] * c - x[row + b] * s", "x[row + a] * c + x[row + b] * s", "rope"
    ),
    Mistake(
        "what is NaN is the smallest",
        "select",
        "space[free] = np.inf if np.isnan(s) else s",
        "space[free] = -np.inf if np.isnan(s) else s",
        "topk_attention moba_attention nsa_attention",
    ),
    Mistake(
        "equal scores all chosen",
        "select",
        "if s == border and ties > 0:",
        "if s == border and taken < n:",
        "topk_attention nsa_attention",
    ),
    Mistake(
        "equal scores to the highest index",
        "select",
        "                if s == border and ties > 0:\n                    chosen = True\n"
        "                    ties -= 1\n",
        "                if s == border and ties > 0:\n                    later = 0\n"
        "                    for c in range(j + 1, m):\n                        later +="
        " state[row, c] == rivals and scores[row, c] == s\n                    chosen = later < ties\n"
        "                    ties -= chosen\n",
        "topk_attention moba_attention nsa_attention",
    ),
    Mistake(
        "lists: key heads round robin",
        "gather",
        "keys_at = head // (H // Hk) * Tk",
        "keys_at = (head // H * Hk + head % Hk) * Tk",
        "random_attention",
    ),
    Mistake(
        "lists: the last key of each run dropped",
        "gather",
        "s = scale * _dot(q, (head",
        "if width > 1 and j == start + width - 1:\n                        continue\n"
        "                    s = scale * _dot(q, (head",
        "moba_attention",
    ),
    Mistake(
        "lists: lanes without a key weigh 1", "gather", "scores[c] = -math.inf", "scores[c] = m", "random_attention"
    ),
    Mistake(
        "lists: the sink of the first head",
        "gather",
        "l += space.dtype.type(2.0 ** (sinks[head % H]",
        "l += space.dtype.type(2.0 ** (sinks[0]",
        "random_attention topk_attention",
    ),
    Mistake("lists: lse in base 2", "gather", "(top + math.log2(l)) / LOG2E", "top + math.log2(l)", "random_attention"),
    Mistake(
        "lists: dk of the last head of a group",
        "gather",
        "_add(ds, q, row * D, dk, key * D, D)",
        "_add(ds if head == kv_head * group else ds * 0, q, row * D, dk, key * D, D)",
        "random_attention_vjp",
    ),
    Mistake(
        "lists: slope of the softcap forgotten",
        "gather",
        "slope = scale * (1 - t * t)",
        "slope = scale",
        "random_attention_vjp",
    ),
    Mistake(
        "merging forgets what was there",
        "merge",
        "here[d] = wa * here[d] + wb * there[d]",
        "here[d] = wb * there[d]",
        "strided_attention",
    ),
    Mistake(
        "o not carried to the new maximum",
        "merge",
        "a = math.exp(mine - m) if mine",
        "a = 1 + 0 * m if mine",
        "merge_attention",
    ),
    Mistake("a part that saw nothing is read", "merge", "if theirs == -math.inf:", "if False:", "merge_attention"),
    Mistake(
        "merging keeps the lse of the first",
        "merge",
        "lse[row] = m + math.log(total)",
        "lse[row] = m",
        "strided_attention",
    ),
    Mistake(
        "key heads round robin",
        "forward",
        "kv_head = head // (H // Hk)",
        "kv_head = head // H * Hk + head % Hk",
        "attention",
    ),
    Mistake(
        "the sink in each run of keys",
        "forward",
        "sinks.size > 0 and split == 0 else",
        "sinks.size > 0 else",
        "attention_split_kv",
    ),
    Mistake(
        "o not carried to the new maximum",
        "forward",
        "ot[d * LANES + n] *= shrink[n]",
        "ot[d * LANES + n] *= 1",
        "attention",
    ),
    Mistake(
        "hidden values multiplied by zero",
        "forward",
        "if careful or not patchy or all_finite(ot, Dv, height):",
        "if True:",
        "attention",
    ),
    Mistake(
        "the last tile of keys hidden beyond its middle",
        "forward",
        "n_keys = min(TILE_K, Tk - j0)",
        "n_keys = min(TILE_K, max(1, (Tk - j0) // 8 * 8))",
        "attention",
    ),
    Mistake(
        "the last run of keys ends a tile early",
        "forward",
        "(split + 1) * nk // splits",
        "(split + 1) * (nk // splits)",
        "attention_split_kv",
    ),
    Mistake(
        "bias of the row before",
        "forward",
        "i = i0 + n if bias.shape[1] > 1 else 0\n                j = j0 + r if bias",
        "i = max(0, i0 + n - 1) if bias.shape[1] > 1 else 0\n                j = j0 + r if bias",
        "attention",
    ),
    Mistake(
        "few: values read for the whole tile",
        "rows",
        "whole = whole and low",
        "whole = True or low",
        "attention paged_attention",
    ),
    Mistake("few: o not carried to the new maximum", "rows", "o[d] *= shrink", "o[d] *= 1", "attention"),
    Mistake(
        "few: runs not weighed",
        "rows",
        "weight = space.dtype.type(2.0 ** (",
        "weight = space.dtype.type(1.0 ** (",
        "attention attention_split_kv",
    ),
    Mistake(
        "few: key heads round robin",
        "rows",
        "begin = k_page[b, page] + h * k_head",
        "begin = k_page[b, page] + (Hk - 1 - h) * k_head",
        "attention",
    ),
    Mistake(
        "few: the sink of the first head",
        "rows",
        "top = space.dtype.type(sinks[h] * LOG2E",
        "top = space.dtype.type(sinks[0] * LOG2E",
        "attention",
    ),
    Mistake(
        "dk of the first head of a group",
        "backward",
        "product(ds, 0, LANES, 1, n_keys, q, q_at, Dp, dk, key * Dp, Dp, Dp, height, True)",
        "product(ds, 0, LANES, 1, n_keys, q, q_at, Dp, dk, key * Dp, Dp, Dp, height, query < nq)",
        "attention_vjp",
    ),
    Mistake("slope of the softcap forgotten", "backward", "ds[n] *= slope[n]", "ds[n] *= 1", "attention_vjp"),
]
ALL = [*PARTS, *PATTERNS, *LONGFORMER, *CHOSEN, *PACKED, *LATENT, *DENSE, *WRAPPED]
