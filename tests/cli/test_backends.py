import sys
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest

from refattn import dispatch
from refattn.cli import backends, main
from refattn.cli.measure import candidates


@pytest.fixture
def only_numpy(monkeypatch):
    monkeypatch.setattr(dispatch, "_announced", dict)
    monkeypatch.setattr(dispatch, "_registered", {})


def listed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["backends"]) == 0
    return capsys.readouterr().out


def test_the_reference_covers_everything(only_numpy, monkeypatch, capsys):
    total = len(dispatch.OPERATIONS)
    row = next(line for line in listed(capsys, monkeypatch).splitlines() if line.startswith("numpy"))
    assert row.split()[-3:] == [str(total), "of", str(total)]
    assert "yes" in row


def test_what_a_backend_lacks_stands_with_its_reason(only_numpy, monkeypatch, capsys):
    partial = SimpleNamespace(
        attention=lambda *args, **kwargs: None,
        RANK=7,
        LIMITS={"rope": "it cannot turn", "attention(softcap)": "no tanh"},
        __name__="partial_module",
    )
    dispatch.register("partial", partial)
    out = listed(capsys, monkeypatch)
    row = next(line for line in out.splitlines() if line.startswith("partial  "))
    assert row.split() == ["partial", "partial_module", "yes", "7", "1", "of", str(len(dispatch.OPERATIONS))]
    assert "does not cover rope: it cannot turn" in out
    assert "does not cover attention(softcap): no tanh" in out
    assert "does not cover flash_attention: it has no flash_attention" in out
    assert "does not cover attention:" not in out


def test_a_backend_that_cannot_be_loaded(only_numpy, monkeypatch, capsys):
    ghost = EntryPoint("ghost", "no_such_module_of_refattn", dispatch.GROUP)
    monkeypatch.setattr(dispatch, "_announced", lambda: {"ghost": ghost})
    out = listed(capsys, monkeypatch)
    row = next(line for line in out.splitlines() if line.startswith("ghost"))
    assert row.split() == ["ghost", "no"]
    assert "cannot run here: backend 'ghost' cannot be loaded: No module named 'no_such_module_of_refattn'" in out


def test_a_backend_with_a_bug_at_import(only_numpy, monkeypatch, capsys, tmp_path):
    (tmp_path / "buggy_backend_of_refattn.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    buggy = EntryPoint("buggy", "buggy_backend_of_refattn", dispatch.GROUP)
    monkeypatch.setattr(dispatch, "_announced", lambda: {"buggy": buggy})
    assert "fails to load: ZeroDivisionError" in listed(capsys, monkeypatch)
    assert [row.reason for row in candidates(["attention"], ["buggy"])][1].startswith("backend 'buggy' fails to load")


def test_a_backend_without_its_hardware(only_numpy, monkeypatch, capsys):
    dispatch.register("far", SimpleNamespace(unavailable=lambda: "there is no GPU"))
    out = listed(capsys, monkeypatch)
    assert "cannot run here: there is no GPU" in out
    assert backends.coverage("far").rank == 0


def test_without_rich(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich", None)
    assert main(["backends"]) == 2
    captured = capsys.readouterr()
    assert captured.err == 'refattn: error: this command needs rich: python -m pip install "refattn[cli]"\n'
    assert captured.out == ""


def test_every_installed_backend_appears(monkeypatch, capsys):
    out = listed(capsys, monkeypatch)
    firsts = [line.split()[0] for line in out.splitlines() if line.strip()]
    assert all(name in firsts for name in dispatch.backends())
