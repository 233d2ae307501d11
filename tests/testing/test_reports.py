"""How a report is shown and kept: as text, as a page, as JSON, as JUnit XML."""

import datetime
import io
import json
import math
import os
import re
import sys
from html import unescape
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from refattn.testing.contract import Contract
from refattn.testing.reports import html, json_, junit, pictures, svg, terminal
from refattn.testing.verdicts import Diagnosis, Picture, Report, Result, Waiver

NASTY = "<script>alert('x')</script>\"&\x00\x1b[31m\ud800"
FORMS = {"to_html": "report.html", "to_json": "report.json", "to_junit": "report.xml"}


def band(size, left):
    i, j = np.ogrid[:size, :size]
    return (j <= i) & (j >= i - left)


WAIVER = Waiver("attention/softcap_*", "tanh is approximate", "https://example.org/12", datetime.date(2030, 1, 2))
MASK = Picture("effective mask", band(6, 2), band(6, 1))
ERRORS = Picture("error / bound", np.array([[0.0, 1e-3, np.nan], [2.0, 5.0, 1e-6]]), columns="channel")
RESULTS = (
    Result("attention/plain", "PASS", figures={"bound": 0.4, "z_rms": 1.0, "z_max": 3.0}, seconds=0.5),
    Result("attention/bias", "NOT RUN", "the kernel takes no bias"),
    Result("attention/scale", "SUSPECT", "the scale is 0.10 % high", {"z_rms": 1.7, "log_scale": 9.9e-4}, 0.25),
    Result("attention/alibi", "NOT RUN", "the kernel takes no bias"),
    Result("attention/softcap_2", "FAIL", "1.4 times the bound", {"bound": 1.4}, 0.0, (), WAIVER),
    Result("attention/odd", "NOT RUN", "the contract declares head_dims=(64,)"),
    Result("attention/half", "UNDECLARED", "consistent with P rounded to float16", {"bound": 0.9}),
    Result("attention/window", "FAIL", "query 2 sees key 0", {"z_max": 55, "bound": math.inf}, 0.25, (MASK, ERRORS)),
)
DIAGNOSES = (
    Diagnosis("scale", "the scale is 0.10 % high", 0.25),
    Diagnosis("window", "the window is one too wide", 0.5),
)


@pytest.fixture
def report():
    """One result of each kind, in the order in which they happened to come."""
    contract = Contract(dtype="bfloat16", options=("window",), head_dims=(64,), always={"window": (2, 0)})
    return Report("flash", contract, "standard", 7, list(RESULTS), list(DIAGNOSES), ["LIMITS has no entry for rope"])


@pytest.fixture
def good():
    return Report("flash", Contract(), "quick", 0, [RESULTS[0], RESULTS[1], RESULTS[5]])


@pytest.fixture
def nasty():
    picture = Picture(NASTY, MASK.values, MASK.wanted, NASTY, NASTY)
    waiver = Waiver("*", NASTY, "javascript:alert(1)")
    results = [Result(NASTY, "FAIL", NASTY, {NASTY: 1.0}, 0, (picture,)), Result("a", "FAIL", NASTY, waiver=waiver)]
    results.append(Result("b", "NOT RUN", NASTY))
    contract = Contract(always={NASTY: NASTY})
    return Report(NASTY, contract, NASTY, 0, results, [Diagnosis(NASTY, NASTY, 1.0)], [NASTY])


# ---- text


def test_text_says_why_first_and_what_was_left_out_last(report):
    lines = str(report).splitlines()
    assert lines[0] == "flash: attention, bfloat16, level standard, seed 7: FAIL"
    first = lines.index("FAIL attention/window (error/bound inf, z max 55)")
    assert lines[first + 1] == "    query 2 sees key 0"
    order = ["most likely", "or: ", "complaint: LIMITS", "waived FAIL attention/softcap_2", "FAIL attention/window"]
    order += ["SUSPECT attention/scale", "UNDECLARED attention/half", "NOT RUN 2: the kernel takes no bias"]
    order += [
        "NOT RUN 1: the contract declares",
        "to repeat: rt.check(kernel, rt.Contract(dtype='bfloat16'",
        "8 checks",
    ]
    places = [next(i for i, line in enumerate(lines) if line.startswith(start)) for start in order]
    assert places == sorted(places)
    assert "most likely: the window is one too wide (explains 2 of 4)" in lines
    assert "    tanh is approximate (https://example.org/12)" in lines
    assert "    attention/bias, attention/alibi" in lines
    assert lines[-1] == ("8 checks: 1 PASS, 1 FAIL, 1 SUSPECT, 1 UNDECLARED, 3 NOT RUN, 1 WAIVED, 1 complaint; 1.00 s")


def test_the_call_to_repeat_is_python(report):
    call = " ".join(str(report).splitlines()[-3:-1]).removeprefix("to repeat: ")
    asked = []

    class Kit:
        Contract = Contract
        check = staticmethod(lambda *args, **options: asked.append((args, options)))

    eval(call, {"rt": Kit, "kernel": "kernel"})
    assert asked == [(("kernel", report.contract), {"level": "standard", "seed": 7})]


def test_text_of_what_passes_is_short(good):
    assert str(good).splitlines() == [
        "flash: attention, float32, level quick, seed 0: PASS",
        "",
        "NOT RUN 1: the kernel takes no bias",
        "    attention/bias",
        "NOT RUN 1: the contract declares head_dims=(64,)",
        "    attention/odd",
        "",
        "worst error/bound 0.4 (attention/plain), worst z 3 (attention/plain)",
        "3 checks: 1 PASS, 2 NOT RUN; 0.50 s",
    ]


def test_a_report_that_rests_on_nothing_says_so():
    for results in ([], [RESULTS[1]]):
        report = Report("flash", None, "quick", 0, results)
        assert "Nothing was checked" in str(report)
        assert "Nothing was checked" in html.page(report)


def test_lines_are_broken_and_ids_are_not(report):
    report.results.append(Result("attention/" + "long" * 20, "NOT RUN", "it is " + "very " * 40 + "long"))
    report.results.append(Result("attention/wordy", "FAIL", "word " * 60))
    lines = terminal.text(report, width=60).splitlines()
    assert "    attention/" + "long" * 20 in lines
    assert all(len(line) <= 60 for line in lines if line.startswith("    word"))
    assert sum(line.count("word ") + line.endswith("word") for line in lines) == 60


def test_colors_change_no_word(report):
    colored = terminal.text(report, color=True)
    assert "\x1b[1;31mFAIL\x1b[0m attention/window" in colored
    assert re.sub(r"\x1b\[[\d;]*m", "", colored) == str(report)


def test_terminals_get_no_orders_from_messages(nasty):
    assert not re.search("[\x00-\x09\x0b-\x1f\ud800]", str(nasty))


def test_a_small_mask_is_drawn_with_its_differences():
    found, wanted = band(4, 2), band(4, 1)
    found[1, 1] = False
    assert terminal.picture_text(Picture("mask", found, wanted)).splitlines() == [
        "mask (4 x 4, query x key)",
        "#...",
        "#-..",
        "+##.",
        ".+##",
        "# visible 6, . hidden, + leaked 2, - missing 1",
    ]


def test_one_leak_in_a_million_pairs_is_drawn():
    found = band(1000, 1000)
    found[0, 999] = True
    lines = terminal.picture_text(Picture("mask", found, band(1000, 1000))).splitlines()
    assert lines[1][-1] == "+"
    assert len(lines) <= 42 and max(map(len, lines[1:-1])) <= 80
    assert "leaked 1," in lines[-1] and "a character for 25 x 13" in lines[-1]


def test_maps_of_numbers_are_a_line():
    assert terminal.picture_text(ERRORS) == (
        "error / bound (2 x 3, query x channel): the largest is nan at query 0, channel 2"
    )
    assert terminal.picture_text(Picture("none", np.zeros((0, 3)))).endswith(": empty")


def test_many_pictures_are_left_to_the_page(report):
    report.results = [Result(f"attention/{i}", "FAIL", pictures=(MASK,)) for i in range(5)]
    assert str(report).count("effective mask") == 3
    assert "2 more pictures: see to_html" in str(report)


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_show_is_plain_where_nobody_looks_or_rich_is_missing(good, capsys, monkeypatch):
    terminal.show(good)
    assert capsys.readouterr().out == str(good) + "\n"
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(terminal.importlib.util, "find_spec", lambda name: None)
    terminal.show(good)
    assert sys.stdout.getvalue() == str(good) + "\n"


def test_show_is_colored_on_a_terminal(good, monkeypatch):
    pytest.importorskip("rich")
    for name, x in {"TERM": "xterm-256color", "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, x)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stdout", Terminal())
    terminal.show(good)
    shown = sys.stdout.getvalue()
    assert "\x1b[" in shown
    assert re.sub(r"\x1b\[[\d;]*m", "", shown) == str(good) + "\n"


def test_show_survives_a_code_page(good, monkeypatch):
    good.subject = "flash →"
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="cp1252"))
    terminal.show(good)
    sys.stdout.flush()
    assert raw.getvalue().startswith(b"flash ?: attention")


# ---- the page


class Page(HTMLParser):
    """Reads a page; `tags` are all start tags with their attributes, and every tag must be closed in order."""

    VOID = ("meta", "br")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_is_alone(report):
    text = html.page(report)
    page = Page(text)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed"}
    fetched = [x for _, attributes in page.tags for name, x in attributes.items() if name in ("src", "xlink:href")]
    assert fetched == [] and "@import" not in text and "url(http" not in text
    assert {a["href"] for a in page.all("a") if not a["href"].startswith("#")} == {"https://example.org/12"}
    assert "default-src 'none'" in page.all("meta")[2]["content"]


def test_the_page_serves_every_reader(report):
    page = Page(html.page(report))
    assert page.all("html") == [{"lang": "en"}]
    assert "FAIL: flash" in page.words
    assert len(page.all("h1")) == 1 and len(page.all("h2")) >= 6
    assert all(th.get("scope") in ("col", "row") for th in page.all("th"))
    assert "prefers-color-scheme:dark" in "".join(page.words)
    drawings = [a for a in page.all("svg") if a.get("aria-hidden") != "true"]
    assert len(drawings) == 2 and all(a["role"] == "img" for a in drawings)
    assert len(page.all("desc")) == 2
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")} <= set(ids)


def test_the_page_has_everything_in_order(report):
    text = html.page(report)
    headings = re.findall("<h2>(.*?)</h2>", text)
    assert headings == [
        *("Complaints", "Most likely", "What failed", "Waived", "Not run", "All checks"),
        *("What the kernel claims", "To repeat"),
    ]
    assert re.findall(r'<th scope="row" class="id">(?:<a [^>]*>)?([^<]*)', text) == [
        f"attention/{name}" for name in ("window", "scale", "half", "softcap_2", "plain")
    ]
    assert text.count('<details class="card" open') == 4
    assert text.index("the window is one too wide") < text.index("the scale is 0.10 % high")
    for words in ("explains 2 of 4", "tanh is approximate", "until 2030-01-02", "attention/bias, attention/alibi"):
        assert words in text
    assert "rt.check(kernel, contract, level='standard', seed=7, only=lambda id: id == 'attention/window')" in unescape(
        text
    )
    assert "head_dims" in text and "q_prescaled" in text


def test_the_page_of_a_backend_has_no_contract(good):
    good.contract = None
    assert "What the kernel claims" not in html.page(good)
    assert "rt.check_backend(&#x27;flash&#x27;" in html.page(good)


def test_everything_is_escaped(nasty):
    text = html.page(nasty)
    page = Page(text)
    assert page.all("script") == []
    assert "<script" not in text and "\x00" not in text and "\x1b" not in text and "\ud800" not in text
    assert not any(a["href"].startswith("javascript") for a in page.all("a"))
    assert "javascript:alert(1)" in text  # as text
    assert text.count("alert(&#x27;x&#x27;)") > 10


def drawings(text):
    return [ElementTree.fromstring(found) for found in re.findall(r'<svg class="picture".*?</svg>', text, re.S)]


def area(drawing, name):
    """Return how many cells of this class a drawing has."""
    path = next((p.get("d") for p in drawing.iter("path") if p.get("class") == name), "")
    return sum(int(w) / int(h) for w, h in re.findall(r"h(\d+)v(\d+)h-", path))


def test_a_drawn_mask_has_the_cells_of_the_mask():
    found, wanted = band(20, 3), band(20, 2)
    found[5, 5] = False
    (drawing,) = drawings(svg.figure(Picture("mask", found, wanted)))
    expected = {"seen": (found & wanted).sum(), "leaked": (found & ~wanted).sum(), "missing": 1}
    assert {name: area(drawing, name) for name in expected} == expected
    assert [p.get("fill") for p in drawing.iter("path") if p.get("fill")] == ["url(#dots)", "url(#strokes)"]
    assert "<b>17</b>" in svg.figure(Picture("mask", found, wanted))


def test_a_large_mask_is_drawn_small_and_keeps_each_difference():
    found = band(1000, 1000)
    found[3, 998] = True
    text = svg.figure(Picture("mask", found, band(1000, 1000)))
    (drawing,) = drawings(text)
    assert area(drawing, "leaked") == 1
    assert "16 × 16" in text and len(text) < 20_000


def test_heat_maps_show_the_largest_and_what_is_not_finite():
    text = svg.figure(ERRORS)
    (drawing,) = drawings(text)
    assert area(drawing, "odd") == 1  # the NaN
    assert area(drawing, "h7") == 2  # 2 and 5, logarithmically
    assert area(drawing, "h1") == 2  # 1e-3, and 1e-6 below the scale
    assert "logarithmic" in text and "NaN or infinite <b>1</b>" in text and "exactly 0 <b>1</b>" in text


def test_maps_with_negative_numbers_are_drawn_from_the_lowest_to_the_highest():
    values = np.array([[-3.0, -2.0], [0.0, 2.5]])
    text = svg.figure(Picture("log10(error / bound)", values))
    (drawing,) = drawings(text)
    assert [area(drawing, f"h{level}") for level in range(1, 8)] == [1, 1, 0, 1, 0, 0, 1]
    assert "exactly 0" not in text and "-3 <svg" in text
    assert terminal.picture_text(Picture("x", values)).endswith("the largest is 2.5 at query 1, key 1")
    assert area(drawings(svg.figure(Picture("flat", np.full((2, 2), -1.0))))[0], "h1") == 4


def test_a_map_with_a_wanted_one_is_three_drawings():
    assert len(drawings(svg.figure(Picture("o", np.eye(3), np.zeros((3, 3)))))) == 3


@pytest.mark.parametrize("values", [np.zeros((0, 4)), np.zeros((3, 0), bool), np.zeros(5), np.ones((2, 3, 4), bool)])
@pytest.mark.parametrize("wanted", [False, True])
def test_odd_shapes_do_not_break_a_report(report, values, wanted):
    picture = Picture("odd", values, values if wanted else None)
    report.results = [Result("attention/odd", "FAIL", pictures=(picture,))]
    assert "odd" in str(report)
    Page(html.page(report))


def test_noise_stays_small():
    values = np.random.default_rng(0).normal(size=(300, 300))
    assert len(svg.figure(Picture("noise", values))) < 150_000


def test_downsampling_takes_the_largest_and_nan_above_all():
    values = np.zeros((130, 130))
    values[129, 129], values[0, 1], values[3, 0] = 8.0, 8.0, np.nan
    grid = pictures.heat_grid(values, 64, pictures.heat_scale(values))
    assert grid.codes.shape == (44, 44) and grid.step == (3, 3)
    assert grid.codes[43, 43] == grid.codes[0, 0] == pictures.LEVELS
    assert grid.codes[1, 0] == pictures.LEVELS + 1
    assert (grid.codes > 0).sum() == 3


# ---- JSON


SCHEMA = json.loads(files("refattn.testing.reports").joinpath("schema.json").read_text(encoding="utf-8"))
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int}


def is_type(x, name):
    if name == "number":
        return isinstance(x, int | float) and not isinstance(x, bool)
    return isinstance(x, TYPES[name]) and not (name == "integer" and isinstance(x, bool))


def problems(x, schema, where="report"):
    """The part of JSON Schema that schema.json uses; an unknown keyword is an error of the test."""
    found = []
    known = {"$schema", "title", "description", "$defs", "$ref", "format", "type", "enum", "const", "anyOf", "minimum"}
    assert set(schema) <= known | {"required", "properties", "additionalProperties", "propertyNames", "items"}
    if "$ref" in schema:
        found += problems(x, SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")], where)
    if "type" in schema:
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        found += [] if any(is_type(x, name) for name in names) else [f"{where} is no {names}"]
    if "enum" in schema and x not in schema["enum"]:
        found.append(f"{where} is none of {schema['enum']}")
    if "const" in schema and x != schema["const"]:
        found.append(f"{where} is not {schema['const']}")
    if "anyOf" in schema and all(problems(x, one, where) for one in schema["anyOf"]):
        found.append(f"{where} is none of the alternatives")
    if "minimum" in schema and is_type(x, "number") and x < schema["minimum"]:
        found.append(f"{where} is below {schema['minimum']}")
    if isinstance(x, list):
        found += [p for i, y in enumerate(x) for p in problems(y, schema.get("items", {}), f"{where}[{i}]")]
    if isinstance(x, dict):
        found += [f"{where} lacks {name}" for name in schema.get("required", []) if name not in x]
        for name, y in x.items():
            found += problems(name, schema.get("propertyNames", {}), f"{where}: the name {name}")
            rest = schema.get("additionalProperties", {})
            one = schema.get("properties", {}).get(name, rest)
            found += [f"{where} has {name}"] if one is False else problems(y, one, f"{where}.{name}")
    return found


def not_json(name):
    raise AssertionError(f"{name} is not JSON")


def test_json_is_strict_and_as_the_schema_says(report, nasty, good, tmp_path):
    good.contract = None
    for one in (report, nasty, good):
        one.to_json(tmp_path / "report.json")
        data = json.loads((tmp_path / "report.json").read_text(), parse_constant=not_json)
        assert problems(data, SCHEMA) == []


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"ok": "yes"},
        {"seed": 1.5},
        {"results": [{"check": "x"}]},
        {"counts": {"FAILED": 1}},
        {"complaints": [1]},
        {"more": 1},
    ],
)
def test_the_schema_refuses_other_things(report, change):
    assert problems(json_.as_dict(report) | change, SCHEMA)


def test_json_comes_back(report, tmp_path):
    odd = {"nan": math.nan, "inf": math.inf, "low": -math.inf, "np": np.float32(0.5)}
    report.results.append(Result("attention/odd_figures", "PASS", figures=odd))
    json_.dump(report, str(tmp_path / "report.json"))
    back = json_.load(str(tmp_path / "report.json"))
    assert (back.subject, back.level, back.seed, back.ok) == (report.subject, report.level, report.seed, report.ok)
    assert back.contract == report.contract
    assert back.diagnoses == report.diagnoses and back.complaints == report.complaints
    figures = back.results[-1].figures
    assert math.isnan(figures["nan"]) and (figures["inf"], figures["low"], figures["np"]) == (math.inf, -math.inf, 0.5)
    for before, after in zip(report.results[:-1], back.results[:-1], strict=True):
        assert after.pictures == ()
        names = ("check", "verdict", "message", "figures", "seconds", "waiver", "bad")
        assert all(getattr(after, name) == getattr(before, name) for name in names)
    again = json_.as_dict(back)
    assert again == json_.as_dict(report)


def test_a_contract_with_arrays_can_be_kept(tmp_path):
    contract = Contract(always={"alibi_slopes": np.array([0.5, np.inf], np.float32)}, exp_ulp=math.inf)
    json_.dump(Report("flash", contract, "quick", 0), tmp_path / "report.json")
    back = json_.load(tmp_path / "report.json")
    assert back.contract == Contract(always={"alibi_slopes": (0.5, "inf")}, exp_ulp=math.inf)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "report.json is not JSON"),
        ("[]", "schema is None, wanted 1"),
        ('{"schema": 99}', "schema is 99, wanted 1"),
        ('{"schema": 1}', "report.json is not a report: KeyError"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path, text, message):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        json_.load(path)


def test_an_unknown_verdict_is_refused(report, tmp_path):
    data = json_.as_dict(report)
    data["results"][0]["verdict"] = "GOOD"
    (tmp_path / "report.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="the verdict of attention/plain is 'GOOD'"):
        json_.load(tmp_path / "report.json")


# ---- JUnit


def test_junit_has_a_testcase_per_check(report, tmp_path):
    report.to_junit(tmp_path / "report.xml")
    root = ElementTree.parse(tmp_path / "report.xml").getroot()
    (suite,) = root
    assert (suite.get("name"), suite.get("tests"), suite.get("failures"), suite.get("skipped")) == (
        "flash",
        "9",
        "4",
        "4",
    )
    assert suite.get("time") == "1.000000"
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    assert list(cases)[:8] == [result.check for result in report.results]
    assert list(cases["attention/plain"]) == []
    assert cases["attention/plain"].get("time") == "0.500000"
    types = {name: case.find("failure").get("type") for name, case in cases.items() if case.find("failure") is not None}
    assert types == {
        **{"attention/scale": "SUSPECT", "attention/half": "UNDECLARED", "attention/window": "FAIL"},
        "complaint 1": "COMPLAINT",
    }
    assert cases["attention/window"].find("failure").get("message") == "query 2 sees key 0"
    assert "seed=7" in cases["attention/window"].find("failure").text
    skipped = {
        name: case.find("skipped").get("message") for name, case in cases.items() if case.find("skipped") is not None
    }
    assert skipped["attention/bias"] == "the kernel takes no bias"
    assert skipped["attention/softcap_2"] == "FAIL, waived: tanh is approximate (https://example.org/12)"
    assert len(skipped) == 4 == int(suite.get("skipped"))


def test_junit_is_xml_whatever_a_message_contains(nasty):
    root = ElementTree.fromstring(junit.as_xml(nasty).encode("utf-8"))
    failure = next(root.iter("failure"))
    assert failure.get("message") == "<script>alert('x')</script>\"&[31m"


# ---- files


@pytest.mark.parametrize("form", FORMS)
def test_an_interruption_leaves_the_old_file(report, form, tmp_path, monkeypatch):
    path = tmp_path / FORMS[form]
    path.write_text("old")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        getattr(report, form)(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("form", FORMS)
def test_files_are_written_whole(report, form, tmp_path):
    target, link = tmp_path / "real", tmp_path / FORMS[form]
    target.write_text("old")
    link.symlink_to(target)
    assert getattr(report, form)(str(link)) is None
    assert link.is_symlink() and target.read_text(encoding="utf-8") != "old"
    assert sorted(tmp_path.iterdir()) == sorted([target, link])
    with pytest.raises(FileNotFoundError, match="no such folder"):
        getattr(report, form)(tmp_path / "missing" / "file")
    with pytest.raises(IsADirectoryError, match="a folder"):
        getattr(report, form)(tmp_path)


def test_special_files_are_not_replaced(report):
    report.to_json(os.devnull)
    assert not Path(os.devnull).is_file()
