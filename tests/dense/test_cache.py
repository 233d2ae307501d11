"""The paged cache against plain lists of tokens: who has which page, what stands in it, and what a refusal leaves."""

import itertools

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

import refattn


def tokens(numbers, dtype=np.float32):
    """Return keys (2, T, 3) and values (2, T, 1) that say which tokens they are."""
    k = np.array(numbers, dtype)[None, :, None] * np.array([1, -1], dtype)[:, None, None] * np.ones(3, dtype)
    return k, 10 * k[..., :1]


def small(n_pages=4, page_size=3):
    return refattn.PagedKVCache(n_pages, page_size, kv_heads=2, head_dim=3, v_head_dim=1)


def contents(cache, sequence):
    """Return the numbers of the tokens that a reader of the table finds."""
    (table,), (length,) = cache.page_table([sequence]), cache.seqlens([sequence])
    page, slot = np.divmod(np.arange(length), cache.page_size)
    k, v = (pages[table[page], slot].swapaxes(0, 1) for pages in (cache.k_pages, cache.v_pages))
    for got, want in zip((k, v), tokens(k[0, :, 0]), strict=True):
        np.testing.assert_array_equal(got, want)
    return k[0, :, 0].astype(int).tolist()


class Pages(RuleBasedStateMachine):
    """A page here is a name in the lists of the sequences that hold it, and is counted by looking."""

    started = Bundle("sequences")

    @initialize(n_pages=st.integers(1, 12), page_size=st.integers(1, 4))
    def begin(self, n_pages, page_size):
        self.cache, self.n_pages, self.P = small(n_pages, page_size), n_pages, page_size
        self.lists, self.pages = {}, {}
        self.numbers, self.names = itertools.count(1), itertools.count()

    def in_use(self):
        return {name for names in self.pages.values() for name in names}

    @rule(target=started)
    def allocate(self):
        sequence = self.cache.allocate()
        assert sequence not in self.lists
        self.lists[sequence], self.pages[sequence] = [], []
        return sequence

    @rule(target=started, sequence=started)
    def fork(self, sequence):
        other = self.cache.fork(sequence)
        assert other not in self.lists
        self.lists[other], self.pages[other] = list(self.lists[sequence]), list(self.pages[sequence])
        return other

    @rule(sequence=consumes(started))
    def free(self, sequence):
        self.cache.free(sequence)
        del self.lists[sequence], self.pages[sequence]
        with pytest.raises(LookupError, match=f"no sequence {sequence}; there are: "):
            self.cache.free(sequence)

    @rule(sequence=started, T=st.integers(0, 5))
    def prompt(self, sequence, T):
        self.append(sequence, T)

    def append(self, sequence, T):
        added = [next(self.numbers) for _ in range(T)]
        names, length = list(self.pages[sequence]), len(self.lists[sequence])
        others = {name for other, held in self.pages.items() if other != sequence for name in held}
        if T > 0 and length % self.P and names[-1] in others:
            names[-1] = next(self.names)  # shared, and about to be written
        while len(names) * self.P < length + T:
            names.append(next(self.names))
        if len(others | set(names)) > self.n_pages:
            before = self.state()
            with pytest.raises(ValueError, match=f"{T} tokens do not fit: they need"):
                self.cache.append(sequence, *tokens(added))
            assert self.state() == before
        else:
            self.cache.append(sequence, *tokens(added))
            self.lists[sequence] += added
            self.pages[sequence] = names

    @rule()
    def decode(self):
        for sequence in self.lists:
            self.append(sequence, 1)

    def state(self):
        k_pages, v_pages, table, lengths = self.cache.view(self.lists)
        arrays = tuple(x.tobytes() for x in (k_pages, v_pages, table, lengths))
        return (*arrays, self.cache.pages_free, self.cache.sequences)

    @invariant()
    def every_sequence_has_its_tokens(self):
        assert self.cache.sequences == tuple(self.lists)
        assert {sequence: contents(self.cache, sequence) for sequence in self.lists} == self.lists

    @invariant()
    def pages_are_shared_exactly_as_they_should_be(self):
        table = self.cache.page_table(list(self.lists))
        held = [row[row >= 0].tolist() for row in table]
        pairs = {
            pair for row, names in zip(held, self.pages.values(), strict=True) for pair in zip(row, names, strict=True)
        }
        assert len(pairs) == len({page for page, _ in pairs}) == len({name for _, name in pairs})

    @invariant()
    def no_page_leaks(self):
        assert self.cache.pages_free == self.n_pages - len(self.in_use())


Pages.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None, derandomize=True)
TestPages = Pages.TestCase


def test_tokens_come_back_as_they_went_in():
    cache = small()
    a, b = cache.allocate(), cache.allocate()
    cache.append(a, *tokens([1, 2]))
    cache.append(b, *tokens([3, 4, 5, 6]))
    cache.append(a, *tokens([7, 8]))
    assert contents(cache, a) == [1, 2, 7, 8] and contents(cache, b) == [3, 4, 5, 6]
    np.testing.assert_array_equal(cache.page_table([b, a]), [[1, 2], [0, 3]])
    np.testing.assert_array_equal(cache.seqlens([b, a]), [4, 4])
    assert cache.pages_free == 0 and cache.sequences == (a, b)
    assert cache.nbytes == 4 * 3 * 2 * (3 + 1) * 4
    assert cache.k_pages.shape == (4, 3, 2, 3) and cache.v_pages.shape == (4, 3, 2, 1)


def test_a_prefix_is_stored_once():
    cache = small(n_pages=6)
    prompt = cache.allocate()
    cache.append(prompt, *tokens(range(6)))  # two full pages
    forks = [cache.fork(prompt) for _ in range(4)]
    assert cache.pages_free == 4
    for n, fork in enumerate(forks):
        cache.append(fork, *tokens([100 + n]))
    assert cache.pages_free == 0
    table = cache.page_table([prompt, *forks])
    assert (table[:, :2] == table[0, :2]).all() and len(set(table[1:, 2].tolist())) == 4
    assert [contents(cache, fork)[6:] for fork in forks] == [[100], [101], [102], [103]]


def test_a_half_full_page_is_copied_by_the_first_who_writes_and_kept_by_the_last():
    cache = small()
    a = cache.allocate()
    cache.append(a, *tokens([1, 2]))
    b = cache.fork(a)
    cache.append(a, *tokens([3]))  # a copies, and leaves the page to b
    assert cache.page_table([a, b]).ravel().tolist() == [1, 0]
    cache.append(b, *tokens([4]))  # b is alone with it by now
    assert cache.page_table([a, b]).ravel().tolist() == [1, 0] and cache.pages_free == 2
    assert contents(cache, a) == [1, 2, 3] and contents(cache, b) == [1, 2, 4]


def test_pages_are_free_when_the_last_holder_is():
    cache = small()
    a = cache.allocate()
    cache.append(a, *tokens([1, 2, 3, 4]))
    b = cache.fork(a)
    cache.free(a)
    assert cache.pages_free == 2 and contents(cache, b) == [1, 2, 3, 4]
    cache.free(b)
    assert cache.pages_free == 4 and cache.sequences == ()
    assert cache.allocate() not in (a, b)


def test_appending_nothing_takes_and_copies_nothing():
    cache = small(n_pages=1)
    a = cache.allocate()
    cache.append(a, *tokens([]))
    assert cache.pages_free == 1
    cache.append(a, *tokens([1]))
    b = cache.fork(a)
    cache.append(b, *tokens([]))
    assert cache.page_table([a, b]).tolist() == [[0], [0]]


def test_the_copy_counts_among_the_pages_that_are_needed():
    cache = small(n_pages=2)
    a = cache.allocate()
    cache.append(a, *tokens([1]))
    b = cache.fork(a)
    with pytest.raises(ValueError, match="3 tokens do not fit: they need 2 pages and 1 are free"):
        cache.append(b, *tokens([2, 3, 4]))
    assert contents(cache, b) == [1] and cache.pages_free == 1
    cache.append(b, *tokens([2, 3]))
    assert contents(cache, b) == [1, 2, 3] and contents(cache, a) == [1]


def test_no_sequences_make_an_empty_table():
    cache = small()
    assert cache.page_table([]).shape == (0, 0) and cache.seqlens([]).shape == (0,)
    empty = [cache.allocate(), cache.allocate()]
    assert cache.page_table(empty).shape == (2, 0)
    o = refattn.paged_attention(np.ones((2, 4, 1, 3), np.float32), *cache.view(empty))
    assert o.shape == (2, 4, 1, 1) and (o == 0).all()


def test_what_was_given_and_what_was_served_are_copies_where_they_must_be():
    cache = small()
    a = cache.allocate()
    k, v = tokens([1, 2])
    cache.append(a, k, v)
    k[...] = 9
    table, lengths = cache.page_table([a]), cache.seqlens([a])
    table[...], lengths[...] = 3, 0
    assert contents(cache, a) == [1, 2]
    pages = cache.k_pages
    cache.append(a, *tokens([3]))
    assert pages[0, 2, 0, 0] == 3  # a view


@pytest.mark.parametrize("method", ["fork", "free", "append", "page_table", "seqlens", "view"])
def test_an_unknown_sequence_is_refused_and_those_there_are_are_named(method):
    cache = small()
    for _ in range(3):
        cache.allocate()
    cache.free(1)
    arguments = {"append": (1, *tokens([1])), "fork": (1,), "free": (1,)}.get(method, ([0, 1],))
    with pytest.raises(LookupError, match=r"PagedKVCache\.\w+: no sequence 1; there are: 0, 2"):
        getattr(cache, method)(*arguments)
    assert cache.sequences == (0, 2)


BAD_TOKENS = {
    "keys of other heads": ((tokens([1])[0][:1], tokens([1])[1]), ValueError, r"k has shape \(1, 1, 3\)"),
    "values of other heads": ((tokens([1])[0], tokens([1])[1][:1]), ValueError, "v has shape"),
    "more values than keys": ((tokens([1])[0], tokens([1, 2])[1]), ValueError, "v has shape"),
    "another width": ((tokens([1])[0][..., :2], tokens([1])[1]), ValueError, "k has shape"),
    "a batch axis": ((tokens([1])[0][None], tokens([1])[1][None]), ValueError, "k has shape"),
    "two axes": ((tokens([1])[0][0], tokens([1])[1][0]), ValueError, "k has shape .*; wanted at least 3 axes"),
    "another dtype": (tokens([1], np.float64), TypeError, "dtypes differ"),
    "integers": (tokens([1], np.int64), TypeError, "k has dtype int64"),
    "a list": (([[[0.0]]], tokens([1])[1]), TypeError, "k must be an array"),
    "too many": (tokens(range(13)), ValueError, "13 tokens do not fit: they need 5 pages and 4 are free"),
}


@pytest.mark.parametrize("name", BAD_TOKENS)
def test_a_refused_append_changes_nothing(name):
    (k, v), error, says = BAD_TOKENS[name]
    cache = small()
    a = cache.allocate()
    with pytest.raises(error, match=rf"PagedKVCache\.append: .*{says}"):
        cache.append(a, k, v)
    assert contents(cache, a) == [] and cache.pages_free == 4 and not cache.k_pages.any()


@pytest.mark.parametrize(
    ("sizes", "error", "says"),
    [
        ({"n_pages": 0}, ValueError, "n_pages is 0; wanted at least 1"),
        ({"page_size": -1}, ValueError, "page_size is -1"),
        ({"kv_heads": 2.0}, TypeError, "kv_heads must be an integer"),
        ({"head_dim": True}, TypeError, "head_dim must be an integer"),
        ({"v_head_dim": 0}, ValueError, "v_head_dim is 0"),
        ({"dtype": int}, TypeError, "dtype is int64; wanted one of float16"),
    ],
)
def test_bad_sizes_are_refused(sizes, error, says):
    with pytest.raises(error, match=f"PagedKVCache: {says}"):
        refattn.PagedKVCache(**{"n_pages": 2, "page_size": 2, "kv_heads": 1, "head_dim": 4} | sizes)


def test_sixteen_bits_are_kept_as_they_are():
    cache = refattn.PagedKVCache(2, 2, 2, 3, 1, dtype=np.float16)
    a = cache.allocate()
    cache.append(a, *tokens([0.1, 0.2, 0.3], np.float16))
    np.testing.assert_array_equal(cache.k_pages[0, :, 0, 0], np.array([0.1, 0.2], np.float16))
    assert cache.v_pages.dtype == np.float16 and cache.nbytes == 2 * 2 * 2 * (3 + 1) * 2
