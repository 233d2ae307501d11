"""The parameters of a config.json, counted, beside those of the model that transformers builds of it."""

import json
from pathlib import Path

import pytest

from refattn.costs.config import from_config
from refattn.costs.presets import PRESETS, preset

pytestmark = pytest.mark.peers

CONFIGS = sorted((Path(__file__).parent / "configs").glob("*.json"))
READ = sorted(name for name, entry in PRESETS.items() if entry.config is not None)
ENCODERS = ("bert", "roberta", "distilbert")


def in_transformers(config):
    """Return the parameters of transformers' model, without its numbers; tied ones are one."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = dict(config.get("text_config", config))
    kind = config.pop("model_type")
    read = transformers.AutoConfig.for_model(kind, **config)
    build = transformers.AutoModel if kind in ENCODERS else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        model = build.from_config(read)
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_has_the_parameters_of_its_model(path):
    config = json.loads(path.read_text(encoding="utf-8"))
    assert from_config(path).params() == in_transformers(config)


@pytest.mark.parametrize("name", READ)
def test_a_preset_has_the_parameters_of_its_model(name):
    assert preset(name).params() == in_transformers(PRESETS[name].config)
