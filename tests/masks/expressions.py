"""Masks that hypothesis draws."""

from hypothesis import strategies as st

from refattn import masks

ATOMS = st.one_of(
    st.builds(
        masks.causal, st.one_of(st.none(), st.integers(-30, 30), st.lists(st.integers(-9, 30), min_size=2, max_size=2))
    ),
    st.builds(masks.window, st.one_of(st.none(), st.integers(0, 20)), st.one_of(st.none(), st.integers(0, 20))),
    st.builds(masks.global_tokens, st.lists(st.integers(0, 40), max_size=3)),
    st.builds(masks.dilated, st.integers(0, 9), st.integers(1, 7)),
    st.builds(masks.strided, st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 9).flatmap(lambda block: st.builds(masks.fixed, st.just(block), st.integers(1, block))),
    st.builds(masks.chunked, st.integers(1, 15)),
    st.builds(masks.prefix_lm, st.one_of(st.integers(0, 20), st.lists(st.integers(0, 20), min_size=2, max_size=2))),
    st.builds(masks.random, st.integers(1, 9), st.integers(0, 3), st.sampled_from([None, 3])),
    st.builds(masks.random_blocks, st.integers(1, 3), st.integers(1, 9), st.integers(0, 3)),
    st.builds(
        masks.bigbird,
        st.integers(1, 9),
        st.sampled_from([1, 3]),
        st.lists(st.integers(-3, 3), max_size=3),
        st.integers(0, 2),
        st.integers(0, 3),
        st.sampled_from([None, 3]),
    ),
    st.builds(masks.longformer, st.integers(0, 9), st.lists(st.integers(0, 40), max_size=3)),
    st.builds(masks.padding, st.one_of(st.integers(0, 5), st.lists(st.integers(0, 5), min_size=2, max_size=2))),
)
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a | b, inner, inner),
        st.builds(lambda a: ~a, inner),
    ),
    max_leaves=5,
)
