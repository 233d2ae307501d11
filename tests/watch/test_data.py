"""The dashboard and the alert rules ask for metrics and labels that there are."""

import json
import re
from importlib.resources import files

from refattn.watch import labels
from refattn.watch.metrics import FAMILIES

PARTS = {"histogram": ("_bucket", "_sum", "_count"), "gauge": ("",), "counter": ("_total",), "info": ("_info",)}
NAMES = {name + part for name, (kind, *_) in FAMILIES.items() for part in PARTS[kind]}


def queries(text):
    """Return the names of metrics in a text, and the pairs (label, value) that it selects."""
    return set(re.findall(r"\brefattn_\w+", text)), set(re.findall(r'(\w+)="(\w+)"', text))


def test_the_dashboard_asks_for_what_there_is():
    board = json.loads(files("refattn.watch.data").joinpath("dashboard.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += [variable["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    names, selected = queries("\n".join(asked))
    assert names <= NAMES
    assert {name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum") for name in names} >= {
        name for name in NAMES if not name.endswith(PARTS["histogram"])
    }
    assert all(value in getattr(labels, f"{label.upper()}S") for label, value in selected)
    places = [tuple(panel["gridPos"][x] for x in "xy") for panel in board["panels"]]
    assert len(set(places)) == len(places) and all(panel["title"] for panel in board["panels"])
    for text in asked:
        assert text.count("(") == text.count(")") and text.count("{") == text.count("}")


def test_the_alerts_ask_for_what_there_is():
    text = files("refattn.watch.data").joinpath("alerts.yml").read_text()
    rules = re.split(r"^ *- alert: ", text, flags=re.MULTILINE)[1:]
    assert len(rules) >= 4
    for rule in rules:
        expression = re.search(r"expr: (?:\|\n)?(.*?)\n +for:", rule, re.DOTALL)[1]
        names, selected = queries(expression)
        assert names and names <= NAMES, rule
        assert all(value in getattr(labels, f"{label.upper()}S") for label, value in selected)
        assert {"severity:", "summary:"} <= set(rule.split())
    assert "refattn_predicted_seconds_ratio > 1.5" in text
