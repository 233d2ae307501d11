import argparse

import pytest

from refattn.cli import generate
from refattn.models.gpt import GPT


def run(*words):
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    return generate.run(parser.parse_args(words))


def test_it_prints_the_prompt_and_what_follows(capsys):
    options = ("--tokens", "12", "--temperature", "0.9", "--top-k", "5", "--seed", "3", "--backend", "numpy")
    assert run("def ", *options) == 0
    expected = GPT.bundled().generate("def ", 12, temperature=0.9, top_k=5, seed=3)
    assert capsys.readouterr().out == f"def {expected}\n"


def test_characters_come_one_by_one(monkeypatch):
    printed = []
    monkeypatch.setattr("builtins.print", lambda *parts, **options: printed.append((parts, options)))
    run("def ", "--tokens", "3", "--temperature", "0")
    assert [len(parts) for parts, _ in printed] == [2, 1, 1, 0]
    assert all(options["flush"] for _, options in printed[:3])


def test_no_tokens_leave_the_prompt(capsys):
    assert run("def", "--tokens", "0") == 0
    assert capsys.readouterr().out == "def\n"


def test_another_checkpoint(tmp_path, capsys):
    gpt = GPT.bundled()
    gpt.parameters["norm"][:] = 0  # all logits equal: the first character of the vocabulary, which is a newline
    gpt.save(tmp_path / "flat.npz")
    run("a", "--tokens", "3", "--temperature", "0", "--checkpoint", str(tmp_path / "flat.npz"))
    assert capsys.readouterr().out == "a\n\n\n\n"


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (("",), ValueError, "prompt ''"),
        (("a€",), ValueError, "'€'"),
        (("a", "--tokens", "-5"), ValueError, "tokens is -5"),
        (("a", "--temperature", "-1"), ValueError, "temperature is -1"),
        (("a", "--top-k", "0"), ValueError, "top_k is 0"),
        (("a", "--seed", "-1"), ValueError, "seed is -1"),
        (("a", "--backend", "nowhere"), LookupError, "no backend 'nowhere'"),
        (("a", "--checkpoint", "nowhere.npz"), OSError, "nowhere.npz"),
    ],
)
def test_what_it_refuses_prints_nothing_first(words, error, message, capsys):
    with pytest.raises(error, match=message):
        run(*words)
    assert capsys.readouterr().out == ""
