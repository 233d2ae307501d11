import builtins

import numpy as np
import pytest

from refattn import masks
from refattn.masks.parse import PATTERNS

GOOD = [
    "causal()",
    "causal(-3)",
    "causal([0, 4])",
    "window(255, 0)",
    "window(None, 3)",
    "padding([3, 5])",
    "padding(4)",
    "document([0, 0, 1])",
    "document([[0, 1], [2, 2]], [[0], [2]])",
    "global_tokens([0, 7])",
    "global_tokens([])",
    "from_array([[True, False], [True, True]])",
    "prefix_lm(3)",
    "prefix_lm([1, 2])",
    "chunked(4)",
    "dilated(2, 3)",
    "strided(2, 3)",
    "fixed(4, 1)",
    "random(2, 0)",
    "random(2, 1, 3)",
    "random_blocks(2, 4, 0)",
    "random_blocks(2, 4, 1, 3)",
    "bigbird(4, 3, [0, -1], 3, 0)",
    "bigbird(4, 1, [], 0, 7, 2)",
    "block([[True, False], [True, True]], 4)",
    "causal() & (strided(2, 3) | random(2, 0))",
    "~causal()",
    "~~causal()",
    "causal() & (window(7, 0) | global_tokens([0]))",
    "(causal() & window(7, 0)) | global_tokens([0])",
    "~(causal() & window(1, 1)) & padding([2, 3])",
]


@pytest.mark.parametrize("text", GOOD)
def test_repr_round_trips(text):
    mask = masks.parse(text)
    assert repr(mask) == text
    assert repr(masks.parse(repr(mask))) == text


def test_precedence_and_spaces_are_those_of_python():
    for text in ("causal()&window(7,0)|global_tokens([0])", "  (causal() & window(7, 0)) | global_tokens([0])\n"):
        assert repr(masks.parse(text)) == "(causal() & window(7, 0)) | global_tokens([0])"
    assert repr(masks.parse("~causal() & window(1, 1)")) == "~causal() & window(1, 1)"


def test_keywords():
    assert masks.parse("window(left=3, right=None)") == masks.window(3, None)
    assert masks.parse("causal(offset=0)") == masks.causal(0)


def test_arguments_have_their_defaults():
    assert masks.parse("bigbird(8)") == masks.bigbird(8, 3, (0, -1), 3, 0, None)
    assert masks.parse("random(4)") == masks.random(4, 0, None)
    assert repr(masks.parse("longformer(4, [0])")) == "window(4, 4) | global_tokens([0])"


def test_every_pattern_is_known():
    others = {"as_mask", "parse", "from_function", "Mask", "Blocks", "EMPTY", "FULL", "PARTIAL"}
    assert set(PATTERNS) == set(masks.__all__) - others


def test_a_large_array_has_a_short_repr():
    layout = masks.block(np.ones((100, 100), bool), 4)
    assert repr(layout) == "block(<bool (100, 100), 10000 visible>, 4)"
    assert repr(masks.from_array(np.ones((100, 100), bool))) == "from_array(<bool (100, 100), 10000 visible>)"


BAD = {
    "": "not an expression",
    "   ": "not an expression",
    "causal(": "not an expression",
    "causal() &": "not an expression",
    "causal() causal()": "not an expression",
    "causal": r"causal needs its brackets: causal\(...\)",
    "x": "expected a pattern, one of bigbird, block, causal",
    "42": "expected a pattern",
    "'causal()'": "expected a pattern",
    "[causal()]": "expected a pattern",
    "causal() + window(1, 0)": "expected a pattern",
    "causal() and window(1, 0)": "expected a pattern",
    "not causal()": "expected a pattern",
    "-causal()": "expected a pattern",
    "causal() if 1 else causal()": "expected a pattern",
    "lambda: causal()": "expected a pattern",
    "(m := causal())": "expected a pattern",
    "cusal()": "no pattern 'cusal'; there are bigbird, block, causal",
    "masks.causal()": "no pattern 'masks.causal'",
    "from_function(print)": "no pattern 'from_function'",
    "causal()()": r"no pattern 'causal\(\)'",
    "window(1 + 1, 0)": "must be plain numbers, lists or None",
    "window(n, 0)": "must be plain numbers, lists or None",
    "window(window(1, 0), 0)": "must be plain numbers, lists or None",
    "padding(*[1])": "must be plain numbers, lists or None",
    "padding({[1]: 2})": "padding",
    "causal(**{'offset': 0})": "causal",
    "window(1)": "missing 1 required positional argument: 'right'",
    "window(1, 0, 0)": "takes 2 positional arguments",
    "window(1, 0, size=3)": "unexpected keyword argument 'size'",
    "window(-1, 0)": "left is -1",
    "causal() & fixed(2, 3)": "column 12: fixed: summary is 3",
    "random(2, heads=0)": "heads is 0",
    "window('a', 0)": "left must be an integer",
    "padding([-1])": "lengths holds -1",
    "padding('abc')": "wanted integers",
    "padding([[1], [2, 3]])": "padding",
    "causal(\0)": "causal",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_text_is_refused_and_quoted(text):
    with pytest.raises(ValueError, match=BAD[text]) as caught:
        masks.parse(text)
    assert str(caught.value).startswith("mask ")
    assert repr(text.strip()) in str(caught.value) or repr(text) in str(caught.value)


def test_the_error_names_the_column():
    with pytest.raises(ValueError, match="column 12: no pattern 'wndow'"):
        masks.parse("causal() & wndow(1, 0)")


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "eval('causal()')",
        "causal(__import__('os').getpid())",
        "causal(open('trace', 'w'))",
        "causal([c for c in ().__class__.__base__.__subclasses__()])",
        "causal() & print('seen')",
        "window(exit(), 0)",
    ],
)
def test_nothing_is_evaluated(text, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("eval", "exec", "print", "exit", "open"):
        monkeypatch.setattr(builtins, name, _seen, raising=False)
    with pytest.raises(ValueError, match=r"^mask "):
        masks.parse(text)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def _seen(*args, **kwargs):
    raise AssertionError("something was evaluated")


def test_a_bomb_of_brackets_is_a_value_error():
    with pytest.raises(ValueError, match=r"^mask "):
        masks.parse("(" * 500 + "causal()" + ")" * 500)
    with pytest.raises(ValueError, match=r"^mask "):
        masks.parse("~" * 100_000 + "causal()")
