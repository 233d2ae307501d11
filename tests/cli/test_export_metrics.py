"""``refattn export-metrics``: one exposition text, or a server; the shipped files; and what is refused."""

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from refattn.cli import main
from refattn.costs.calibration import Calibration

SMALL = ("--requests", "3", "--tokens", "4")


def samples(text):
    """Return {(name, phase, component): value}."""
    return {
        (x.name, x.labels.get("phase"), x.labels.get("component")): x.value
        for family in text_string_to_metric_families(text)
        for x in family.samples
        if not x.name.endswith("_bucket")
    }


def start(*arguments):
    """Return a process that serves, and its address."""
    # a process that a shell put into the background may have been told to ignore interruptions
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); import refattn.cli; "
    code += "sys.exit(refattn.cli.main())"
    command = [sys.executable, "-W", "error", "-c", code, "export-metrics", "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    assert re.fullmatch(r"metrics at http://127\.0\.0\.1:\d+/metrics\n", line), line + process.stderr.read()
    return process, line.split()[-1]


def read(address):
    with urlopen(address, timeout=30) as answer:
        return samples(answer.read().decode())


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_once_prints_the_metrics_of_the_workload(capsys, backend):
    assert main(["export-metrics", "--once", "--backend", backend, *SMALL]) == 0
    out, err = capsys.readouterr()
    found = samples(out)
    assert err == ""
    assert found["refattn_sequence_length_count", "prefill", None] == 3
    assert found["refattn_component_seconds_count", "decode", "attention"] == 3 * 3
    assert f'backend="{backend}"' in out


def test_out_writes_the_same_to_a_file(tmp_path, capsys):
    path = tmp_path / "metrics.prom"
    path.write_text("old")
    assert main(["export-metrics", "--out", str(path), *SMALL]) == 0
    assert capsys.readouterr() == ("", "")
    assert samples(path.read_text())["refattn_sequence_length_count", "decode", None] == 9
    assert [x.name for x in tmp_path.iterdir()] == ["metrics.prom"]


def test_a_calibration_adds_the_drift(tmp_path, capsys, monkeypatch):
    path = Path(__file__).parents[1] / "costs" / "ideal.py"
    spec = importlib.util.spec_from_file_location("ideal_for_export_metrics", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(Calibration, "doubts", lambda self: [])
    ratios = []
    for name, slow in (("here", 1.0), ("slow", 100.0)):
        module.ideal(slow=slow).save(tmp_path / name)
        assert main(["export-metrics", "--once", "--calibration", str(tmp_path / name), *SMALL]) == 0
        ratios.append(samples(capsys.readouterr().out)["refattn_predicted_seconds_ratio", "decode", None])
    assert ratios[0] > 10 * ratios[1] > 0
    (tmp_path / "broken").write_text("{")
    assert main(["export-metrics", "--once", "--calibration", str(tmp_path / "broken")]) == 2
    assert "no calibration, or cut short" in capsys.readouterr().err


def test_the_shipped_files_are_written_and_nothing_is_served(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)  # which they do not need
    board, rules = tmp_path / "board.json", tmp_path / "rules.yml"
    assert main(["export-metrics", "--dashboard", str(board), "--alerts", str(rules)]) == 0
    assert json.loads(board.read_text())["title"] == "refattn"
    assert "alert: RefattnSlowerThanPredicted" in rules.read_text()


def test_it_serves_until_it_is_interrupted():
    process, address = start(*SMALL)
    try:
        end = time.monotonic() + 30
        while read(address).get(("refattn_sequence_length_count", "decode", None)) != 9:
            assert time.monotonic() < end, "the workload does not end"
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (130, "", "refattn: interrupted\n")


def test_an_interruption_during_the_workload_ends_it():
    process, _ = start("--requests", "100000", "--tokens", "50")
    try:
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (130, "", "refattn: interrupted\n")


def test_it_serves_for_so_many_seconds():
    process, address = start("--seconds", "1.5", "--requests", "0")
    assert ("refattn_info", None, None) in read(address)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 0


REFUSED = {
    "backend": (["--once", "--backend", "nump"], "no backend 'nump'; did you mean numpy"),
    "auto": (["--once", "--backend", "auto"], "no backend 'auto'"),
    "requests": (["--once", "--requests", "-1"], "--requests is -1; wanted at least 0"),
    "tokens": (["--once", "--tokens", "0"], "--tokens is 0; wanted at least 1"),
    "too many tokens": (["--once", "--tokens", "1000"], "--tokens is 1000; wanted at most 512"),
    "seconds": (["--seconds", "nan"], "--seconds is nan"),
    "once and a port": (["--once", "--port", "0"], "wanted them without --port"),
    "port": (["--port", "65536"], "port is 65536; wanted 0 to 65535"),
    "host": (["--host", "256.0.0.1", "--port", "0"], "cannot listen on 256.0.0.1"),
    "folder": (["--out", "nowhere/metrics"], "--out cannot be written, there is no such folder"),
    "one file for both": (["--out", "x", "--alerts", "x"], "both write to x"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what, tmp_path, monkeypatch, capsys):
    arguments, words = REFUSED[what]
    monkeypatch.chdir(tmp_path)
    more = [] if "--alerts" in arguments else ["--alerts", "rules.yml"]
    assert main(["export-metrics", *arguments, *more]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and words in err
    assert os.listdir(tmp_path) == [], "nothing is written"


def test_a_port_that_is_taken(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["export-metrics", "--port", str(port)]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"refattn: error: cannot listen on 127.0.0.1, port {port}: Address already in use\n")


def test_without_prometheus_client(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert main(["export-metrics", "--once"]) == 2
    assert 'python -m pip install "refattn[monitor]"' in capsys.readouterr().err
