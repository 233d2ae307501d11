"""Identities between the forms of softmax attention, on every backend, at lengths that cross its tiles.

The right-hand side is always `refattn.attention`, the definition, in float64. Near by, on every backend and for short
sequences, stand those that need no long ones: a cache or pages filled in chunks, prompts packed chunk by chunk, parts
merged in any order (tests/dense/test_prefill.py), unused slots of pages (tests/dense/test_paged.py), borders of any
integers (tests/dense/test_varlen.py), bits that do not change (tests/test_numerics.py).
"""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import refattn
from refattn import masks
from tests.masks.expressions import EXPRESSIONS

quick = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
BATCH = st.sampled_from([(), (1,), (2,), (2, 1)])
OPTIONS = st.fixed_dictionaries(
    {}, optional={"scale": st.floats(-2, 2), "softcap": st.floats(0.5, 5), "sinks": st.just("drawn")}
)
LENGTH = st.one_of(st.integers(0, 9), st.integers(0, 140), st.sampled_from([63, 64, 65, 127, 128, 129]))
ANY_LENGTHS = EXPRESSIONS.filter(lambda mask: mask.lead == () and "padding" not in repr(mask))
BY_POSITION = st.recursive(
    st.one_of(
        st.builds(masks.window, st.none() | st.integers(0, 90), st.none() | st.integers(0, 20)),
        st.builds(masks.global_tokens, st.lists(st.integers(0, 140), max_size=3)),
        st.builds(masks.dilated, st.integers(0, 20), st.integers(1, 9)),
        st.builds(masks.strided, st.integers(1, 20), st.integers(1, 30)),
        st.builds(masks.chunked, st.integers(1, 100)),
    ),
    lambda inner: st.one_of(
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a | b, inner, inner),
        st.builds(lambda a: ~a, inner),
    ),
    max_leaves=4,
).map(lambda mask: masks.causal() & mask)
INTERVALS = st.one_of(
    st.just(masks.causal()),
    st.builds(masks.window, st.none() | st.integers(0, 900), st.none() | st.integers(0, 9)),
    st.builds(masks.padding, st.lists(st.integers(0, 500), min_size=2, max_size=2)),
)
SIZE = st.integers(1, 150)
FORMS = {
    "local_attention": st.fixed_dictionaries({x: st.none() | st.integers(0, 150) for x in ("left", "right")}),
    "dilated_attention": st.fixed_dictionaries({"window": st.integers(0, 60), "step": SIZE}),
    "strided_attention": st.fixed_dictionaries({"local": SIZE, "stride": SIZE}),
    "fixed_attention": st.tuples(SIZE, SIZE).map(lambda x: {"block": max(x), "summary": min(x)}),
    "random_attention": st.fixed_dictionaries({"n_keys": SIZE, "seed": st.integers(0, 9), "per_head": st.booleans()}),
    "global_attention": st.fixed_dictionaries({"indices": st.lists(st.integers(0, 150), max_size=5)}),
    "bigbird_attention": st.fixed_dictionaries(
        {
            "block_size": st.integers(1, 70),
            "n_window": st.sampled_from([1, 3, 5]),
            "global_blocks": st.lists(st.integers(-4, 4), max_size=3),
            "n_random": st.integers(0, 3),
            "seed": st.integers(0, 9),
            "per_head": st.booleans(),
        }
    ),
    "longformer_attention": st.fixed_dictionaries(
        {"window": st.integers(0, 150), "global_indices": st.lists(st.integers(0, 150), max_size=5)}
    ),
}
MASK_OF = {name: getattr(masks, name.removesuffix("_attention"), None) for name in FORMS}
MASK_OF |= {"local_attention": masks.window, "global_attention": masks.global_tokens}


@st.composite
def problems(draw, Tq=LENGTH, Tk=LENGTH, batch=BATCH, mask=None):
    """Draw q, k, v, do, dlse, options, and a mask whose leading axes fit."""
    mask = None if mask is None else draw(mask)
    lead = () if mask is None else mask.lead
    batch = (2,) if len(lead) > 1 else draw(batch)
    Hk, group = draw(st.sampled_from([(1, 3), (3, 1)] if lead else [(1, 1), (1, 4), (2, 3), (3, 2), (4, 1)]))
    Tq, Tk, D, Dv = draw(Tq), draw(Tk), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    rng, H = np.random.default_rng(draw(st.integers(0, 2**32 - 1))), Hk * group
    shapes = (H, Tq, D), (Hk, Tk, D), (Hk, Tk, Dv), (H, Tq, Dv), (H, Tq)
    arrays = [rng.normal(size=(*batch, *shape)) for shape in shapes]
    options = draw(OPTIONS)
    if "sinks" in options:
        options["sinks"] = rng.normal(size=H)
    return *arrays, options, mask


def close(got, want):
    for x, y in zip(got, want, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            assert x.shape == y.shape and x.dtype == np.float64
            np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-10)


def without_sinks(options):
    return {name: value for name, value in options.items() if name != "sinks"}


@quick
@given(problems(Tk=st.integers(5, 140), mask=EXPRESSIONS))
def test_sparse_is_masked_dense(anywhere, problem):
    q, k, v, do, dlse, options, mask = problem
    visible = mask.dense(q.shape[-2], k.shape[-2])
    got = refattn.sparse_attention(q, k, v, mask, **options, return_lse=True, backend=anywhere)
    close(got, refattn.attention(q, k, v, mask=visible, **options, return_lse=True))
    got = refattn.sparse_attention_vjp(do, q, k, v, mask, **options, dlse=dlse, backend=anywhere)
    close(got, refattn.attention_vjp(do, q, k, v, mask=visible, **options, dlse=dlse))


@quick
@given(problems(Tk=st.integers(5, 140), mask=EXPRESSIONS))
def test_a_mask_is_its_array(anywhere, problem):
    q, k, v, do, dlse, options, mask = problem
    visible = mask.dense(q.shape[-2], k.shape[-2])
    want = refattn.attention(q, k, v, mask=visible, **options, return_lse=True)
    want_grads = refattn.attention_vjp(do, q, k, v, mask=visible, **options, dlse=dlse)
    for given_mask in (mask, visible):
        close(refattn.attention(q, k, v, mask=given_mask, **options, return_lse=True, backend=anywhere), want)
        got = refattn.attention_vjp(do, q, k, v, mask=given_mask, **options, dlse=dlse, backend=anywhere)
        close(got, want_grads)


@quick
@given(problems(Tq=st.integers(0, 70), Tk=st.integers(500, 1100), mask=INTERVALS))
def test_a_mask_is_its_array_where_keys_are_many(anywhere, problem):
    q, k, v, do, dlse, options, mask = problem
    visible = mask.dense(q.shape[-2], k.shape[-2])
    want = refattn.attention(q, k, v, mask=visible, **options, return_lse=True)
    close(refattn.attention(q, k, v, mask=mask, **options, return_lse=True, backend=anywhere), want)
    got = refattn.attention_vjp(do, q, k, v, mask=mask, **options, dlse=dlse, backend=anywhere)
    close(got, refattn.attention_vjp(do, q, k, v, mask=visible, **options, dlse=dlse))


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_attention_under_its_mask(anywhere, form):
    @quick
    @given(problems(), FORMS[form])
    def holds(problem, own):
        q, k, v, do, dlse, options, _ = problem
        named = {name: value for name, value in own.items() if name != "per_head"}
        mask = MASK_OF[form](**named, **({"heads": q.shape[-3]} if own.get("per_head") else {}))
        got = getattr(refattn, form)(q, k, v, **own, **options, return_lse=True, backend=anywhere)
        close(got, refattn.attention(q, k, v, mask=mask, **options, return_lse=True))
        g = getattr(refattn, f"{form}_vjp")(do, q, k, v, **own, **options, dlse=dlse, backend=anywhere)
        want = refattn.attention_vjp(do, q, k, v, mask=mask, **options, dlse=dlse)
        close((g.dq, g.dk, g.dv, g.dsinks), (want.dq, want.dk, want.dv, want.dsinks))

    holds()


@quick
@given(problems(), st.integers(1, 70), st.floats(0, 1), st.integers(0, 99), st.booleans())
def test_blocks_are_attention_under_their_mask(anywhere, problem, size, share, seed, per_head):
    q, k, v, do, dlse, options, _ = problem
    lead = (q.shape[-3],) if per_head else ()
    shape = (*lead, -(-q.shape[-2] // size), -(-k.shape[-2] // size))
    own = {"layout": np.random.default_rng(seed).random(shape) < share, "block_size": size}
    mask = masks.block(**own)
    got = refattn.block_sparse_attention(q, k, v, **own, **options, return_lse=True, backend=anywhere)
    close(got, refattn.attention(q, k, v, mask=mask, **options, return_lse=True))
    got = refattn.block_sparse_attention_vjp(do, q, k, v, **own, **options, dlse=dlse, backend=anywhere)
    close(got, refattn.attention_vjp(do, q, k, v, mask=mask, **options, dlse=dlse))


@quick
@given(problems(Tk=st.integers(5, 140), mask=EXPRESSIONS), st.integers(1, 40))
def test_the_best_keys_are_attention_under_their_mask(anywhere, problem, n_keys):
    q, k, v, _, _, options, mask = problem
    *got, indices = refattn.topk_attention(q, k, v, n_keys=n_keys, mask=mask, **options, backend=anywhere)
    np.testing.assert_array_equal(indices, refattn.topk_attention(q, k, v, n_keys=n_keys, mask=mask, **options).indices)
    seen = refattn.selected_keys(indices, k.shape[-2])
    close(got, refattn.attention(q, k, v, mask=seen, **options, return_lse=True))


@quick
@given(problems(), st.integers(1, 50), st.integers(1, 6))
def test_the_best_chunks_are_attention_under_their_mask(anywhere, problem, chunk, top_k):
    q, k, v, *_ = problem
    *got, indices = refattn.moba_attention(q, k, v, chunk=chunk, top_k=top_k, backend=anywhere)
    np.testing.assert_array_equal(indices, refattn.moba_attention(q, k, v, chunk=chunk, top_k=top_k).indices)
    seen = refattn.selected_keys(indices, k.shape[-2], size=chunk) & masks.causal().dense(q.shape[-2], k.shape[-2])
    close(got, refattn.attention(q, k, v, mask=seen, return_lse=True))


@quick
@given(
    problems(),
    st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 4)),
    st.integers(3, 6),
    st.integers(1, 150),
)
def test_the_three_branches_are_attention(anywhere, problem, sizes, n_selected, window):
    q, k, v, *_ = problem
    (stride, depth, ratio), (Tq, Tk) = sizes, (q.shape[-2], k.shape[-2])
    own = {"block_size": depth * stride, "stride": stride, "select_block": ratio * stride, "n_selected": n_selected}
    gates = np.random.default_rng(0).uniform(size=(*q.shape[:-1], 3))
    o, lse, indices = refattn.nsa_attention(q, k, v, gates, **own, window=window, backend=anywhere)
    starts = np.arange(max(0, (Tk - depth * stride) // stride + 1)) * stride
    means = [x[..., starts[:, None] + np.arange(depth * stride), :].mean(axis=-2) for x in (k, v)]
    ended = starts + depth * stride - 1 <= np.arange(Tq)[:, None] + Tk - Tq
    seen = refattn.selected_keys(np.repeat(indices, q.shape[-3] // k.shape[-3], axis=-3), Tk, size=ratio * stride)
    branches = [
        refattn.attention(q, *means, mask=ended, return_lse=True),
        refattn.attention(q, k, v, mask=seen & masks.causal().dense(Tq, Tk), return_lse=True),
        refattn.attention(q, k, v, mask=masks.causal() & masks.window(window - 1, 0), return_lse=True),
    ]
    want = sum(gates[..., c, None] * branch for c, (branch, _) in enumerate(branches))
    close((o, *np.moveaxis(lse, -1, 0)), (want, *(branch_lse for _, branch_lse in branches)))


@quick
@given(
    st.integers(0, 140), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(1, 70), st.booleans(),
    st.integers(0, 99),
)  # fmt: skip
def test_buckets_are_attention_under_their_mask(anywhere, T, D, rounds, half, chunk, causal, seed):
    rng = np.random.default_rng(seed)
    qk, v = rng.normal(size=(2, T, D)), rng.normal(size=(2, T, 3))
    rotations = refattn.draw_rotations(rounds, D, 2 * half, seed=seed, dtype=np.float64)
    own = {"rotations": rotations, "chunk": chunk, "causal": causal}
    *got, buckets = refattn.lsh_attention(qk, v, **own, backend=anywhere)
    place = np.argsort(np.argsort(buckets, axis=-1, kind="stable"), axis=-1) // chunk  # which chunk a token is in
    back = place[..., :, None] - place[..., None, :]
    same = buckets[..., :, None] == buckets[..., None, :]
    seen = (same & ((back == 0) | (back == 1))).any(axis=-3) & ~np.eye(T, dtype=bool)
    seen &= np.tri(T, dtype=bool) | (not causal)
    seen |= np.eye(T, dtype=bool) & ~seen.any(axis=-1, keepdims=True)
    k = qk / np.linalg.norm(qk, axis=-1, keepdims=True)
    close(got, refattn.attention(qk, k, v, mask=seen, return_lse=True))


@quick
@given(
    st.lists(st.tuples(LENGTH, LENGTH), max_size=4), problems(Tq=st.just(0), Tk=st.just(0), mask=ANY_LENGTHS),
    st.integers(0, 99),
)  # fmt: skip
def test_packed_sequences_are_sequences(anywhere, lengths, problem, seed):
    like_q, _, like_v, _, _, options, mask = problem
    (H, _, D), (Hk, _, Dv) = like_q.shape[-3:], like_v.shape[-3:]
    rng = np.random.default_rng(seed)
    cu_q, cu_k = (np.cumsum([0, *(pair[side] for pair in lengths)]) for side in (0, 1))
    shapes = (cu_q[-1], H, D), (cu_k[-1], Hk, D), (cu_k[-1], Hk, Dv), (cu_q[-1], H, Dv)
    q, k, v, do = (rng.normal(size=shape) for shape in shapes)
    dlse = rng.normal(size=(H, cu_q[-1]))
    args = (q, k, v, cu_q, cu_k)
    o, lse = refattn.attention_varlen(*args, mask=mask, **options, return_lse=True, backend=anywhere)
    g = refattn.attention_varlen_vjp(do, *args, mask=mask, **options, dlse=dlse, backend=anywhere)
    dsinks = None if g.dsinks is None else np.zeros(H)
    for i, j in zip(itertools.pairwise(cu_q), itertools.pairwise(cu_k), strict=True):
        i, j = slice(*i), slice(*j)
        one = [x.swapaxes(0, 1) for x in (q[i], k[j], v[j])]
        want = refattn.attention(*one, mask=mask, **options, return_lse=True)
        close((o[i].swapaxes(0, 1), lse[:, i]), want)
        want = refattn.attention_vjp(do[i].swapaxes(0, 1), *one, mask=mask, **options, dlse=dlse[:, i])
        close([x.swapaxes(0, 1) for x in (g.dq[i], g.dk[j], g.dv[j])], want[:3])
        dsinks = dsinks if dsinks is None else dsinks + want.dsinks
    close([g.dsinks], [dsinks])


@quick
@given(problems(mask=ANY_LENGTHS, batch=st.just((3,))), st.lists(LENGTH, min_size=3, max_size=3), st.integers(1, 150))
def test_pages_are_contiguous_keys(anywhere, problem, lengths, page_size):
    q, k, v, _, _, options, mask = problem
    lengths = np.minimum(lengths, k.shape[-2])
    wide = -(-k.shape[-2] // page_size)
    table = np.random.default_rng(page_size).permutation(3 * wide + 1)[: 3 * wide].reshape(3, wide)
    pages = [np.full((3 * wide + 1, page_size, *x.shape[-3:-2], x.shape[-1]), np.nan) for x in (k, v)]
    for pool, x in zip(pages, (k, v), strict=True):
        for b, n in enumerate(lengths):
            page, slot = np.divmod(np.arange(n), page_size)
            pool[table[b, page], slot] = x[b, :, :n].swapaxes(0, 1)
    o, lse = refattn.paged_attention(q, *pages, table, lengths, mask=mask, **options, return_lse=True, backend=anywhere)
    for b, n in enumerate(lengths):
        close((o[b], lse[b]), refattn.attention(q[b], k[b, :, :n], v[b, :, :n], mask=mask, **options, return_lse=True))


@quick
@given(problems(Tk=st.integers(5, 700), mask=EXPRESSIONS), st.integers(1, 800))
def test_split_keys_are_whole(anywhere, problem, num_splits):
    q, k, v, _, _, options, mask = problem
    got = refattn.attention_split_kv(
        q, k, v, num_splits=num_splits, mask=mask, **options, return_lse=True, backend=anywhere
    )
    close(got, refattn.attention(q, k, v, mask=mask, **options, return_lse=True))


@quick
@given(problems(Tk=st.integers(5, 140), mask=EXPRESSIONS), st.lists(st.integers(0, 140), max_size=5))
def test_merged_parts_are_whole(anywhere, problem, cuts):
    q, k, v, _, _, options, mask = problem
    visible = mask.dense(q.shape[-2], k.shape[-2])
    borders = [0, *sorted(min(cut, k.shape[-2]) for cut in cuts), k.shape[-2]]
    parts = []
    for j in itertools.pairwise(borders):
        part = (q, k[..., slice(*j), :], v[..., slice(*j), :])
        own = {"mask": visible[..., slice(*j)], **without_sinks(options)}
        parts.append(refattn.attention(*part, **own, return_lse=True, backend=anywhere))
    got = refattn.merge_attention(*parts, sinks=options.get("sinks"), backend=anywhere)
    close(got, refattn.attention(q, k, v, mask=mask, **options, return_lse=True))


@quick
@given(problems(Tq=st.just(0), mask=BY_POSITION), st.lists(st.integers(0, 140), max_size=5), st.integers(0, 99))
def test_chunks_of_a_prompt_are_one_pass(anywhere, problem, cuts, seed):
    like_q, k, v, _, _, options, mask = problem
    T = k.shape[-2]
    q = np.random.default_rng(seed).normal(size=(*like_q.shape[:-2], T, like_q.shape[-1]))
    parts = []
    for start, stop in itertools.pairwise([0, *sorted(min(cut, T) for cut in cuts), T]):
        chunk = (q[..., start:stop, :], k[..., :stop, :], v[..., :stop, :])
        parts.append(refattn.attention(*chunk, mask=mask, **options, return_lse=True, backend=anywhere))
    got = (np.concatenate(xs, axis=axis) for xs, axis in zip(zip(*parts, strict=True), (-2, -1), strict=True))
    close(got, refattn.attention(q, k, v, mask=mask, **options, return_lse=True))


@quick
@given(problems(Tk=st.integers(5, 140), mask=EXPRESSIONS), st.integers(0, 6), st.integers(1, 20))
def test_absorbed_is_expanded(anywhere, problem, Dr, L):
    q, k, _, do, dlse, options, mask = problem
    (*batch, H, Tq, Dn), Tk = q.shape, k.shape[-2]
    rng = np.random.default_rng(L)
    shapes = (*batch, H, Tq, Dr), (*batch, Tk, L), (*batch, Tk, Dr), (H, L, Dn), (H, L, do.shape[-1])
    q_rope, c_kv, k_rope, w_uk, w_uv = (rng.normal(size=shape) for shape in shapes)
    latent = (q, q_rope, c_kv, k_rope, w_uk, w_uv)
    own = {"mask": mask, "scale": options.get("scale")}
    k_nope = c_kv[..., None, :, :] @ w_uk
    keys = np.concatenate([k_nope, np.broadcast_to(k_rope[..., None, :, :], (*k_nope.shape[:-1], Dr))], axis=-1)
    expanded = (np.concatenate([q, q_rope], axis=-1), keys, c_kv[..., None, :, :] @ w_uv)
    want = refattn.attention(*expanded, **own, return_lse=True)
    for form in (refattn.mla_attention, refattn.mla_attention_expanded):
        close(form(*latent, **own, return_lse=True, backend=anywhere), want)
    g = refattn.mla_attention_vjp(do, *latent, **own, dlse=dlse, backend=anywhere)
    e = refattn.attention_vjp(do, *expanded, **own, dlse=dlse)
    dk_nope, c = e.dk[..., :Dn], c_kv[..., None, :, :]
    dc = dk_nope @ w_uk.swapaxes(-1, -2) + e.dv @ w_uv.swapaxes(-1, -2)
    dw_uk, dw_uv = ((c.swapaxes(-1, -2) @ dx).reshape(-1, H, L, dx.shape[-1]).sum(axis=0) for dx in (dk_nope, e.dv))
    want = (e.dq[..., :Dn], e.dq[..., Dn:], dc.sum(axis=-3), e.dk[..., Dn:].sum(axis=-3), dw_uk, dw_uv)
    close(g, want)


def test_close_can_fail(anywhere):
    q = np.random.default_rng(0).normal(size=(1, 70, 4))
    got = refattn.sparse_attention(q, q, q, masks.window(3, 0), return_lse=True, backend=anywhere)
    with pytest.raises(AssertionError):
        close(got, refattn.attention(q, q, q, mask=masks.window(4, 0), return_lse=True))
