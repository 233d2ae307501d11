"""The rules of the house that a tool can check. CONTRIBUTING says why they are there."""

import ast
import configparser
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from numpydoc.validate import validate

import refattn
import refattn.testing
from refattn import dispatch

ROOT = Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
OPTIONAL = {
    name
    for line in "\n".join(SETUP["options.extras_require"].values()).splitlines()
    if (name := re.match(r"[\w-]*", line).group().replace("-", "_")) and name != "refattn"
}


def run(*command, cwd=ROOT, **variables):
    """Run a module of this interpreter and return what it printed; its output is the message of the failure."""
    path = os.pathsep.join([str(cwd), str(Path(cwd) / "backends")])
    environment = os.environ | {"PYTHONPATH": path} | variables
    done = subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def python_files(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def tracked_files():
    """Every text file that belongs to the project: what git tracks or would, or everything where there is no git."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    names = listed.stdout.split("\0") if listed.returncode == 0 else [str(p.relative_to(ROOT)) for p in ROOT.rglob("*")]
    paths = [ROOT / name for name in names if name and (ROOT / name).is_file()]
    return [path for path in paths if path.suffix not in (".npz", ".npy", ".png", ".safetensors", ".pyc")]


def test_ruff_check():
    status, output = run("-m", "ruff", "check", "--no-cache", ".")
    assert status == 0, output


def test_ruff_format():
    status, output = run("-m", "ruff", "format", "--no-cache", "--diff", ".")
    assert status == 0, output


def test_mypy():
    status, output = run("-m", "mypy")
    assert status == 0, output


def lint_imports(folder):
    program = (
        "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports('setup.cfg', no_cache=True))"
    )
    return run("-c", program, cwd=folder)


def test_imports_go_down():
    status, output = lint_imports(ROOT)
    assert status == 0, output


VIOLATIONS = {  # contract -> (file, line to add): each must break that contract
    "reference": [
        ("refattn/dense/alibi.py", "import numba"),
        ("refattn/masks/picture.py", "def later():\n    import refattn_numba"),
        ("refattn/testing/cases.py", "from mpi4py import MPI"),
    ],
    "floors": [
        ("refattn/arrays.py", "import refattn.dispatch"),
        ("refattn/dispatch.py", "from refattn.masks import causal"),
        ("refattn/masks/picture.py", "def later():\n    from refattn.dense.attention import attention"),
        ("refattn/dense/alibi.py", "import refattn.testing.cases"),
        ("refattn/models/__init__.py", "import refattn.testing"),
        ("refattn/models/files.py", "import refattn.costs"),
        ("refattn/costs/units.py", "def later():\n    import refattn.watch.clock"),
        ("refattn/watch/clock.py", "import refattn.testing"),
        ("refattn/testing/cases.py", "import refattn.cli"),
    ],
    "judge": [
        ("backends/refattn_numba/__init__.py", "from refattn.dense.attention import attention as theirs"),
        ("backends/refattn_numba/__init__.py", "from refattn import Unsupported"),
        ("backends/refattn_numba/attention.py", "import refattn.costs"),
    ],
}


def contracts():
    return [name.rpartition(":")[2] for name in SETUP.sections() if name.startswith("importlinter:contract:")]


def test_every_contract_has_a_violation_that_it_must_catch():
    assert sorted(VIOLATIONS) == sorted(contracts())


@pytest.mark.parametrize(
    ("contract", "file", "line"),
    [(contract, file, line) for contract, planted in VIOLATIONS.items() for file, line in planted],
)
def test_every_contract_can_fail(contract, file, line, tmp_path):
    for name in ("refattn", "backends"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.npz"))
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    planted = tmp_path / file
    planted.write_text(planted.read_text() + f"\n{line}\n")
    status, output = lint_imports(tmp_path)
    name = SETUP[f"importlinter:contract:{contract}"]["name"]
    assert status == 1, output
    assert re.search(re.escape(name) + r"\s+BROKEN", output), output


def test_every_part_of_refattn_stands_on_a_floor():
    floors = SETUP["importlinter:contract:floors"]["layers"].replace("|", " ").split()
    parts = [path for path in (ROOT / "refattn").iterdir() if path.suffix == ".py" or any(path.glob("*.py"))]
    assert sorted(floors) == sorted(f"refattn.{path.stem}" for path in parts if not path.stem.startswith("__"))


def test_every_backend_is_under_every_contract():
    installed = {path.parent.name for path in (ROOT / "backends").glob("*/__init__.py")}
    assert installed == {
        line.split("=")[1].strip() for line in SETUP["options.entry_points"][dispatch.GROUP].strip().splitlines()
    }
    for setting in (
        SETUP["importlinter"]["root_packages"],
        SETUP["importlinter:contract:reference"]["forbidden_modules"],
        SETUP["importlinter:contract:judge"]["source_modules"],
    ):
        assert installed <= set(setting.split())


IMPORT_TIME = "import numpy, time; start = time.perf_counter(); import refattn; print(time.perf_counter() - start)"


def test_import_is_quick():
    seconds = min(float(run("-c", IMPORT_TIME)[1]) for _ in range(5))
    assert seconds < 0.3


def test_import_brings_in_nothing_optional():
    status, output = run("-c", "import sys, refattn; print(*sorted({m.partition('.')[0] for m in sys.modules}))")
    assert status == 0, output
    loaded = set(output.split())
    assert {"refattn", "numpy"} <= loaded
    assert len(OPTIONAL) > 10
    assert not loaded & (OPTIONAL | {"torch", "cupy", "refattn_numba", "mpi4py", "llvmlite", "pytest"})


def test_the_kit_runs_without_pytest():
    code = "import sys, refattn.testing.__main__; print('pytest' in sys.modules, 'numba' in sys.modules)"
    assert run("-c", code) == (0, "False False\n")


def test_setup_cfg_lists_the_packages_on_disk():
    listed = SETUP["options"]["packages"].split()
    folders = dict(line.split(" = ") for line in SETUP["options"]["package_dir"].strip().splitlines())
    on_disk = set()
    for root, base in ((ROOT, "refattn"), *((ROOT / "backends", name) for name in folders)):
        holding = {
            path.parent for path in (root / base).rglob("*") if path.is_file() and "__pycache__" not in path.parts
        }
        on_disk |= {".".join(folder.relative_to(root).parts) for folder in holding}
    assert sorted(listed) == sorted(on_disk)
    assert folders == {name: f"backends/{name}" for name in folders}


def test_package_data_covers_every_file_that_is_not_python():
    patterns = {package: value.split(",") for package, value in SETUP["options.package_data"].items()}
    for root in (ROOT / "refattn", *(ROOT / "backends").iterdir()):
        for path in root.rglob("*") if root.is_dir() else ():
            if path.is_file() and path.suffix not in (".py", ".pyc", ".nbi", ".nbc"):
                package = ".".join(path.parent.relative_to(root.parent).parts)
                allowed = [pattern.strip() for pattern in patterns["*"] + patterns.get(package, [])]
                assert any(path.match(pattern) for pattern in allowed), path


def test_versions_agree():
    assert refattn.__version__ == SETUP["metadata"]["version"]


def test_no_file_is_too_long():
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in python_files("refattn", "backends")
    }
    assert {name: lines for name, lines in lengths.items() if lines > 300} == {}


def test_no_function_is_too_long():
    too_long = []
    for path in python_files("refattn", "backends"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                if lines > 90:
                    too_long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines")
    assert too_long == []


def test_no_exception_is_swallowed():
    swallowed = []
    for path in python_files("refattn", "backends"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and all(isinstance(line, ast.Pass) for line in node.body):
                swallowed.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert swallowed == []


def _asserts(node, functions):
    """Whether a function asserts something: itself, or in a function of its file that it calls."""
    for inside in ast.walk(node):
        if isinstance(inside, ast.Assert):
            return True
        if isinstance(inside, ast.Call):
            called = ast.unparse(inside.func)
            if called in ("pytest.raises", "pytest.warns", "pytest.fail") or "assert_" in called:
                return True
            if called in functions and functions[called] is not node:
                helper = functions.pop(called)
                if _asserts(helper, functions):
                    return True
    return False


def test_every_test_asserts():
    idle = []
    for path in python_files("tests"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                functions = {other.name: other for other in tree.body if isinstance(other, ast.FunctionDef)}
                if not _asserts(node, functions):
                    idle.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert idle == []


def public_functions():
    modules = ((refattn, refattn.__all__), (refattn.testing, refattn.testing.__all__))
    return [f"{m.__name__}.{name}" for m, names in modules for name in names if inspect.isfunction(getattr(m, name))]


WANTED = {
    "GL08": "a docstring",
    "SS03": "a summary with a full stop",
    "PR01": "every parameter",
    "PR02": "no parameter that is not there",
    "PR10": "a space before the colon of a type",
    "RT01": "what it returns",
    "RT03": "a description of what it returns",
    "EX01": "an example",
}


@pytest.mark.parametrize("name", public_functions())
def test_docstrings(name):
    module, _, function = name.rpartition(".")
    computes = getattr(sys.modules[module], function).__module__ != "refattn.dispatch"
    wanted = set(WANTED) if computes else {"GL08", "SS03", "PR02"}
    errors = [f"{code}: {message}" for code, message in validate(name)["errors"] if code in wanted]
    assert errors == []


@pytest.mark.parametrize("operation", sorted(dispatch.OPERATIONS))
def test_docstrings_say_what_is_raised(operation):
    assert "Raises\n" in inspect.getdoc(dispatch.OPERATIONS[operation])


FOREIGN = {
    "a path of some machine": r"(?<![\w./])/(home|root|work|Users)/\w",
    "a host of a package registry": r"pythonhoste[d]|index[-_]url|//[\w.-]*(pypi|npmjs|artifactory|nexus|mirror)",
}


@pytest.mark.parametrize("what", FOREIGN)
def test_no_tracked_file_names(what):
    found = []
    for path in tracked_files():
        if path == Path(__file__):
            continue  # the patterns themselves
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if re.search(FOREIGN[what], line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert found == []
