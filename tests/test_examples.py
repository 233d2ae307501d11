"""Every example runs, and ends in an assert that holds."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ARGUMENTS = {  # those whose defaults take minutes, or would write into the checkout
    "train_gpt": ("--steps", "6", "--batch", "2", "--asked", "2000", "--out", "gpt.npz"),
    "freeze_corpus": ("--out", "corpus.txt"),
    "compare_mixers": (
        *("--steps", "6", "--context", "32", "--width", "32", "--layers", "1", "--batch", "4", "--behind", "40"),
    ),
}
ELSEWHERE = {"embed_text": "tests/models/test_minilm.py"}  # needs a model that is downloaded: marked slow there


@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.stem not in ELSEWHERE], ids=lambda path: path.stem)
def test_example(path, tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "backends")])}
    command = [sys.executable, "-W", "error", str(path), *ARGUMENTS.get(path.stem, ())]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip(), "an example shows something"


def test_the_tables_name_examples_that_are_there():
    names = {path.stem for path in EXAMPLES}
    assert names >= {*ARGUMENTS, *ELSEWHERE}
    for name, file in ELSEWHERE.items():
        assert f"{name}.py" in (ROOT / file).read_text()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_ends_in_an_assert(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    main = next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"), None)
    end = (tree if main is None else main).body[-5:]  # a few lines may print or return what was asserted
    assert any(isinstance(node, ast.Assert) for part in end for node in ast.walk(part))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_short(path):
    assert len(path.read_text().splitlines()) <= (130 if path.stem in ARGUMENTS else 45)
