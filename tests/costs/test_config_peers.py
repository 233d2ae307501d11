"""The parameters of a config.json, counted, beside those of the model that transformers builds of it."""

import json
from pathlib import Path

import pytest

from refattn.costs.config import from_config
from refattn.costs.presets import PRESETS, preset

pytestmark = pytest.mark.peers

CONFIGS = sorted((Path(__file__).parent / "configs").glob("*.json"))
READ = sorted(name for name, entry in PRESETS.items() if entry.config is not None)
CHANGED = [  # a file, and what is otherwise in it (... takes the field away)
    ("distilbert", {"n_heads": 2}),
    ("gemma2", {"attention_bias": True, "tie_word_embeddings": False}),
    ("gpt2", {"n_inner": 30, "tie_word_embeddings": False}),
    ("gpt_neox", {"attention_bias": False, "tie_word_embeddings": True}),
    ("kimi_linear", {"linear_attn_config": ..., "q_lora_rank": 10}),
    ("kimi_linear", {"num_hidden_layers": 9, "linear_attn_config": ..., "linear_num_heads": 3, "linear_head_dim": 5}),
    ("llama", {"attention_bias": True}),
    ("llama", {"mlp_bias": True}),
    ("mamba", {"use_bias": True, "time_step_rank": 5, "tie_word_embeddings": False}),
    ("opt", {"do_layer_norm_before": False}),
    ("opt", {"enable_bias": False, "_remove_final_layer_norm": True}),
    ("qwen3", {"attention_bias": True, "head_dim": ...}),
    ("qwen3_moe", {"decoder_sparse_step": 1, "mlp_only_layers": [1, 0], "head_dim": ...}),
    ("qwen3_next", {"attention_bias": True, "layer_types": ["full_attention"] + ["linear_attention"] * 4}),
    ("deepseek_v3", {"q_lora_rank": None}),
    ("jamba", {"num_experts": 1, "mamba_proj_bias": True, "mamba_dt_rank": 3}),
    ("rwkv", {"attention_hidden_size": None, "intermediate_size": 33}),
]
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


@pytest.mark.parametrize(("name", "changes"), CHANGED)
def test_other_fields_are_counted_as_they_are_built(name, changes):
    path = Path(__file__).parent / "configs" / f"{name}.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    config = {key: value for key, value in config.items() if value is not ...}
    assert from_config(config).params() == in_transformers(config)


@pytest.mark.parametrize("name", READ)
def test_a_preset_has_the_parameters_of_its_model(name):
    assert preset(name).params() == in_transformers(PRESETS[name].config)
