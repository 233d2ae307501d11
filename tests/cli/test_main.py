import os
import subprocess
import sys

import pytest

from refattn.cli import files, main, one_line, show_mask
from refattn.dispatch import Unsupported

COMMANDS = ("compare", "backends", "show-mask", "embed", "generate")


def python(*words, **options):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120, **options)


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"refattn {command}" in capsys.readouterr().out


def test_no_command_prints_help(capsys):
    assert main([]) == 0
    assert "show-mask" in capsys.readouterr().out


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["comprae"])
    assert stop.value.code == 2
    assert "comprae" in capsys.readouterr().err


def test_as_a_module():
    done = python("-m", "refattn", "--version")
    assert done.returncode == 0
    assert done.stdout.startswith("refattn ")


def test_help_imports_no_optional_package():
    script = """
import sys
from refattn.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
print([name for name in ("rich", "matplotlib", "numba", "safetensors", "ml_dtypes") if name in sys.modules])
"""
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a\n  b"), "a b"),
        (TypeError("wrong"), "wrong"),
        (KeyError("no such"), "no such"),
        (LookupError("no backend 'x'"), "no backend 'x'"),
        (ImportError("install it"), "install it"),
        (Unsupported("not covered"), "not covered"),
        (FileNotFoundError(2, "No such file or directory", "a.npz"), "a.npz: No such file or directory"),
        (OSError("disk"), "disk"),
        (ValueError(), "ValueError"),
    ],
)
def test_what_a_user_did_wrong_is_one_line(error, line, monkeypatch, capsys):
    def fail(args):
        raise error

    monkeypatch.setattr(show_mask, "run", fail)
    assert main(["show-mask", "causal()"]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"refattn: error: {line}\n"
    assert captured.out == ""
    assert one_line(error) == line


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail(args):
        raise AssertionError("a bug")

    monkeypatch.setattr(show_mask, "run", fail)
    with pytest.raises(AssertionError):
        main(["show-mask", "causal()"])


def test_an_interruption_is_one_line(monkeypatch, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(show_mask, "run", interrupt)
    assert main(["show-mask", "causal()"]) == 130
    assert capsys.readouterr().err == "refattn: interrupted\n"


@pytest.mark.skipif(os.name == "nt", reason="pipes break differently on Windows")
@pytest.mark.parametrize("words", [("show-mask", "causal()"), ("backends",)], ids=["show-mask", "backends"])
def test_a_broken_pipe_is_quiet(words):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        process = subprocess.run(
            [sys.executable, "-m", "refattn", *words], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120
        )
    finally:
        os.close(writer)
    assert process.stderr == ""
    assert process.returncode == 141


def test_a_terminal_without_blocks_shows_something():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = python("-m", "refattn", "show-mask", "causal()", "--t", "2", env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["??", "??"]


class TestFiles:
    def test_a_failure_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "a.json"
        path.write_text("old")

        def fail(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="space"):
            files.write(str(path), "new")
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_success_replaces_it(self, tmp_path):
        path = tmp_path / "a.json"
        path.write_text("old")
        files.check_writable({"--json": str(path)})
        assert path.read_text() == "old"
        files.write(str(path), "new ×")
        assert path.read_text(encoding="utf-8") == "new ×"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_link_stays_a_link(self, tmp_path):
        path, link = tmp_path / "a.json", tmp_path / "link.json"
        link.symlink_to(path)
        files.write(str(link), "new")
        assert link.is_symlink()
        assert path.read_text() == "new"

    @pytest.mark.skipif(not os.path.exists("/dev/null"), reason="there is no /dev/null")
    def test_devices_are_not_replaced(self):
        files.check_writable({"--json": "/dev/null"})
        files.write("/dev/null", "new")
        assert not os.path.isfile("/dev/null")

    @pytest.mark.parametrize("path", ["missing/a.json", ".", "a_file/a.json"])
    def test_what_cannot_be_written(self, path, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a_file").write_text("")
        with pytest.raises(OSError):
            files.check_writable({"--json": path})

    def test_one_path_for_two_outputs(self, tmp_path):
        path = str(tmp_path / "a")
        with pytest.raises(ValueError, match="--json and --csv both"):
            files.check_writable({"--json": path, "--csv": path})
        with pytest.raises(ValueError, match="--json and --csv both"):
            files.check_writable({"--json": "-", "--csv": "-"})
