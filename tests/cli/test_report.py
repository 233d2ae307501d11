"""`refattn report`: what stands on the page, that it needs nothing, how it looks, and what is refused."""

import argparse
import json
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from refattn import masks
from refattn.cli import advise, cost, main, pages, profile, report, report_found, report_masks, report_page, show_mask
from refattn.costs import machine, measuring
from refattn.costs.presets import preset
from tests.costs.ideal import ideal

LENGTHS = "lognormal:median=2000,p95=8000,max=8192"
LLAMA = ("--model", "llama-3-8b", "--hw", "h200", "--seq", "8192", "--lengths", LENGTHS)
SECTIONS = ["verdict", "model", "curves", "roofline", "time", "options", "masks", "counts", "about"]
VOID = {"meta", "img", "br", "hr", "link", "input"}
TINY = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100, "n_positions": 512}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Checker(HTMLParser):
    """Fails where elements do not nest, and keeps what it saw."""

    def __init__(self, page):
        super().__init__()
        self.open, self.ids, self.links, self.titles, self.tags, self.words = [], [], [], [], set(), []
        self.feed(page)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        given = dict(attrs)
        assert not any(name.startswith("on") for name in given), given
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given[name] for name in ("href", "src") if name in given]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing at {self.getpos()}"

    def handle_data(self, data):
        self.words.append(data)
        self.titles += [data] if self.open and self.open[-1] == "h2" else []


def written(path, *words):
    assert main(["report", *words, "--out", str(path)]) == 0
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    ideal().save(folder / "c.json")
    (folder / "config.json").write_text(json.dumps(TINY))
    return folder


@pytest.fixture(scope="module")
def llama(folder):
    return written(folder / "llama.html", *LLAMA)


@pytest.fixture(scope="module")
def tiny(folder):
    """A small model, predicted on a machine without surprises, and measured here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(measuring, "canary", lambda c: {})
        words = ("--model", str(folder / "config.json"), "--calibration", str(folder / "c.json"))
        return written(folder / "tiny.html", *words, "--lengths", "uniform:20..40", "--profile", "--seconds", "0.1")


class TestThePage:
    @pytest.mark.parametrize("which", ["llama", "tiny"])
    def test_needs_nothing(self, which, request):
        page = request.getfixturevalue(which)
        seen = Checker(page)
        assert seen.tags.isdisjoint({"script", "link", "iframe", "object", "embed", "img"})
        assert seen.links and all(link.startswith("#") for link in seen.links)
        assert "http" not in page and "@import" not in page and "javascript:" not in page
        assert set(re.findall(r"url\((.)", page)) <= {"#"}
        assert len(page) < 600_000

    @pytest.mark.parametrize("which", ["llama", "tiny"])
    def test_is_whole(self, which, request):
        page = request.getfixturevalue(which)
        seen = Checker(page)
        assert [x for x in seen.ids if x in SECTIONS] == SECTIONS and len(seen.titles) == len(SECTIONS)
        assert len(set(seen.ids)) == len(seen.ids)
        wanted = {link[1:] for link in seen.links} | set(re.findall(r"url\(#([^)]+)\)", page))
        assert wanted <= set(seen.ids)
        assert "NaN" not in page and "None" not in "".join(seen.words).replace("window=None", "")
        assert page.count('<section id="') == page.count('<p class="again">') == len(SECTIONS)

    def test_says_what_the_parts_say(self, llama):
        m = preset("llama-3-8b")
        text = " ".join("".join(Checker(llama).words).split())
        found = advise.advise(m, lengths=LENGTHS, on=report.hardware("h200"))
        assert found.verdict in text and found.reason in text
        assert text.index(found.verdict) < text.index("From 53,247 tokens on")
        assert f"{m.params():,} parameters (exact)" in text
        assert (
            f"From {m.crossover_length():,} tokens on" in text and "128 MiB a head, 4.00 GiB a layer, 128 GiB" in text
        )
        assert f"{masks.causal().pairs(8192, 8192):,} pairs, 50 % of all" in text
        assert f"{masks.bigbird(64).pairs(8192, 8192):,} pairs" in text
        assert "each token after 8,192 adds 128 KiB" in text and "1.13 times as fast: no change" in text
        every = advise.advise(m, lengths=LENGTHS, on=report.hardware("h200"), exactness="retrain").options
        assert len(every) > 5 and all(option.name in text for option in every)

    def test_every_kind_is_said(self, llama, tiny):
        assert set(re.findall(r'class="kind (\w+)"', llama)) == {"exact", "bound"}
        assert set(re.findall(r'class="kind (\w+)"', tiny)) == {"exact", "bound", "predicted"}
        assert "Measured here" in tiny and "(measured)" in tiny and "Measured here" not in llama
        assert "4 of 5 cases from" in tiny and "was predicted (measured); the interval is" in tiny

    def test_the_strips_are_amdahl(self, tiny):
        measured = tiny[tiny.index('id="time"') : tiny.index('id="options"')]
        widths = [
            float(x) for x in re.findall(r'<div style="width: ([\d.]+)%; background: var\(--\w+\)"></div>', measured)
        ]
        strips = re.findall(r'<div class="strip">(.*?)</div></div>', measured)
        assert len(strips) == 4 and min(widths) > 0
        for whole, rest in (strips[:2], strips[2:]):
            of = [[float(x) for x in re.findall(r"width: ([\d.]+)%", strip)] for strip in (whole, rest)]
            assert sum(of[0]) == pytest.approx(100, abs=0.1) and of[0][1:] == of[1]
        times = [float(x) for x in re.findall(r"([\d.]+) times as fast: no change", measured)]
        assert times[0] == pytest.approx(100 / sum(of_rest(strips[1])), rel=0.01)

    def test_its_commands_can_be_given(self, llama, tiny):
        commands = (advise, cost, profile, report, show_mask)
        seen = set()
        for page in (llama, tiny):
            for line in re.findall(r"again: <code>(.*?)</code>", page):
                words = shlex.split(line.replace("&#x27;", "'").replace("&quot;", '"').replace("&gt;", ">"))
                parser = argparse.ArgumentParser()
                next(one for one in commands if words[1] == one.NAME).add_arguments(parser)
                parser.parse_args(words[2:])
                seen.add(words[1])
        assert seen == {"advise", "cost", "profile", "report", "show-mask"}

    def test_its_own_command_writes_it_again(self, llama, tmp_path):
        line = re.findall(r"again: <code>(refattn report .*?)</code>", llama)[0]
        again = written(tmp_path / "again.html", *shlex.split(line)[2:])
        assert again.split('id="about"')[0] == llama.split('id="about"')[0]

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("gpt2", "--phase", "train", "--batch", "4", "--latency-p95", "1e-9"), "misses p95 of"),
            (("llama-3-8b", "--phase", "decode"), "Scores of a token"),
            (("mamba-130m",), "No layer has a matrix of scores"),
            (("gemma-2-9b",), "this model: 21 of 42 layers"),
            (("deepseek-v2-lite",), "each token after 600 adds"),
            (("jamba-v0.1",), "the scan in it"),
            (("bert-base", "--exactness", "retrain"), "bidirectional"),
            (("gpt2", "--seq", "1"), "1 token"),
        ],
    )
    def test_other_models_and_calls(self, words, said, tmp_path):
        page = written(tmp_path / "a.html", "--hw", "h200", "--seq", "600", "--model", *words)
        assert said in page and Checker(page).ids

    def test_a_doubtful_calibration_is_doubted(self, folder, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(measuring, "canary", lambda c: {"a matrix product": 3.0})
        page = written(tmp_path / "a.html", "--model", "minilm-l6", "--calibration", str(folder / "c.json"))
        assert re.search(r'<p class="doubt">[^<]*a matrix product takes 3 times as long', page)
        assert "refattn: warning" in capsys.readouterr().err

    def test_what_is_hostile_is_text(self, tmp_path):
        hostile = tmp_path / "<script>alert('x')<b a=\"$m_{&amp;"
        hostile.mkdir()
        (hostile / "config.json").write_text(json.dumps(TINY))
        page = written(tmp_path / "a.html", "--model", str(hostile), "--hw", "h200")
        seen = Checker(page)
        assert "script" not in seen.tags and "<script" not in page
        assert "&lt;script&gt;alert(" in page and str(hostile) in "".join(seen.words)

    def test_to_standard_output(self, capsys):
        assert main(["report", "--model", "gpt2", "--hw", "h200", "--out", "-"]) == 0
        captured = capsys.readouterr()
        assert captured.out.startswith("<!doctype html>") and captured.out.endswith("</html>\n")
        assert "Attention is" in captured.err and Checker(captured.out).titles

    def test_what_a_mask_counts(self):
        asked = report_found.Asked(preset("mistral-7b"), 1, 8192, 0, "prefill", True, "bfloat16")
        own, *others = report_masks.seen(asked)
        assert own.own and own.pairs == 4096 * 8192 - 4096 * 4095 // 2 and not any(one.own for one in others)
        growth = {one.title: one.growth for one in others}
        assert growth["every pair"] == 4.0 and growth["causal window of 256"] < 2.05


def of_rest(strip):
    return [float(x) for x in re.findall(r"width: ([\d.]+)%", strip)]


class TestRefused:
    @pytest.mark.parametrize(("words", "message"), [
        (["--model", "lama-3-8b", "--hw", "h200"], "did you mean llama-3-8b"),
        (["--model", "gpt2", "--hw", "h20"], "did you mean h200"),
        (["--model", "gpt2", "--hw", "h200", "--seq", "0"], "0"),
        (["--model", "gpt2", "--hw", "h200", "--lengths", "9", "--seq", "-3"], "--seq is -3"),
        (["--model", "gpt2", "--hw", "h200", "--batch", "0"], "--batch is 0"),
        (["--model", "gpt2", "--hw", "h200", "--lengths", "many"], "many"),
        (["--model", "gpt2", "--hw", "h200", "--lengths", "lengths.csv"], "line 3"),
        (["--model", "gpt2", "--hw", "v100"], "no rate for 'bfloat16'"),
        (["--model", "gpt2", "--hw", "h200", "--dtype", "float31"], "float31"),
        (["--model", "gpt2", "--hw", "h200", "--memory", "lots"], "wanted a size"),
        (["--model", "gpt2", "--hw", "h200", "--throughput", "-1"], "throughput is -1"),
        (["--model", "gpt2", "--hw", "h200", "--seconds", "nan"], "--seconds is nan"),
        (["--model", "gpt2", "--hw", "h200", "--profile", "--no-causal"], "as it is, causal"),
        (["--model", "minilm-l6", "--hw", "h200", "--profile", "--seq", "513"], "the model has 512 positions"),
        (["--model", "minilm-l6", "--hw", "h200", "--profile", "--backend", "nunba"], "did you mean numba"),
        (["--model", "gpt2", "--calibration", "none.json"], "none.json"),
        (["--model", "gpt2", "--calibration", "lengths.csv"], "no calibration"),
        (["--model", "gpt2", "--calibration", "c.json", "--backend", "nunba"], "did you mean numba"),
        (["--model", "config.json", "--hw", "h200"], "config.json"),
        (["--model", "gpt2", "--hw", "h200", "--out", "no/where.html"], "no such folder"),
        (["--model", "gpt2", "--hw", "h200", "--out", "."], "this is a folder"),
    ])  # fmt: skip
    def test_in_one_line(self, words, message, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(measuring, "canary", lambda c: {})
        monkeypatch.chdir(tmp_path)
        ideal().save("c.json")
        Path("lengths.csv").write_text("tokens\n100\nmany\n")
        Path("config.json").write_text('{"model_type": "gpt2", "n_embd": 65, "n_head": 4}')
        before = sorted(Path().iterdir())
        assert main(["report", *words]) == 2
        captured = capsys.readouterr()
        assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""
        assert sorted(Path().iterdir()) == before

    def test_a_device_must_be_named(self, capsys):
        with pytest.raises(SystemExit, match="2"):
            main(["report", "--model", "gpt2"])
        assert "--calibration" in capsys.readouterr().err

    @pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (ValueError("no page today"), 2)])
    def test_what_is_not_finished_leaves_the_old_page(self, error, status, tmp_path, monkeypatch, capsys):
        def broken(found):
            raise error

        path = tmp_path / "a.html"
        path.write_text("old")
        monkeypatch.setattr(report_page, "html", broken)
        assert main(["report", "--model", "gpt2", "--hw", "h200", "--out", str(path)]) == status
        assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
        assert capsys.readouterr().err.count("\n") == 1

    def test_without_matplotlib(self, tmp_path, monkeypatch, capsys):
        def need(package, extra, purpose):
            if package == "matplotlib":
                raise ImportError(f"{purpose} needs {package}")

        monkeypatch.setattr(machine, "need", need)
        assert main(["report", "--model", "gpt2", "--hw", "h200", "--out", str(tmp_path / "a.html")]) == 2
        assert capsys.readouterr().err == "refattn: error: refattn report needs matplotlib\n"
        assert list(tmp_path.iterdir()) == []


class TestPictures:
    def test_svg_is_in_the_colours_of_the_page(self):
        from matplotlib.figure import Figure

        drawn = Figure(figsize=(2, 2))
        drawn.subplots().plot([1, 2], [1, 2], color=pages.COLOURS["red"][0], label="a & b")
        drawn.axes[0].legend()
        first, second = (pages.svg(drawn, 'what "it" shows', key) for key in ("one", "two"))
        assert "var(--red)" in first and pages.COLOURS["red"][0] not in first
        assert "<style" not in first and "xmlns" not in first and "metadata" not in first
        assert "a &amp; b" in first and 'aria-label="what &quot;it&quot; shows"' in first
        ids = [Checker(text).ids for text in (first, second)]
        assert ids[0] and set(ids[0]).isdisjoint(ids[1]) and all(x.startswith("one-") for x in ids[0])


class TestInABrowser:
    """The page as it is seen, without a network."""

    @pytest.fixture
    def screenshot(self, tmp_path):
        if CHROMIUM is None:
            pytest.skip("no Chromium here: apt-get install chromium")

        def take(page, width, height, *flags):
            from matplotlib.image import imread

            user, picture = tmp_path / "user", tmp_path / "page.png"

            (tmp_path / "page.html").write_text(page, encoding="utf-8")
            quiet = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"]
            quiet += ["--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND", "--hide-scrollbars"]
            subprocess.run(
                [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={user}",
                 f"--screenshot={picture}", f"--window-size={width},{height}", *flags,
                 (tmp_path / "page.html").as_uri()],
                check=True, capture_output=True, timeout=120,
            )  # fmt: skip
            return np.rint(imread(picture)[..., :3] * 255).astype(int)

        return take

    @pytest.mark.parametrize("which", ["llama", "tiny"])
    def test_it_is_full_of_content(self, which, screenshot, request):
        pixels = screenshot(request.getfixturevalue(which), 1200, 9000)
        assert pixels.shape == (9000, 1200, 3)
        paper = (pixels == rgb("paper", 0)).all(-1)
        assert 0.5 < paper.mean() < 0.97
        inked = np.flatnonzero(~paper.all(axis=1))
        assert 4500 < inked[-1] < 9000  # how long it is
        assert np.diff(inked).max() < 150  # no hole
        assert len(np.unique(pixels @ [65536, 256, 1])) > 500  # colours
        for name in ("red", "blue", "teal", "navy", "panel"):
            assert (pixels == rgb(name, 0)).all(-1).sum() > 200, name

    def test_it_fits_a_phone(self, llama, screenshot):
        pixels = screenshot(llama, 500, 12000)
        paper = (pixels == rgb("paper", 0)).all(-1)
        assert paper[:, :10].all() and paper[:, -10:].all()  # what is wide scrolls by itself
        assert not paper[:10000].all(axis=1)[200:].reshape(-1, 200).all(axis=1).any()

    def test_it_is_dark_on_a_dark_screen(self, llama, screenshot):
        pixels = screenshot(llama, 1200, 2500, "--blink-settings=preferredColorScheme=0")
        assert (pixels[0, 0] == rgb("paper", 1)).all()
        assert (pixels.mean(-1) > 200).mean() < 0.05
        assert (pixels == rgb("red", 1)).all(-1).sum() > 200 and (pixels == rgb("paper", 0)).all(-1).mean() < 0.01


def rgb(name, scheme):
    """Return a colour of the pages: scheme 0 is light, 1 is dark."""
    text = pages.COLOURS[name][scheme]
    return [int(text[n : n + 2], 16) for n in (1, 3, 5)]
