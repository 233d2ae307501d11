import json
import random
import unicodedata

import pytest

from refattn.models.wordpiece import LONGEST_WORD, WordPiece, normalize, split_words

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, "un", "##aff", "##able", "##a", "able", "a", "b", "##b", "!", "東", "京", "ij", "σ", "##σ"]


@pytest.fixture
def tokenizer():
    return WordPiece(VOCABULARY)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", ""),
        ("HeLLo", "hello"),
        ("Crème Brûlée ÀÉÎÕÜ", "creme brulee aeiou"),
        ("e\u0301", "e"),  # an accent of its own
        ("İstanbul", "istanbul"),
        ("ΣΑΣ", "σασ"),
        ("a\x00b\x07c\ufffdd", "abcd"),
        ("a\u200bb\u00adc\ufeffd\u202ee", "abcde"),  # zero width, soft hyphen, byte-order mark, direction
        ("a\ue000b\ud800c", "abc"),  # private use, half of a surrogate pair
        ("a\tb\nc\rd\u00a0e\u3000f\u2028g", "a b c d e f g"),
        ("a\x0bb\x85c", "abc"),  # control characters that look like space to str.split
        ("東京a", " 東  京 a"),
        ("\U00020000", " \U00020000 "),
        ("한", "\u1112\u1161\u11ab"),  # Hangul is decomposed, not set apart
        ("かタ", "かタ"),
        ("ｱﬁ", "ｱﬁ"),  # canonical, not compatibility decomposition
        ("\U0010fffd\u0378", "\u0378"),  # an unassigned character may be a letter one day
    ],
)
def test_normalize(text, wanted):
    assert normalize(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", []),
        ("  ", []),
        ("a b", ["a", "b"]),
        ("it's", ["it", "'", "s"]),
        ("...", [".", ".", "."]),
        ("$5+3=8", ["$", "5", "+", "3", "=", "8"]),
        ("a^b`c|d~e", ["a", "^", "b", "`", "c", "|", "d", "~", "e"]),
        ("«a»—b。", ["«", "a", "»", "—", "b", "。"]),
        ("5€", ["5€"]),  # of the symbols only those of ASCII are split off
    ],
)
def test_split_words(text, wanted):
    assert split_words(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("unaffable", ["un", "##aff", "##able"]),
        ("UNAFFABLE!", ["un", "##aff", "##able", "!"]),
        ("ab", ["a", "##b"]),
        ("abz", ["[UNK]"]),  # one unknown piece makes the whole word unknown
        ("a z b", ["a", "[UNK]", "b"]),
        ("aaff", ["a", "##aff"]),
        ("unable", ["un", "##able"]),
        ("東京", ["東", "京"]),
        ("東大", ["東", "[UNK]"]),
        ("ΣΣ", ["σ", "##σ"]),
        ("a[SEP]b", ["a", "[SEP]", "b"]),
        ("[MASK] able", ["[MASK]", "able"]),
        ("[sep]", ["[UNK]", "[UNK]", "[UNK]"]),
        ("", []),
        ("\x00\u200b", []),
        ("a" * LONGEST_WORD, ["a", *["##a"] * (LONGEST_WORD - 1)]),
        ("a" * (LONGEST_WORD + 1), ["[UNK]"]),
    ],
)
def test_tokens(tokenizer, text, wanted):
    assert tokenizer.tokens(text) == wanted


def test_longest_match_comes_first():
    tokenizer = WordPiece([*SPECIAL, "a", "ab", "##b", "##c", "##bc"])
    assert tokenizer.tokens("abc") == ["ab", "##c"]  # not a, ##bc


def test_encode_wraps_and_truncates(tokenizer):
    assert tokenizer.encode("a b") == [2, 10, 11, 3]
    assert tokenizer.encode("") == [2, 3]
    assert tokenizer.encode("unaffable", max_tokens=4) == [2, 5, 6, 3]
    assert tokenizer.encode("unaffable", max_tokens=5) == tokenizer.encode("unaffable")
    assert tokenizer.encode("unaffable", max_tokens=2) == [2, 3]
    assert len(tokenizer.encode("a " * 100_000, max_tokens=16)) == 16


def test_mask_token_may_be_missing():
    assert WordPiece(VOCABULARY[:4]).tokens("[MASK]") == ["[UNK]"] * 3


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: t.encode("a", max_tokens=1), ValueError, "max_tokens is 1; wanted at least 2"),
        (lambda t: t.encode("a", max_tokens=2.5), TypeError, "max_tokens must be an integer"),
        (lambda t: t.tokens(b"a"), TypeError, "a text is bytes; wanted str"),
        (lambda t: t.tokens(None), TypeError, "a text is NoneType"),
        (lambda t: WordPiece(["[PAD]", "[CLS]", "a"]), ValueError, r"3 tokens lacks \[UNK\], \[SEP\]"),
    ],
)
def test_refuses(tokenizer, call, error, message):
    with pytest.raises(error, match=message):
        call(tokenizer)


def _tokenizer_json(vocabulary, **normalizer):
    return {
        "normalizer": {"type": "BertNormalizer", "lowercase": True, "strip_accents": None, **normalizer},
        "model": {"type": "WordPiece", "vocab": {token: n for n, token in enumerate(vocabulary)}},
    }


def test_load_from_either_file(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(_tokenizer_json(VOCABULARY)), encoding="utf-8")
    from_json = WordPiece.load(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    from_text = WordPiece.load(str(tmp_path))
    assert from_json.vocabulary == from_text.vocabulary == {token: n for n, token in enumerate(VOCABULARY)}


def test_load_keeps_odd_lines(tmp_path):
    odd = [*VOCABULARY, "\u2028", "\x85", "##\u00a0"]  # str.splitlines would break these
    (tmp_path / "vocab.txt").write_bytes("\r\n".join(odd).encode())  # and no newline at the end
    assert list(WordPiece.load(tmp_path).vocabulary) == odd


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, FileNotFoundError, "vocab.txt: no such file"),
        ({"vocab.txt": ""}, ValueError, r"vocab.txt: .*lacks \[PAD\]"),
        ({"vocab.txt": "\n".join(VOCABULARY[:3])}, ValueError, r"vocab.txt: .*lacks \[SEP\]"),
        (
            {"vocab.txt": "\n".join(VOCABULARY[:9]), "config.json": '{"vocab_size": 19}'},
            ValueError,
            "vocab.txt: holds 9 tokens, but config.json says vocab_size is 19; it was cut short",
        ),
        ({"vocab.txt": b"[PAD]\n\xff\xfe"}, ValueError, "vocab.txt: not UTF-8 text .* at byte 6"),
        ({"vocab.txt": "a", "config.json": "{"}, ValueError, "config.json: not JSON, or cut short"),
        ({"vocab.txt": "a", "config.json": "{}"}, ValueError, "config.json: vocab_size is None"),
        ({"vocab.txt": "a", "tokenizer_config.json": '{"do_lower_case": false}'}, ValueError, "do_lower_case is False"),
        ({"tokenizer.json": json.dumps(_tokenizer_json(VOCABULARY))[:-20]}, ValueError, "tokenizer.json: not JSON, or"),
        ({"tokenizer.json": "[1, 2]"}, ValueError, "tokenizer.json: holds a JSON list; wanted an object"),
        ({"tokenizer.json": "[" * 100_000}, ValueError, "tokenizer.json: not JSON, or cut short"),
        ({"tokenizer.json": "{}"}, ValueError, "tokenizer.json: no model and normalizer"),
        ({"tokenizer.json": json.dumps(_tokenizer_json(["a", "a"]))}, ValueError, "must give the ids 0, 1, 2"),
        ({"tokenizer.json": json.dumps(_tokenizer_json([], lowercase=False))}, ValueError, "lowercase is False"),
        (
            {"tokenizer.json": '{"model": {"type": "BPE", "vocab": {}}, "normalizer": {}}'},
            ValueError,
            "tokenizer.json: its model is 'BPE'",
        ),
        (
            {"tokenizer.json": '{"model": {"vocab": {"a": [1]}}, "normalizer": {}}'},
            ValueError,
            "tokenizer.json: model.vocab must give the ids",
        ),
    ],
)
def test_load_refuses(tmp_path, files, error, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error, match=message):
        WordPiece.load(tmp_path)


def test_load_wants_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        WordPiece.load(tmp_path / "nowhere")


NASTY = [
    "Crème brûlée, ÀÉÎÕÜ ñ ß ﬁ Ⅷ",
    "İI ıi ΣΑΣ ΌΣΟΣ",
    "e\u0301\u0327 q\u0323\u0307 \u0301",
    "東京タワー 한국어 ไทย हिन्दी עִבְרִית العَرَبِيَّة",
    "a\x00b\x0bc\x85d\u2028e\u00a0f\u3000g\u200bh\ufeffi\ufffdj",
    "it's $5.00—«no»; #hash @you a_b C++ 50% <b> [x] {y} ~`^|\\",
    "🙂👩‍👩‍👧 ☃ ∑ € ½ ①",
    "[SEP] x[MASK]y [sep] [CLS",
    "un" * 60 + " " + "a" * 100 + " " + "a" * 101,
    "",
]


@pytest.mark.peers
def test_like_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra `peers`)")
    characters = sorted({c for text in NASTY for c in normalize(text) if c != " "} | set("abcdefghinu"))
    vocabulary = [*SPECIAL, *characters, *("##" + c for c in characters), "un", "##un", "##able", "han"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    mine = WordPiece.load(tmp_path)
    ours = mine.vocabulary
    theirs = transformers.BertTokenizerFast.from_pretrained(tmp_path)
    assert dict(theirs.get_vocab()) == ours

    old = unicodedata.ucd_3_2_0  # characters that every version of Unicode in use knows, and classes alike
    pool = [chr(n) for n in range(0x20000) if old.category(chr(n)) not in ("Cn", "Cs", "Co")]
    pool = [c for c in pool if old.category(c) == unicodedata.category(c)]
    rng = random.Random(0)
    noise = ["".join(rng.choices(pool if n % 2 else characters, k=rng.randrange(30))) for n in range(2000)]
    for text in (*NASTY, *noise):
        assert mine.encode(text) == theirs(text)["input_ids"], ascii(text)
        assert mine.encode(text, 7) == theirs(text, truncation=True, max_length=7)["input_ids"], ascii(text)
