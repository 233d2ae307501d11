"""BERT's uncased tokenizer: clean and split the text into words, then each word into the longest pieces known.

Devlin et al., "BERT", 2018, arXiv:1810.04805, section 3.1; the pieces are those of Wu et al., 2016, arXiv:1609.08144.
"""

import re
import string
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from refattn.arrays import check_count
from refattn.models.files import count, find, read_json, read_optional_json, read_text

PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = re.compile(r"(\[PAD\]|\[UNK\]|\[CLS\]|\[SEP\]|\[MASK\])")
LONGEST_WORD = 100

CJK = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


def normalize(text: str) -> str:
    r"""Clean a text: no control characters, one kind of space, ideographs set apart, no accents, lower case.

    Each character is lowered alone, so a final Σ becomes σ, as in the tokenizers that are in use now.

    Examples
    --------
    >>> normalize("Crème\tBRÛLÉE")
    'creme brulee'
    """
    kept = []
    for c in text:
        category = unicodedata.category(c)
        if c in "\t\n\r" or category[0] == "Z":
            kept.append(" ")
        elif category in ("Cc", "Cf", "Cs", "Co") or c == "\ufffd":  # not Cn: what Unicode adds later is text, too
            continue
        elif any(first <= ord(c) <= last for first, last in CJK):
            kept.append(f" {c} ")
        else:
            kept.append(c)
    decomposed = unicodedata.normalize("NFD", "".join(kept))
    return "".join(c.lower() for c in decomposed if unicodedata.category(c) != "Mn")  # Mn: the accents


def split_words(text: str) -> list[str]:
    """Split a normalised text at its spaces, and around every punctuation character.

    Examples
    --------
    >>> split_words("it's $5!")
    ['it', "'", 's', '$', '5', '!']
    """
    spaced = (f" {c} " if c in string.punctuation or unicodedata.category(c)[0] == "P" else c for c in text)
    return "".join(spaced).split()


class WordPiece:
    """BERT's uncased tokenizer over one vocabulary.

    Parameters
    ----------
    vocabulary : sequence of str
        Token n is the n-th; a piece inside a word starts with "##". [PAD], [UNK], [CLS] and [SEP] must be among them.

    Raises
    ------
    ValueError
        For a vocabulary without these four.

    Examples
    --------
    >>> tokenizer = WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able"])
    >>> tokenizer.tokens("Unaffable")
    ['un', '##aff', '##able']
    >>> tokenizer.encode("Unaffable")
    [2, 4, 5, 6, 3]
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.vocabulary = {token: n for n, token in enumerate(vocabulary)}
        missing = [token for token in (PAD, UNK, CLS, SEP) if token not in self.vocabulary]
        if missing:
            raise ValueError(f"WordPiece: the vocabulary of {len(vocabulary)} tokens lacks {', '.join(missing)}")

    @classmethod
    def load(cls, folder: "str | Path") -> "WordPiece":
        """Read the vocabulary of a model's folder.

        Parameters
        ----------
        folder : str or Path
            With vocab.txt (one token a line), else tokenizer.json. Where config.json stands beside it, its
            ``vocab_size`` tells a vocabulary that was cut short.

        Returns
        -------
        WordPiece

        Raises
        ------
        FileNotFoundError, ValueError
            Naming the file that is missing, corrupt, cut short, or asks for another tokenizer than the uncased one.
        """
        if (Path(folder) / "vocab.txt").is_file() or not (Path(folder) / "tokenizer.json").is_file():
            path = find(folder, "vocab.txt")
            vocabulary = _from_text(path)
        else:
            path = find(folder, "tokenizer.json")
            vocabulary = _from_json(path)
        if (Path(folder) / "config.json").is_file():
            config = find(folder, "config.json")
            size = count(config, read_json(config), "vocab_size")
            if len(vocabulary) != size:
                raise ValueError(
                    f"{path}: holds {len(vocabulary)} tokens, but config.json says vocab_size is {size}; "
                    "it was cut short or belongs to another model"
                )
        try:
            return cls(vocabulary)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def tokens(self, text: str) -> list[str]:
        """Return the pieces of a text, without [CLS] and [SEP]; a word that cannot be built from pieces is [UNK].

        A special token written out in the text stays one, as in other implementations.

        Parameters
        ----------
        text : str

        Returns
        -------
        list of str
        """
        return list(self._tokens(text))

    def encode(self, text: str, max_tokens: int | None = None) -> list[int]:
        """Return the ids of [CLS], the pieces of a text, and [SEP].

        Parameters
        ----------
        text : str
        max_tokens : int, optional
            The most ids to return, at least 2; the pieces beyond are dropped.

        Returns
        -------
        list of int
        """
        if max_tokens is not None:
            check_count("encode", "max_tokens", max_tokens, least=2)
        pieces = islice(self._tokens(text), None if max_tokens is None else max_tokens - 2)
        return [self.vocabulary[token] for token in (CLS, *pieces, SEP)]

    def _tokens(self, text: str) -> Iterator[str]:
        if not isinstance(text, str):
            raise TypeError(f"WordPiece: a text is {type(text).__name__}; wanted str")
        for part in SPECIAL.split(text):
            if SPECIAL.fullmatch(part) and part in self.vocabulary:
                yield part
                continue
            for word in split_words(normalize(part)):
                yield from self._pieces(word)

    def _pieces(self, word: str) -> list[str]:
        if len(word) > LONGEST_WORD:
            return [UNK]
        pieces: list[str] = []
        start = 0
        while start < len(word):
            inside = "##" if start else ""
            for end in range(len(word), start, -1):  # the longest piece that is known
                if inside + word[start:end] in self.vocabulary:
                    break
            else:
                return [UNK]
            pieces.append(inside + word[start:end])
            start = end
        return pieces


def _from_text(path: Path) -> list[str]:
    settings = read_optional_json(path.parent, "tokenizer_config.json")
    _only_uncased(path.parent / "tokenizer_config.json", settings, "do_lower_case", "tokenize_chinese_chars")
    lines = read_text(path).split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _from_json(path: Path) -> list[str]:
    content = read_json(path)
    model, settings = content.get("model"), content.get("normalizer")
    if not isinstance(model, dict) or not isinstance(settings, dict):
        raise ValueError(f"{path}: no model and normalizer; wanted those of a WordPiece tokenizer")
    _only_uncased(path, settings, "lowercase", "handle_chinese_chars", "clean_text")
    if model.get("type", "WordPiece") != "WordPiece":
        raise ValueError(f"{path}: its model is {model['type']!r}; wanted 'WordPiece'")
    ids = model.get("vocab")
    if not isinstance(ids, dict) or sorted(map(repr, ids.values())) != sorted(map(repr, range(len(ids)))):
        raise ValueError(f"{path}: model.vocab must give the ids 0, 1, 2, ... to its tokens, each once")
    return sorted(ids, key=lambda token: ids[token])


def _only_uncased(path: Path, settings: dict[str, object], *switches: str) -> None:
    for switch in (*switches, "strip_accents"):
        if settings.get(switch, True) not in (True, None):
            raise ValueError(f"{path}: {switch} is {settings[switch]!r}; only BERT's uncased tokenizer is there")
