"""Lengths: quantiles and means that can be counted by hand, and files whose mistakes are named by line."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.costs.lengths import LONGEST, Lengths


@pytest.fixture
def written(tmp_path):
    def write(text, name="lengths.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


class TestTexts:
    def test_one_length(self):
        lengths = Lengths.of(" 512 ")
        assert (lengths.mean, lengths.quantile(0.5), lengths.quantile(0.95), lengths.largest) == (512, 512, 512, 512)
        assert str(lengths) == "all 512"

    def test_uniform(self):
        lengths = Lengths.of("uniform:64..2048")
        assert lengths.mean == pytest.approx((64 + 2048) / 2, rel=1e-12)
        assert lengths.quantile(0) == 64 and lengths.quantile(1) == 2048
        count = 2048 - 64 + 1
        assert lengths.expect(lambda n: (n - lengths.mean) ** 2) == pytest.approx((count**2 - 1) / 12)

    def test_lognormal_has_the_median_the_p95_and_the_end_that_it_names(self):
        lengths = Lengths.of("lognormal:median=300,p95=2000,max=8192")
        assert (lengths.quantile(0.5), lengths.quantile(0.95), lengths.largest) == (300, 2000, 8192)
        assert lengths.shares.sum() == pytest.approx(1, abs=1e-12)

    def test_lognormal_has_the_mean_of_one(self):
        sigma = math.log(2000 / 300) / 1.6448536269514722
        assert Lengths.of("lognormal:median=300,p95=2000").mean == pytest.approx(300 * math.exp(sigma**2 / 2), rel=1e-3)

    def test_what_is_above_max_counts_as_max(self):
        lengths = Lengths.of("lognormal:median=300,p95=2000,max=2000")
        assert lengths.shares[-1] == pytest.approx(0.05, abs=1e-3)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "'' is no description of lengths; wanted"),
            ("normal:3", "no description of lengths"),
            ("0", "is 0; wanted 1 to"),
            ("-5", "is -5; wanted 1 to"),
            ("99999999999", "wanted 1 to 10,000,000"),
            ("uniform:0..4", "is 0; wanted 1 to"),
            ("uniform:9..3", "has 9 above 3"),
            ("uniform:9", "no description"),
            ("lognormal:median=300", "has no p95"),
            ("lognormal:p95=300", "has no median"),
            ("lognormal:median=300,p95=300", "wanted p95 above the median"),
            ("lognormal:median=300,p95=2000,max=1999", "has max 1999 below p95 2000"),
            ("lognormal:median=300,p95=2000,mean=3", "'mean=3' in"),
            ("lognormal:median=300,median=300,p95=2000", "'median=300' in"),
            ("lognormal:median=-300,p95=2000", "'median=-300' in"),
            ("lognormal:median=0,p95=2000", "wanted a finite number above 0"),
            ("lognormal:median=1,p95=999999", "wanted a max of at most"),
        ],
    )
    def test_what_is_none(self, text, message):
        with pytest.raises(ValueError, match=message):
            Lengths.of(text)


class TestLists:
    def test_shares_are_counts(self):
        lengths = Lengths.of([10, 30, 10, 10])
        assert lengths.values.tolist() == [10, 30]
        assert lengths.shares.tolist() == [0.75, 0.25]
        assert lengths.mean == 15
        assert (lengths.quantile(0.75), lengths.quantile(0.76)) == (10, 30)

    def test_lengths_are_lengths(self):
        lengths = Lengths.of((7, 8))
        assert Lengths.of(lengths) is lengths
        assert Lengths.of(np.int32(5)).mean == Lengths.of(5).mean == 5

    @given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.floats(0, 1))
    def test_quantiles_are_those_of_numpy(self, values, p):
        wanted = np.quantile(values, p, method="inverted_cdf")
        step = p * len(values)
        if abs(step - round(step)) > 1e-6:  # there the share is reached or not by rounding alone
            assert Lengths.of(values).quantile(p) == wanted
        assert Lengths.of(values).mean == pytest.approx(np.mean(values))

    @pytest.mark.parametrize(("share", "wanted"), [(0.1 + 0.2, 3), (0.3, 3), (0.8, 8), (0.9, 9)])
    def test_a_share_is_reached_in_spite_of_rounding(self, share, wanted):
        assert Lengths.of(list(range(1, 11))).quantile(share) == wanted

    def test_samples_are_drawn_with_their_shares_and_repeat_with_the_seed(self):
        lengths = Lengths.of([1, 1, 1, 5])
        drawn = lengths.sample(4000, np.random.default_rng(3))
        assert (drawn == lengths.sample(4000, np.random.default_rng(3))).all()
        assert set(drawn) == {1, 5}
        assert abs((drawn == 5).mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 4000)

    @pytest.mark.parametrize(
        ("values", "error", "message"),
        [
            ([], ValueError, "there are none"),
            ([4, 0], ValueError, "number 2 of 2 is 0"),
            ([-3, 4], ValueError, "number 1 of 2 is -3"),
            ([[1, 2]], ValueError, r"shape \(1, 2\)"),
            ([[1], [1, 2]], TypeError, "nested list"),
            ([1.5], TypeError, "array of float64"),
            ([True], TypeError, "array of bool"),
            (None, TypeError, "NoneType"),
            (3.0, TypeError, "float"),
            ([LONGEST + 1], ValueError, "wanted 1 to"),
            (np.array([2**63], np.uint64), ValueError, "wanted 1 to"),
        ],
    )
    def test_what_is_none(self, values, error, message):
        with pytest.raises(error, match=message):
            Lengths.of(values)

    @pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
    def test_a_quantile_that_is_none(self, p):
        with pytest.raises(ValueError, match="wanted 0 to 1"):
            Lengths.of(5).quantile(p)


class TestFiles:
    @pytest.mark.parametrize(
        "text",
        ["5\n7\n7\n", "length\n5\n7\n7", "\ufeffprompt,output\r\n5,1\r\n\r\n7,2\r\n7,3\r\n", '"n"\n"5"\n 7 \n7\n'],
    )
    def test_the_same_lengths(self, written, text):
        lengths = Lengths.of(str(written(text)))
        assert lengths.values.tolist() == [5, 7]
        assert lengths.mean == pytest.approx(19 / 3)
        assert "3 lengths of lengths.csv" in str(lengths)

    def test_a_column_by_its_name(self, written):
        path = written("when,in,out\n1,5,9\n2,6,9\n")
        assert Lengths.read(path, "in").values.tolist() == [5, 6]
        assert Lengths.of(f"{path}:out").values.tolist() == [9]
        assert Lengths.of(Path(written("4\n", "plain.txt"))).largest == 4

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "the file is empty"),
            ("length\n", "there is a header and no lengths"),
            ("5\n\nseven\n", "line 3: 'seven' is not a whole number"),
            ("5\n7.5\n", "line 2: '7.5' is not a whole number"),
            ("nan\n5\n", "line 1: 'nan' is not a whole number"),
            ("1e3\n5\n", "line 1: '1e3' is not a whole number"),
            ("5\n0\n", "line 2: a length of 0; wanted 1 to"),
            ("length\n5\n-7\n", "line 3: a length of -7"),
            ("length\n5\n99999999\n", "line 3: a length of 99999999"),
            ("5,6\n", "line 1: 2 fields and no header"),
            ("length,x\n5,1\n5\n", "line 3: 1 fields; wanted 2, as in line 1"),
            ("a,b\n5,1\n", "line 1: no column called length, and none is named; there are: a, b"),
            (b"5\n\xff\xfe\n", r"line 2: not text in UTF-8 \(byte 1\)"),
            ('length\n"5\n', "line 2: unexpected end of data"),
            ("5\n" + "x" * 99 + "\n", "line 2: 'x{40}...' is not"),
        ],
    )
    def test_what_cannot_be_read_is_named_with_its_line(self, written, text, message):
        path = written(text)
        with pytest.raises(ValueError, match=message) as caught:
            Lengths.of(str(path))
        assert str(caught.value).startswith(str(path))

    @pytest.mark.parametrize(
        ("text", "message"),
        [("a,b\n1,2\n", "no column 'c'; there are: a, b"), ("5\n", "no header to find"), ("c,c\n1,2\n", "2 columns")],
    )
    def test_a_column_that_is_not_there(self, written, text, message):
        with pytest.raises(ValueError, match=f"line 1: .*{message}"):
            Lengths.read(written(text), "c")

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            Lengths.of(str(tmp_path / "none.csv"))
        with pytest.raises(OSError, match="directory"):
            Lengths.of(tmp_path)
