"""Which fields of a config.json make which sizes, a function a family: what transformers 5 reads, with its defaults.

A field of another value than the only one that is counted is refused: no count is wrong without a word.
"""

from typing import Any

from refattn.costs.config_fields import Fields
from refattn.costs.experts import Experts
from refattn.costs.latent import Latent
from refattn.costs.mechanisms import Mechanism, Softmax

Sizes = dict[str, Any]
"""Arguments of `Transformer`."""

FULL, SLIDING = "full_attention", "sliding_attention"


def bert(f: Fields) -> Sizes:
    """BERT and RoBERTa, with the pooler and without a head."""
    layers, heads = f.layers(), f.heads(own=False)
    sizes = _encoder(layers, heads, f.size("hidden_size"), f.size("intermediate_size"), f)
    return sizes | {"types": f.size("type_vocab_size", default=2), "pooler": True}


def distilbert(f: Fields) -> Sizes:
    """DistilBERT: neither segments nor a pooler."""
    return _encoder(f.layers("n_layers"), f.heads("n_heads", "dim", own=False), f.size("dim"), f.size("hidden_dim"), f)


def _encoder(layers: int, heads: int, d_model: int, ffn: int, f: Fields) -> Sizes:
    sizes: Sizes = {"layers": layers, "heads": heads, "d_model": d_model, "ffn": ffn, "bias": True, "logits": False}
    return sizes | {"vocab": f.size("vocab_size"), "positions": f.size("max_position_embeddings")}


def gpt2(f: Fields) -> Sizes:
    """GPT-2."""
    f.only("add_cross_attention", False)
    sizes: Sizes = {"layers": f.layers("n_layer"), "heads": f.heads("n_head", "n_embd", own=False), "bias": True}
    sizes |= {"d_model": f.size("n_embd"), "ffn": f.optional("n_inner"), "vocab": f.size("vocab_size")}
    return sizes | {"positions": f.size("n_positions", "n_ctx"), "tied": f.flag("tie_word_embeddings", True)}


def gpt_neox(f: Fields) -> Sizes:
    """GPT-NeoX and Pythia."""
    attention = f.flag("attention_bias", True)
    sizes: Sizes = {"layers": f.layers(), "heads": f.heads(own=False), "d_model": f.size("hidden_size")}
    sizes |= {"ffn": f.size("intermediate_size"), "vocab": f.size("vocab_size"), "bias": True}
    return sizes | {"qkv_bias": attention, "o_bias": attention, "tied": f.flag("tie_word_embeddings", False)}


def opt(f: Fields) -> Sizes:
    """OPT, but for OPT-350M, whose embedding is narrower than its layers. Two rows of positions are for padding."""
    d_model = f.size("hidden_size")
    f.only("word_embed_proj_dim", d_model)
    f.only("layer_norm_elementwise_affine", True)
    last = f.flag("do_layer_norm_before", True) and not f.flag("_remove_final_layer_norm", False)
    sizes: Sizes = {"layers": f.layers(), "heads": f.heads(own=False), "d_model": d_model, "ffn": f.size("ffn_dim")}
    sizes |= {"vocab": f.size("vocab_size"), "positions": f.size("max_position_embeddings") + 2}
    sizes |= {"bias": f.flag("enable_bias", True), "norm_bias": True, "more_norms": 1 if last else 0}
    return sizes | {"tied": f.flag("tie_word_embeddings", True)}


def llama(f: Fields) -> Sizes:
    """Llama 1 to 3."""
    attention = f.flag("attention_bias", False)
    biases = {"bias": f.flag("mlp_bias", False), "norm_bias": False, "qkv_bias": attention, "o_bias": attention}
    return decoder(f) | biases


def decoder(f: Fields, tied: bool = False, head_dim: int | None = None) -> Sizes:
    """Return what decoders with rotated positions and a gated network share."""
    heads = f.heads(own=True) if head_dim is None else f.size("num_attention_heads")
    sizes: Sizes = {
        "layers": f.layers(),
        "heads": heads,
        "kv_heads": f.key_heads(heads),
        "d_model": f.size("hidden_size"),
    }
    sizes |= {"head_dim": f.optional("head_dim") or head_dim, "ffn": f.size("intermediate_size")}
    return sizes | {"gated": True, "vocab": f.size("vocab_size"), "tied": f.flag("tie_word_embeddings", tied)}


def attention_bias(f: Fields) -> Sizes:
    """Return which of attention's matrices have a bias."""
    attention = f.flag("attention_bias", False)
    return {"qkv_bias": attention, "o_bias": attention}


def _window(f: Fields, default: int | None) -> int | None:
    """Return the window; absent means the default, null none."""
    return f.optional("sliding_window") if "sliding_window" in f.values else default


def mistral(f: Fields) -> Sizes:
    """Mistral: all layers have the window, if there is one."""
    return decoder(f) | {"mechanism": Softmax(window=_window(f, 4096))}


def phi3(f: Fields) -> Sizes:
    """Phi-3, whose matrices of queries, keys and values are one, as are gate and up."""
    return decoder(f) | {"mechanism": Softmax(window=_window(f, None))}


def mixtral(f: Fields) -> Sizes:
    """Mixtral: every layer has experts."""
    experts = Experts(f.size("num_local_experts"), f.size("num_experts_per_tok"), f.size("intermediate_size"))
    return decoder(f) | {"mechanism": Softmax(window=_window(f, None)), "experts": experts}


def gemma(f: Fields) -> Sizes:
    """Gemma 1."""
    return decoder(f, tied=True, head_dim=256) | attention_bias(f)


def gemma2(f: Fields) -> Sizes:
    """Gemma 2: four norms a layer; the first and every other layer have a window."""
    layers = f.layers()
    kinds = f.kinds(layers, (FULL, SLIDING), lambda n: FULL if n % 2 else SLIDING)
    return gemma(f) | {"norms": 4, "mechanism": _windowed(f, kinds, _window(f, 4096))}


def gemma3(f: Fields) -> Sizes:
    """Gemma 3: five layers with a window, then one without. Its files leave out what is as in Gemma 3 4B."""
    defaults = {"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262_208}
    f = Fields(f.where, defaults | {name: value for name, value in f.values.items() if value is not None})
    every = f.size("sliding_window_pattern", "_sliding_window_pattern", default=6)
    kinds = f.kinds(f.layers(), (FULL, SLIDING), lambda n: SLIDING if (n + 1) % every else FULL)
    return gemma(f) | {"norms": 4, "qk_norm": True, "mechanism": _windowed(f, kinds, _window(f, 4096))}


def _windowed(f: Fields, kinds: list[str], size: int | None) -> list[Mechanism]:
    if SLIDING in kinds and size is None:
        raise f.wrong(f"layer_types has {SLIDING}, and there is no sliding_window")
    return [Softmax(window=size) if kind == SLIDING else Softmax() for kind in kinds]


def qwen2(f: Fields) -> Sizes:
    """Qwen 2 and 2.5: queries, keys and values have biases."""
    return decoder(f) | {"qkv_bias": True, "mechanism": _late_windows(f)}


def qwen3(f: Fields) -> Sizes:
    """Qwen 3: queries and keys are normalised."""
    return decoder(f, head_dim=128) | attention_bias(f) | {"qk_norm": True, "mechanism": _late_windows(f)}


def _late_windows(f: Fields) -> list[Mechanism]:
    size = _window(f, 4096) if f.flag("use_sliding_window", False) else None
    plain = f.size("max_window_layers", default=28, least=0)
    late = FULL if size is None else SLIDING
    return _windowed(f, f.kinds(f.layers(), (FULL, SLIDING), lambda n: FULL if n < plain else late), size)


def qwen3_moe(f: Fields) -> Sizes:
    """Qwen 3 with experts."""
    size = _window(f, 4096) if f.flag("use_sliding_window", False) else None
    sizes = decoder(f) | attention_bias(f)
    return sizes | {"qk_norm": True, "mechanism": Softmax(window=size), "experts": qwen_experts(f)}


def qwen_experts(f: Fields, shared: int = 0) -> Experts:
    """Return the experts of Qwen, with a gated one of width `shared` that every token visits."""
    every, plain = f.size("decoder_sparse_step", default=1), f.numbers("mlp_only_layers", f.layers() - 1) or []
    if plain and (every > 1 or sorted(plain) != list(range(len(plain)))):
        raise f.wrong("mlp_only_layers is counted only where it names the first layers, and decoder_sparse_step is 1")
    sizes = f.size("num_experts"), f.size("num_experts_per_tok"), f.size("moe_intermediate_size")
    return Experts(*sizes, shared=shared, first=len(plain) or every - 1, every=every, shared_gate=shared > 0)


def deepseek(f: Fields) -> Sizes:
    """DeepSeek-V2 and V3, without the layers that predict more than one token."""
    latent = latent_of(f)
    experts = None
    if f.optional("n_routed_experts"):
        f.only("moe_layer_freq", 1)
        experts = deepseek_experts(f, f.size("n_routed_experts"), f.size("first_k_dense_replace", default=0, least=0))
    return latent_decoder(f, latent) | {"mechanism": latent, "experts": experts}


def latent_of(f: Fields) -> Latent:
    """Return the MLA of DeepSeek and of Kimi."""
    f.only("attention_bias", False)
    sizes = f.size("kv_lora_rank"), f.size("qk_rope_head_dim"), f.size("qk_nope_head_dim"), f.size("v_head_dim")
    return Latent(None, None, *sizes, q_rank=f.optional("q_lora_rank"))


def latent_decoder(f: Fields, latent: Latent) -> Sizes:
    """Return the sizes beside MLA and experts."""
    sizes: Sizes = {"layers": f.layers(), "heads": f.size("num_attention_heads"), "d_model": f.size("hidden_size")}
    sizes |= {"head_dim": latent.nope_dim + latent.rope_dim, "v_head_dim": latent.value_dim}
    sizes |= {"ffn": f.size("intermediate_size"), "gated": True, "vocab": f.size("vocab_size")}
    return sizes | {"tied": f.flag("tie_word_embeddings", False), "bias": f.flag("mlp_bias", False), "norm_bias": False}


def deepseek_experts(f: Fields, count: int, first: int) -> Experts:
    """Return the experts of DeepSeek and of Kimi, from layer `first` on."""
    ffn = f.size("moe_intermediate_size")
    active = f.size("num_experts_per_tok", "num_experts_per_token")
    shared = f.size("n_shared_experts", "num_shared_experts", default=0, least=0)
    return Experts(count, active, ffn, shared=shared * ffn, first=first)
