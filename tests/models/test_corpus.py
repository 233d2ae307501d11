import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

from refattn.models import corpus

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def freeze():
    spec = importlib.util.spec_from_file_location("freeze_corpus", ROOT / "examples" / "freeze_corpus.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_bundled_text_holds_files_of_this_project():
    text = corpus.text()
    assert "# file: refattn/dispatch.py\n" in text
    assert len(text) > 50_000
    assert len(corpus.vocabulary(text)) < 200


def test_the_parts_make_up_the_text():
    text = corpus.text()
    train, held_out = corpus.split(text, block=1000, every=10)
    assert len(train) + len(held_out) == len(text)
    assert held_out[:1000] == text[9000:10000]
    assert train[9000:10000] == text[10000:11000]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block": 0}, "block is 0; wanted at least 1"),
        ({"every": 1}, "every is 1; wanted at least 2"),
        ({"block": 3}, "the text has 10 characters; wanted more than 27"),
    ],
)
def test_split_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        corpus.split("0123456789", **arguments)


def test_unigram_loss_by_hand():
    expected = -(2 * math.log((2 + 1) / (3 + 3)) + math.log((0 + 1) / (3 + 3))) / 3  # a, a and an unseen c
    assert corpus.unigram_loss("aab", "aac") == pytest.approx(expected)


def test_bigram_loss_by_hand():
    p = {"a": (2 + 1) / 5, "b": (1 + 1) / 5}
    expected = -(math.log((1 + 2 * p["a"]) / (2 + 2)) + math.log((1 + 2 * p["b"]) / (2 + 2))) / 2  # aa, ab of aab
    assert corpus.bigram_loss("aab", "aab", strength=2) == pytest.approx(expected)


def test_the_models_are_distributions():
    """The losses of all continuations, taken back to probabilities, add up to one."""
    train, characters = "abracadabra!", corpus.vocabulary("abracadabra!")
    pairs = [corpus.bigram_loss(train, "a" + character) for character in characters]
    singles = [corpus.unigram_loss(train, 2 * character) for character in characters]
    assert np.exp(-np.array(pairs)).sum() == pytest.approx(1)
    assert np.exp(-np.array(singles)).sum() == pytest.approx(1)


def test_pairs_know_more_than_characters():
    train, held_out = corpus.split(corpus.text())
    unigram, bigram = corpus.unigram_loss(train, held_out), corpus.bigram_loss(train, held_out)
    assert bigram < unigram < math.log(len(corpus.vocabulary(train + held_out)))


@pytest.mark.parametrize("loss", [corpus.unigram_loss, corpus.bigram_loss])
def test_baselines_refuse_too_short_texts(loss):
    with pytest.raises(ValueError, match="the texts have 3 and 1 characters; wanted two at least"):
        loss("abc", "a")


def test_freezing_writes_what_it_says(freeze, tmp_path, capsys):
    first, second = tmp_path / "1.txt", tmp_path / "2.txt"
    freeze.main(["--out", str(first)])
    freeze.main(["--out", str(second)])
    text = first.read_text(encoding="utf-8")
    assert first.read_bytes() == second.read_bytes()
    assert f"{len(text)} characters, {len(set(text))} different" in capsys.readouterr().out
    assert set(text) <= {"\n", *map(chr, range(32, 127)), *freeze.MATHEMATICAL}
    names = [line.removeprefix("# file: ") for line in text.splitlines() if line.startswith("# file: ")]
    assert "refattn/dispatch.py" in names and "examples/freeze_corpus.py" in names
    assert not any(name.startswith(("refattn/models/data/", *freeze.LEFT_OUT)) for name in names)


def test_freezing_is_sorted_and_leaves_the_data_out(freeze, tmp_path):
    for name in ("README.md", "docs/b.md", "docs/a.md", "refattn/x.py", "refattn/sub/y.py", "notes.txt", "other/z.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\n", encoding="utf-8")
    collected = freeze.collect(tmp_path)
    assert list(collected) == ["README.md", "docs/a.md", "docs/b.md", "refattn/sub/y.py", "refattn/x.py"]
    assert collected["docs/a.md"] == "docs/a.md"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a\tb\r\nc", "a    b\nc"),
        ("Σ σ² · θ", "Σ σ² · θ"),
        ("“naïve” – ‘ok’…", "\"naive\" - 'ok'..."),
        ("█▒·", "#+·"),
        ("日\x00é", "??e"),
    ],
)
def test_normalising(freeze, given, expected):
    assert freeze.normalise(given) == expected
