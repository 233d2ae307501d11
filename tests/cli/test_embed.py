import argparse
import io
import json

import numpy as np
import pytest

from refattn.cli import embed
from refattn.models.minilm import MiniLM
from tests.models import tiny_bert


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_bert.write(tmp_path_factory.mktemp("models") / "tiny")


def run(*words):
    parser = argparse.ArgumentParser()
    embed.add_arguments(parser)
    return embed.run(parser.parse_args([str(word) for word in words]))


def test_prints_the_first_entries(folder, capsys):
    assert run("--model", folder, "hello world", "a" * 80) == 0
    lines = capsys.readouterr().out.splitlines()
    vector = MiniLM.load(folder).embed(["hello world"])[0]
    assert lines[0] == "  1 'hello world'"
    assert lines[1] == "    [" + " ".join(f"{x:9.6f}" for x in vector[:5]) + " ...]  12 numbers, norm 1.000000"
    assert lines[2] == f"  2 '{'a' * 60}'..."
    assert len(lines) == 4


def test_similarity_table(folder, capsys):
    assert run("--model", folder, "--similar", "hello", "world", "hello") == 0
    table = capsys.readouterr().out.split("cosine similarity\n")[1].splitlines()
    rows = np.array([[float(x) for x in line.split()] for line in table[1:]])
    assert table[0].split() == ["1", "2", "3"]
    np.testing.assert_allclose(rows[:, 1:], rows[:, 1:].T)
    assert rows[0, 1] == rows[0, 3] == 1.0 and rows[0, 2] < 1.0


def test_json_to_standard_output_is_nothing_but_json(folder, capsys):
    assert run("--model", folder, "--json", "-", "--similar", "--backend", "numpy", "hello", "wörld") == 0
    content = json.loads(capsys.readouterr().out)
    wanted = MiniLM.load(folder).embed(["hello", "wörld"])
    assert content["texts"] == ["hello", "wörld"]
    np.testing.assert_array_equal(np.array(content["embeddings"], np.float32), wanted)
    np.testing.assert_allclose(content["similarities"], wanted @ wanted.T, atol=1e-6)


def test_json_to_a_file(folder, tmp_path, capsys):
    assert run("--model", folder, "--json", tmp_path / "out.json", "hello") == 0
    assert "norm 1.000000" in capsys.readouterr().out
    content = json.loads((tmp_path / "out.json").read_text())
    assert sorted(content) == ["embeddings", "texts"]
    assert np.shape(content["embeddings"]) == (1, 12)


def test_texts_from_standard_input(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello world\n\n  \nabc\n"))
    assert run("--model", folder, "--json", "-", "first", "-") == 0
    assert json.loads(capsys.readouterr().out)["texts"] == ["first", "hello world", "abc"]


def test_says_what_was_not_read(folder, capsys):
    assert run("--model", folder, "short", "a " * 20) == 0
    notes = capsys.readouterr().err.splitlines()
    assert notes == [f"note: read 16 of the 22 tokens of {'a ' * 20!r}"]


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--model", "/nowhere", "a"], FileNotFoundError, "/nowhere: no such folder"),
        (["--model", "{folder}", "--backend", "fortran", "a"], LookupError, "no backend 'fortran'"),
        (["--model", "{folder}", "--json", "/nowhere/out.json", "a"], OSError, "/nowhere/out.json"),
        (["--model", "{folder}", "-"], ValueError, "standard input holds no text"),
    ],
)
def test_errors_are_left_to_main(folder, monkeypatch, words, error, message):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    with pytest.raises(error, match=message):
        run(*(word.format(folder=folder) for word in words))


@pytest.mark.parametrize("words", [[], ["--model", "x"], ["text"]])
def test_usage(words, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(*words)
    assert exit_.value.code == 2
    assert "required" in capsys.readouterr().err
