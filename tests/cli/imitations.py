"""Backends that ask the reference and change what it says, and how the tests call the command."""

import json
from types import SimpleNamespace

import refattn
from refattn.cli import main, measure

QUICK = ("--seconds", "0")
SMALL = ("--shape", "1,4,2,33,8", *QUICK)


def forward(name, change=lambda o: o):
    """Return an operation that changes the result of the reference."""

    def operation(*args, **kwargs):
        result = getattr(refattn, name)(*args, **kwargs, backend="numpy")
        return (change(result[0]), *result[1:]) if isinstance(result, tuple) else change(result)

    return operation


def imitation(change=lambda o: o, names=tuple(measure.VARIANTS), **more):
    return SimpleNamespace(**{name: forward(name, change) for name in names}, **more)


def records(capsys, *words, status=0):
    assert main(["compare", *words, "--json", "-"]) == status, capsys.readouterr().err
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err
