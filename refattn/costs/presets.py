"""Models by name: published sizes, where they stand, and how many parameters they are said to make."""

from dataclasses import dataclass, replace
from typing import Any

from refattn.costs.config import from_config
from refattn.costs.names import unknown
from refattn.costs.transformer import Transformer


@dataclass(frozen=True)
class Preset:
    """The sizes of a model: the fields of its config.json, or arguments of `Transformer`."""

    sizes: dict[str, Any]
    """With ``model_type``: fields of a config.json."""
    source: str
    """Where the sizes stand."""
    params: str = ""
    """Parameters as published: all digits, or rounded, as in "174.6B"; nothing where only the name says it."""
    active: str = ""
    """Those that a token visits, as published; nothing where all are."""

    @property
    def config(self) -> dict[str, Any] | None:
        """The fields of a config.json, or None."""
        return self.sizes if "model_type" in self.sizes else None

    def build(self, name: str) -> Transformer:
        """Return the model."""
        return (
            Transformer(**self.sizes, name=name) if self.config is None else replace(from_config(self.sizes), name=name)
        )


def preset(name: str) -> Transformer:
    """Return a model by its name.

    Parameters
    ----------
    name : str
        One of `PRESETS`.

    Returns
    -------
    Transformer

    Raises
    ------
    LookupError
        For another name; the nearest ones are offered.

    Examples
    --------
    >>> print(preset("bert-base"))
    bert-base: 12 layers of width 768, 109,482,240 parameters, softmax
    >>> preset("llama-3-8b").kv_cache_bytes(seq=1, dtype="bfloat16") // 1024
    128
    >>> preset("llama3-8b")
    Traceback (most recent call last):
    ...
    LookupError: no model 'llama3-8b'; did you mean llama-3-8b, llama-3-70b, llama-2-7b?
    """
    if name not in PRESETS:
        raise unknown("model", name, PRESETS)
    return PRESETS[name].build(name)


def _bert(layers: int, width: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "vocab_size": 30522,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
    }


def _gpt2(layers: int, width: int, heads: int) -> dict[str, Any]:
    sizes = {"n_layer": layers, "n_embd": width, "n_head": heads}
    return {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024} | sizes


def _opt(layers: int, width: int, heads: int) -> dict[str, Any]:
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads, "ffn_dim": 4 * width}
    return {"model_type": "opt", "vocab_size": 50272, "max_position_embeddings": 2048} | sizes


def _decoder(
    kind: str, layers: int, width: int, heads: int, kv_heads: int, ffn: int, vocab: int, **more: Any
) -> dict[str, Any]:
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads, "vocab_size": vocab}
    return {"model_type": kind, "num_key_value_heads": kv_heads, "intermediate_size": ffn} | sizes | more


def _mamba(layers: int, width: int, **more: Any) -> dict[str, Any]:
    return {"model_type": "mamba", "num_hidden_layers": layers, "hidden_size": width, "vocab_size": 50280} | more


def _rwkv(layers: int, width: int) -> dict[str, Any]:
    return {"model_type": "rwkv", "num_hidden_layers": layers, "hidden_size": width, "vocab_size": 50277}


def _latent(rank: int, q_rank: int | None, **more: Any) -> dict[str, Any]:
    widths = {"qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
    return {"kv_lora_rank": rank, "q_lora_rank": q_rank} | widths | more


_BERT = "Devlin et al., 2018, arXiv:1810.04805"
_GPT2 = "Radford et al., 2019, Table 2; config.json of openai-community/"
_GPT3 = "Brown et al., 2020, arXiv:2005.14165, Table 2.1; parameters: Table D.1"
_OPT = "Zhang et al., 2022, arXiv:2205.01068, Table 1"
_LLAMA2 = "Touvron et al., 2023, arXiv:2307.09288; config.json of meta-llama/Llama-2-"
_LLAMA3 = "Grattafiori et al., 2024, arXiv:2407.21783, Table 3; config.json of meta-llama/"
_GEMMA2 = "Gemma Team, 2024, arXiv:2408.00118, Table 1; config.json of google/gemma-2-9b"
_GEMMA3 = "Gemma Team, 2025, arXiv:2503.19786; config.json of google/gemma-3-4b-it, the part that reads text"
_DEEPSEEK2 = "DeepSeek-AI, 2024, arXiv:2405.04434, appendix B; config.json of deepseek-ai/DeepSeek-V2-Lite"
_DEEPSEEK3 = "DeepSeek-AI, 2024, arXiv:2412.19437, section 4.2; without the layer that predicts a second token"
_MAMBA = "Gu and Dao, 2023, arXiv:2312.00752; config.json of state-spaces/"
_MAMBA2 = "Dao and Gu, 2024, arXiv:2405.21060; config.json of state-spaces/mamba2-2.7b, vocabulary padded to 50,288"
_RWKV = "Peng et al., 2023, arXiv:2305.13048, Table 2"
_KIMI = "Kimi Team, 2025, arXiv:2510.26692; config.json of moonshotai/Kimi-Linear-48B-A3B-Instruct"
_SMALL = {"layers": 4, "d_model": 128, "heads": 4, "kv_heads": 2, "ffn": 320, "gated": True}

PRESETS: dict[str, Preset] = {
    "refattn-gpt": Preset(_SMALL | {"vocab": 146}, "the bundled model, `GPT.bundled()`"),
    "minilm-l6": Preset(
        _bert(6, 384, 12), "config.json of sentence-transformers/all-MiniLM-L6-v2; its weights", "22,713,216"
    ),
    "bert-base": Preset(_bert(12, 768, 12), _BERT, "109,482,240"),
    "bert-large": Preset(_bert(24, 1024, 16), _BERT, "335,141,888"),
    "gpt2": Preset(_gpt2(12, 768, 12), f"{_GPT2}gpt2", "124,439,808"),
    "gpt2-medium": Preset(_gpt2(24, 1024, 16), f"{_GPT2}gpt2-medium", "354,823,168"),
    "gpt2-large": Preset(_gpt2(36, 1280, 20), f"{_GPT2}gpt2-large", "774,030,080"),
    "gpt2-xl": Preset(_gpt2(48, 1600, 25), f"{_GPT2}gpt2-xl", "1,557,611,200"),
    "gpt3-175b": Preset(_gpt2(96, 12288, 96) | {"n_positions": 2048}, _GPT3, "174.6B"),
    "opt-13b": Preset(_opt(40, 5120, 40), _OPT),
    "opt-175b": Preset(_opt(96, 12288, 96), _OPT, "175B"),
    "llama-2-7b": Preset(_decoder("llama", 32, 4096, 32, 32, 11008, 32000), f"{_LLAMA2}7b", "6,738,415,616"),
    "llama-2-13b": Preset(_decoder("llama", 40, 5120, 40, 40, 13824, 32000), f"{_LLAMA2}13b", "13,015,864,320"),
    "llama-2-70b": Preset(_decoder("llama", 80, 8192, 64, 8, 28672, 32000), f"{_LLAMA2}70b", "68,976,648,192"),
    "llama-3-8b": Preset(
        _decoder("llama", 32, 4096, 32, 8, 14336, 128256), f"{_LLAMA3}Meta-Llama-3-8B", "8,030,261,248"
    ),
    "llama-3-70b": Preset(
        _decoder("llama", 80, 8192, 64, 8, 28672, 128256), f"{_LLAMA3}Meta-Llama-3-70B", "70,553,706,496"
    ),
    "llama-3.1-405b": Preset(
        _decoder("llama", 126, 16384, 128, 8, 53248, 128256), f"{_LLAMA3}Llama-3.1-405B", "405,853,388,800"
    ),
    "mistral-7b": Preset(
        _decoder("mistral", 32, 4096, 32, 8, 14336, 32000, sliding_window=4096),
        "Jiang et al., 2023, arXiv:2310.06825, Table 1; mistralai/Mistral-7B-v0.1",
        "7,241,732,096",
    ),
    "mixtral-8x7b": Preset(
        _decoder("mixtral", 32, 4096, 32, 8, 14336, 32000, num_local_experts=8, num_experts_per_tok=2),
        "Jiang et al., 2024, arXiv:2401.04088, Table 1; mistralai/Mixtral-8x7B-v0.1",
        "46,702,792,704",
        "12.9B",
    ),
    "gemma-2-9b": Preset(
        _decoder("gemma2", 42, 3584, 16, 8, 14336, 256000, head_dim=256, sliding_window=4096), _GEMMA2, "9,241,705,984"
    ),
    "gemma-3-4b": Preset(
        _decoder("gemma3_text", 34, 2560, 8, 4, 10240, 262208, head_dim=256, sliding_window=1024), _GEMMA3
    ),
    "qwen2.5-7b": Preset(
        _decoder("qwen2", 28, 3584, 28, 4, 18944, 152064),
        "Qwen Team, 2024, arXiv:2412.15115; config.json of Qwen/Qwen2.5-7B",
        "7,615,616,512",
    ),
    "qwen3-8b": Preset(
        _decoder("qwen3", 36, 4096, 32, 8, 12288, 151936, head_dim=128),
        "Qwen Team, 2025, arXiv:2505.09388, Table 1; config.json of Qwen/Qwen3-8B",
        "8,190,735,360",
    ),
    "qwen3-next-80b-a3b": Preset(
        _decoder(
            "qwen3_next",
            48,
            2048,
            16,
            2,
            5120,
            151936,
            head_dim=256,
            num_experts=512,
            num_experts_per_tok=10,
            moe_intermediate_size=512,
            shared_expert_intermediate_size=512,
            full_attention_interval=4,
            linear_num_key_heads=16,
            linear_num_value_heads=32,
            linear_key_head_dim=128,
            linear_value_head_dim=128,
        ),
        "model card and config.json of Qwen/Qwen3-Next-80B-A3B-Instruct, 2025",
        "80B",
    ),
    "deepseek-v2-lite": Preset(
        _decoder(
            "deepseek_v2",
            27,
            2048,
            16,
            16,
            10944,
            102400,
            n_routed_experts=64,
            num_experts_per_tok=6,
            n_shared_experts=2,
            moe_intermediate_size=1408,
            first_k_dense_replace=1,
            **_latent(512, None),
        ),
        _DEEPSEEK2,
        "15,706,484,224",
    ),
    "deepseek-v3": Preset(
        _decoder(
            "deepseek_v3",
            61,
            7168,
            128,
            128,
            18432,
            129280,
            n_routed_experts=256,
            num_experts_per_tok=8,
            n_shared_experts=1,
            moe_intermediate_size=2048,
            first_k_dense_replace=3,
            **_latent(512, 1536),
        ),
        _DEEPSEEK3,
        "671B",
    ),
    "kimi-linear-48b-a3b": Preset(
        _decoder(
            "kimi_linear",
            27,
            2304,
            32,
            32,
            9216,
            163840,
            num_experts=256,
            num_experts_per_token=8,
            num_shared_experts=1,
            moe_intermediate_size=1024,
            first_k_dense_replace=1,
            **_latent(512, None),
            linear_attn_config={
                "full_attn_layers": [4, 8, 12, 16, 20, 24, 27],
                "kda_layers": [n for n in range(1, 27) if n % 4],
                "num_heads": 32,
                "head_dim": 128,
                "short_conv_kernel_size": 4,
            },
        ),
        _KIMI,
    ),
    "mamba-130m": Preset(_mamba(24, 768), f"{_MAMBA}mamba-130m-hf", "129,135,360"),
    "mamba-2.8b": Preset(_mamba(64, 2560), f"{_MAMBA}mamba-2.8b-hf", "2,768,345,600"),
    "mamba2-2.7b": Preset(
        _mamba(64, 2560, num_heads=80, head_dim=64, n_groups=1, state_size=128, tie_word_embeddings=True)
        | {"model_type": "mamba2", "vocab_size": 50288},
        _MAMBA2,
        "2.7B",
    ),
    "rwkv-4-169m": Preset(_rwkv(12, 768), _RWKV, "169.3M"),
    "rwkv-4-7b": Preset(_rwkv(32, 4096), _RWKV, "7.393B"),
    "jamba-v0.1": Preset(
        _decoder("jamba", 32, 4096, 32, 8, 14336, 65536),
        "Lieber et al., 2024, arXiv:2403.19887; config.json of ai21labs/Jamba-v0.1",
        "52B",
        "12B",
    ),
}
"""Name -> sizes and source. Nothing is built before `preset` is called."""
