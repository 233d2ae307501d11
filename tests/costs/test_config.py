"""config.json files: what is read of them, and what is said of those that cannot be right."""

import json
import re
from pathlib import Path

import pytest

from refattn import costs
from refattn.costs.config import FAMILIES, from_config

FOLDER = Path(__file__).parent / "configs"
CONFIGS = sorted(FOLDER.glob("*.json"))

PARAMS = {  # of transformers' models; test_config_peers.py builds them
    "bert": 16_872,
    "deepseek_v2": 24_396,
    "deepseek_v3": 19_866,
    "distilbert": 16_224,
    "gemma": 15_768,
    "gemma2": 22_344,
    "gemma3": 7_349_624,
    "gpt2": 24_456,
    "gpt_neox": 15_888,
    "jamba": 95_172,
    "kimi_linear": 39_196,
    "llama-3-8b": 8_030_261_248,
    "llama": 16_392,
    "llama_biased": 19_272,
    "mamba": 16_704,
    "mamba2": 15_798,
    "mistral": 16_392,
    "mixtral": 42_600,
    "opt": 16_272,
    "phi3": 16_392,
    "qwen2": 15_336,
    "qwen3": 18_168,
    "qwen3_moe": 18_840,
    "qwen3_next": 44_384,
    "roberta": 16_896,
    "rwkv": 28_104,
}


def read(name):
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def windows(model):
    return [mechanism.window for mechanism in model.mechanism]


class TestRead:
    @pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
    def test_parameters(self, path):
        assert from_config(path).params() == PARAMS[path.stem]

    def test_every_family_has_a_file(self):
        kinds = {config.get("text_config", config)["model_type"] for config in (read(path.stem) for path in CONFIGS)}
        assert kinds == set(FAMILIES) - {"xlm-roberta"}  # read as roberta is

    def test_a_file_its_folder_and_its_contents_are_the_same(self, tmp_path):
        file = tmp_path / "config.json"
        file.write_text(json.dumps(read("llama")), encoding="utf-8")
        models = [from_config(source) for source in (file, str(file), tmp_path, str(tmp_path), read("llama"))]
        models.append(costs.Transformer.from_config(tmp_path))
        assert len(set(map(repr, models))) == 1

    def test_an_encoder_has_no_head(self):
        assert from_config(read("bert")).forward_flops(seq=5)["head"] == 0
        assert from_config(read("gpt2")).forward_flops(seq=5)["head"] == 2 * 5 * 24 * 50

    @pytest.mark.parametrize(
        ("name", "want"),
        [
            ("llama", [None] * 3),
            ("mistral", [16] * 3),
            ("mixtral", [None] * 3),
            ("phi3", [16] * 3),
            ("gemma2", [16, None, 16, None]),
            ("gemma3", [16, 16, 16, 16, 16, None, 16]),
            ("qwen2", [None, None, 16]),
            ("qwen3", [None] * 3),
        ],
    )
    def test_windows(self, name, want):
        assert windows(from_config(read(name))) == want

    def test_a_window_that_is_null_is_none_and_one_that_is_absent_the_default(self):
        mistral = read("mistral")
        assert windows(from_config(mistral | {"sliding_window": None})) == [None] * 3
        del mistral["sliding_window"]
        assert windows(from_config(mistral)) == [4096] * 3

    def test_layer_types_decide(self):
        kinds = ["full_attention", "sliding_attention", "full_attention"]
        assert windows(from_config(read("gemma2") | {"num_hidden_layers": 3, "layer_types": kinds})) == [None, 16, None]
        assert windows(from_config(read("qwen2") | {"layer_types": kinds})) == [None, 16, None]

    @pytest.mark.parametrize(
        ("name", "want"),
        [
            ("qwen3_next", ["gated_deltanet"] * 3 + ["gated_softmax", "gated_deltanet"]),
            ("kimi_linear", ["kimi_delta"] * 3 + ["latent", "kimi_delta"]),
            ("jamba", ["mamba", "mamba", "softmax", "mamba"] * 2),
        ],
    )
    def test_hybrids(self, name, want):
        assert [mechanism.name for mechanism in from_config(read(name)).mechanism] == want

    @pytest.mark.parametrize(
        ("name", "want"),
        [
            ("mixtral", [True] * 3),
            ("qwen3_moe", [False, True, False]),
            ("qwen3_next", [False] + [True] * 4),
            ("deepseek_v2", [False, True, True]),
            ("deepseek_v3", [False, False, True]),
            ("jamba", [False, True] * 4),
        ],
    )
    def test_experts(self, name, want):
        model = from_config(read(name))
        assert [model.has_experts(layer) for layer in range(model.layers)] == want
        assert model.active_params() < model.params()

    def test_what_a_layer_keeps(self):
        kept = from_config(read("deepseek_v2")).kv_cache_bytes(seq=10, dtype="bfloat16")
        assert kept == 3 * 10 * (12 + 4) * 2
        assert from_config(read("mistral")).kv_cache_bytes(seq=100) == 3 * 16 * 2 * 2 * 6 * 2


WRONG = [  # file, changes (... takes the field away), error, what it says
    ("llama", {"hidden_size": ...}, ValueError, "no hidden_size; wanted an integer from 1"),
    ("llama", {"vocab_size": "many"}, ValueError, "vocab_size is 'many'; wanted an integer"),
    ("llama", {"num_hidden_layers": 0}, ValueError, "num_hidden_layers is 0; wanted an integer from 1 to 10000"),
    ("llama", {"num_hidden_layers": 10**12}, ValueError, "num_hidden_layers is larger; wanted"),
    ("llama", {"intermediate_size": -4}, ValueError, "intermediate_size is -4"),
    ("llama", {"intermediate_size": 4.0}, ValueError, "intermediate_size is 4.0"),
    ("llama", {"num_attention_heads": True}, ValueError, "num_attention_heads is True"),
    ("llama", {"num_attention_heads": 7}, ValueError, "hidden_size is 24 and num_attention_heads 7; wanted a multiple"),
    ("llama", {"num_key_value_heads": 3}, ValueError, "num_attention_heads is 4 and num_key_value_heads 3; wanted"),
    ("llama", {"tie_word_embeddings": "no"}, ValueError, "tie_word_embeddings is 'no'; wanted true or false"),
    ("llama", {"model_type": ...}, ValueError, "model_type is None; wanted one of bert"),
    ("llama", {"model_type": "lama"}, LookupError, "no model_type 'lama'; did you mean llama"),
    ("gpt2", {"n_head": 5}, ValueError, "n_embd is 24 and n_head 5; wanted a multiple"),
    ("gpt2", {"add_cross_attention": True}, ValueError, "add_cross_attention is True; only False is counted"),
    ("opt", {"word_embed_proj_dim": 12}, ValueError, "word_embed_proj_dim is 12; only 24 is counted"),
    ("gemma2", {"layer_types": ["full_attention"]}, ValueError, "layer_types has 1 entries; wanted one for each of 4"),
    ("gemma2", {"layer_types": ["chunked"] * 4}, ValueError, "layer_types has 'chunked'; wanted full_attention or"),
    ("gemma2", {"layer_types": "full"}, ValueError, "layer_types is 'full'; wanted a list"),
    ("gemma2", {"sliding_window": None}, ValueError, "layer_types has sliding_attention, and there is no"),
    ("gemma3", {"text_config": {"model_type": "gemma3_text"}}, ValueError, "text_config: no num_hidden_layers"),
    ("mixtral", {"num_experts_per_tok": 9}, ValueError, "Experts: active is 9, of 4"),
    ("qwen3_moe", {"mlp_only_layers": [1]}, ValueError, "mlp_only_layers is counted only where"),
    (
        "qwen3_moe",
        {"mlp_only_layers": [7]},
        ValueError,
        "mlp_only_layers is [7]; wanted a list of integers from 0 to 2",
    ),
    ("deepseek_v3", {"kv_lora_rank": None}, ValueError, "no kv_lora_rank"),
    ("deepseek_v3", {"attention_bias": True}, ValueError, "attention_bias is True; only False is counted"),
    ("kimi_linear", {"linear_attn_config": [1]}, ValueError, "linear_attn_config is a list; wanted an object"),
    ("mamba", {"use_conv_bias": False}, ValueError, "use_conv_bias is False; only True is counted"),
    ("mamba2", {"num_heads": 5}, ValueError, "num_heads is 5, head_dim 8, and expand times hidden_size 48"),
    ("jamba", {"attn_layer_offset": 4}, ValueError, "attn_layer_offset and expert_layer_offset must be smaller"),
]


KINDS = (None, "x", -1, 0, 1.5, True, [], [1], {}, {"a": 1}, 10**30, float("nan"))


def outcome(config):
    """Return what an error says, or how many parameters there are."""
    try:
        return f"model of {from_config(config).params()}"
    except (ValueError, LookupError) as error:
        return str(error)


class TestWrong:
    @pytest.mark.parametrize(("name", "changes", "error", "text"), WRONG, ids=lambda x: str(x)[:30])
    def test_one_error_names_the_file_and_the_field(self, tmp_path, name, changes, error, text):
        config = {key: value for key, value in (read(name) | changes).items() if value is not ...}
        file = tmp_path / "config.json"
        file.write_text(json.dumps(config), encoding="utf-8")
        with pytest.raises(error, match=re.escape(text)) as caught:
            from_config(file)
        said = str(caught.value)
        assert said.startswith(str(file)) and said.count(str(file)) == 1 and "\n" not in said

    @pytest.mark.parametrize(
        ("content", "text"),
        [("{", "not JSON"), ("[1]", "holds a JSON list"), ("", "not JSON"), ('{"a": ' + "9" * 5000 + "}", "digits")],
    )
    def test_no_object(self, tmp_path, content, text):
        file = tmp_path / "config.json"
        file.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=text) as caught:
            from_config(file)
        assert str(caught.value).startswith(str(file))

    def test_no_text(self, tmp_path):
        file = tmp_path / "config.json"
        file.write_bytes(b"\xff\xfe{}")
        with pytest.raises(ValueError, match="not UTF-8"):
            from_config(file)

    def test_no_file(self, tmp_path):
        for missing in (tmp_path / "none.json", tmp_path):
            with pytest.raises(FileNotFoundError, match=r"config\.json"):
                from_config(missing)

    def test_no_source(self):
        with pytest.raises(TypeError, match="source is int; wanted a path or a dict"):
            from_config(7)

    @pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
    def test_any_field_of_any_other_kind_gives_a_model_or_one_error(self, path):
        whole = read(path.stem)
        config = whole.get("text_config", whole)
        said = [outcome(config | {key: value}) for key in config for value in KINDS]
        assert all(text.startswith(("config: ", "model of ")) for text in said)
        assert sum(text.startswith("config: ") for text in said) > 2 * len(config)

    def test_contents_that_are_no_sizes(self):
        for config in ({}, {"model_type": ["llama"]}, {"model_type": {}, "text_config": {}}, {"text_config": {"a": 1}}):
            assert outcome(config).startswith("config: ")
