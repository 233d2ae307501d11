"""The bundled text: this project's own documentation and source as they stood when the checkpoint was trained.

``examples/freeze_corpus.py`` writes it. What a model must beat are the two oldest language models, which count
characters and pairs of characters (Shannon, 1951, "Prediction and Entropy of Printed English").
"""

from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from refattn.arrays import check_count


def text() -> str:
    """Return the bundled text.

    Returns
    -------
    str
        Printable ASCII, newlines and some mathematical characters; each file after a line ``# file: path``.

    Examples
    --------
    >>> text().splitlines()[0].startswith("# file: ")
    True
    """
    return files("refattn.models.data").joinpath("corpus.txt").read_text(encoding="utf-8")


def vocabulary(text: str) -> str:
    """Return the characters of a text, each once, in the order of their code points.

    Examples
    --------
    >>> vocabulary("banana")
    'abn'
    """
    return "".join(sorted(set(text)))


def split(text: str, *, block: int = 4096, every: int = 10) -> tuple[str, str]:
    """Set every tenth block aside, so that both parts hold something of each kind of file.

    Parameters
    ----------
    text : str
    block : int
        Characters per block.
    every : int
        The last of so many blocks is held out.

    Returns
    -------
    train, held_out : str
        The blocks of each part, joined.

    Raises
    ------
    ValueError
        If the text has less than `every` blocks, and nothing would be held out.

    Examples
    --------
    >>> split("abcdefg", block=1, every=3)
    ('abdeg', 'cf')
    """
    check_count("split", "block", block)
    check_count("split", "every", every, least=2)
    blocks = [text[start : start + block] for start in range(0, len(text), block)]
    if len(blocks) < every:
        raise ValueError(f"split: the text has {len(text)} characters; wanted more than {(every - 1) * block}")
    train = "".join(part for n, part in enumerate(blocks) if n % every != every - 1)
    return train, "".join(blocks[every - 1 :: every])


def unigram_loss(train: str, held_out: str) -> float:
    r"""Return the loss of the model that counts characters, with one added to each count.

    .. math::
        p(b) = \frac{c(b) + 1}{N + V}

    Parameters
    ----------
    train, held_out : str
        What it counts, and what it is asked; V is the vocabulary of both.

    Returns
    -------
    float
        Nats per character of `held_out`.

    Examples
    --------
    >>> np.exp(-unigram_loss("aaa", "aa")).round(12)  # (3 + 1) / (3 + 1)
    np.float64(1.0)
    """
    seen, asked, V = _numbers(train, held_out)
    return -float(np.log(_unigram(seen, V))[asked].mean())


def bigram_loss(train: str, held_out: str, *, strength: float = 5.0) -> float:
    r"""Return the loss of the model that counts pairs, leaning on the unigram model where it has seen few.

    .. math::
        p(b \mid a) = \frac{c(ab) + s \, p(b)}{c(a) + s}

    Parameters
    ----------
    train, held_out : str
        What it counts, and what it is asked; V is the vocabulary of both.
    strength : float
        s: how many pairs the unigram model's opinion is worth.

    Returns
    -------
    float
        Nats per character of `held_out`, from its second on.

    Examples
    --------
    >>> round(bigram_loss("ab" * 1000, "abab"), 2)  # what follows is certain
    0.0
    """
    seen, asked, V = _numbers(train, held_out)
    counts = np.zeros((V, V))
    np.add.at(counts, (seen[:-1], seen[1:]), 1)  # c(ab)
    p = (counts + strength * _unigram(seen, V)) / (counts.sum(axis=1, keepdims=True) + strength)
    return -float(np.log(p)[asked[:-1], asked[1:]].mean())


def _numbers(train: str, held_out: str) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Return both texts as numbers, and the size of their vocabulary."""
    if len(train) < 2 or len(held_out) < 2:
        raise ValueError(f"the texts have {len(train)} and {len(held_out)} characters; wanted two at least in each")
    index = {character: n for n, character in enumerate(vocabulary(train + held_out))}
    seen, asked = (np.array([index[character] for character in part]) for part in (train, held_out))
    return seen, asked, len(index)


def _unigram(seen: NDArray[np.int64], V: int) -> NDArray[np.float64]:
    return (np.bincount(seen, minlength=V) + 1) / (len(seen) + V)
