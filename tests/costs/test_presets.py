"""Models by name: as many parameters as published, the published bytes of a token, and a page that says the same."""

from pathlib import Path

import pytest

from refattn import costs
from refattn.costs.presets import PRESETS, preset
from refattn.models.gpt import GPT

PAGE = Path(__file__).parents[2] / "docs" / "costs" / "models_and_hardware.md"
KIB = 1024


def rounded(count, like):
    """Return a count with the digits and the unit that a published one has."""
    unit = {"B": 1e9, "M": 1e6}.get(like[-1])
    if unit is None:
        return f"{count:,}"
    decimals = len(like[:-1].partition(".")[2])
    return f"{count / unit:.{decimals}f}{like[-1]}"


def mechanisms(model):
    """Return the mechanisms of a model, with how many layers each has where there are several."""
    names = [one.name + (f", window {one.window}" if getattr(one, "window", None) else "") for one in model.mechanism]
    kinds = list(dict.fromkeys(names))
    return kinds[0] if len(kinds) == 1 else "; ".join(f"{names.count(kind)} {kind}" for kind in kinds)


def row(name):
    """Return a preset's row of the page."""
    model, entry = preset(name), PRESETS[name]
    cells = [f"`{name}`", model.layers, model.d_model, mechanisms(model), f"{model.params():,}", entry.params or "—"]
    return "| " + " | ".join(str(cell) for cell in [*cells, entry.source]) + " |"


class TestPublished:
    @pytest.mark.parametrize("name", [name for name, entry in PRESETS.items() if entry.params])
    def test_parameters(self, name):
        assert rounded(preset(name).params(), PRESETS[name].params) == PRESETS[name].params

    @pytest.mark.parametrize("name", [name for name, entry in PRESETS.items() if entry.active])
    def test_parameters_that_a_token_visits(self, name):
        assert rounded(preset(name).active_params(), PRESETS[name].active) == PRESETS[name].active

    def test_minilm(self):
        assert preset("minilm-l6").params() == 22_713_216

    def test_gpt3(self):
        params = preset("gpt3-175b").params()
        assert f"{params / 1e9:.1f}e9" == "174.6e9"
        assert f"{6 * params * 300e9:.2e}" == "3.14e+23"

    @pytest.mark.parametrize(
        ("name", "size"),
        [
            ("llama-2-7b", 512 * KIB),
            ("llama-3-8b", 128 * KIB),
            ("gpt2-xl", 300 * KIB),
            ("opt-13b", 819_200),  # Kwon et al., 2023, arXiv:2309.06180, section 3
        ],
    )
    def test_cache_of_a_token(self, name, size):
        assert preset(name).kv_cache_bytes(seq=1, dtype="bfloat16") == size

    def test_the_bundled_model(self):
        assert preset("refattn-gpt").params() == sum(x.size for x in GPT.bundled().parameters.values())


class TestNames:
    def test_every_preset_has_its_name_and_a_source(self):
        for name, entry in PRESETS.items():
            assert preset(name).name == name
            assert len(entry.source) > 10

    def test_a_misspelt_name_gets_the_nearest(self):
        with pytest.raises(LookupError, match=r"no model 'lama-3-8b'; did you mean llama-3-8b"):
            preset("lama-3-8b")

    def test_every_preset_can_be_counted(self):
        for name in PRESETS:
            model = preset(name)
            flops = model.forward_flops(seq=64)
            assert 0 < flops["head"] < flops["total"] or not model.logits, name
            assert model.kv_cache_bytes(seq=64) > 0, name
            assert model.bytes_moved(seq=64, phase="decode")["weights"] > model.d_model**2, name

    def test_windows_bound_the_cache(self):
        long = preset("mistral-7b").kv_cache_bytes(seq=100_000)
        assert long == preset("mistral-7b").kv_cache_bytes(seq=4096) == 4096 * 128 * KIB

    def test_the_schema_takes_them_too(self):
        assert costs.Transformer.from_config(PRESETS["llama-3-8b"].config).params() == preset("llama-3-8b").params()


def test_the_page_has_every_model_as_it_is():
    lines = PAGE.read_text(encoding="utf-8").split("## Hardware")[0].splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    assert rows == [row(name) for name in PRESETS], "\n" + "\n".join(map(row, PRESETS))
