"""Which fields of a config.json make which sizes: models that keep a state in some layers or in all."""

from refattn.costs.config_families import (
    FULL,
    Sizes,
    attention_bias,
    decoder,
    deepseek_experts,
    latent_decoder,
    latent_of,
    qwen_experts,
)
from refattn.costs.config_fields import Fields
from refattn.costs.experts import Experts
from refattn.costs.mechanisms import GatedSoftmax, Softmax
from refattn.costs.receptance import Rwkv4
from refattn.costs.recurrent import DeltaNet
from refattn.costs.spaces import Mamba, Mamba2

LINEAR = "linear_attention"


def qwen3_next(f: Fields) -> Sizes:
    """Qwen3-Next: three layers of gated DeltaNet, then one of gated softmax attention; experts, and a shared one."""
    delta = DeltaNet(
        key_heads=f.size("linear_num_key_heads", default=16),
        value_heads=f.size("linear_num_value_heads", default=32),
        key_dim=f.size("linear_key_head_dim", default=128),
        value_dim=f.size("linear_value_head_dim", default=128),
        conv=f.size("linear_conv_kernel_dim", default=4),
    )
    every = f.size("full_attention_interval", default=4)
    kinds = f.kinds(f.layers(), (FULL, LINEAR), lambda n: LINEAR if (n + 1) % every else FULL)
    sizes = decoder(f, head_dim=256) | attention_bias(f)
    sizes |= {"qk_norm": True, "experts": qwen_experts(f, f.size("shared_expert_intermediate_size"))}
    return sizes | {"mechanism": [delta if kind == LINEAR else GatedSoftmax() for kind in kinds]}


def kimi_linear(f: Fields) -> Sizes:
    """Kimi Linear: three layers of Kimi Delta Attention, then one of MLA; experts after the first layers."""
    inside, layers = f.inner("linear_attn_config"), f.layers()
    heads = inside.optional("num_heads") or f.size("linear_num_heads", default=32)
    width = inside.optional("head_dim") or f.size("linear_head_dim", default=128)
    conv = inside.optional("short_conv_kernel_size") or f.size("linear_conv_kernel_dim", default=4)
    full = inside.numbers("full_attn_layers", layers)  # from 1 on
    if full is None:
        full = list(range(5, layers + 1, 4))
    kinds = f.kinds(layers, (FULL, LINEAR), lambda n: FULL if n + 1 in full else LINEAR)
    delta, latent = DeltaNet(heads, heads, width, width, conv, channelwise=True), latent_of(f)
    f.only("moe_layer_freq", 1)
    first = f.size("first_k_dense_replace", default=1, least=0)
    f.only("mlp_layer_types", ["dense"] * first + ["sparse"] * (layers - first))
    count = f.size("num_experts", "num_local_experts", "n_routed_experts")
    experts = deepseek_experts(f, count, first)
    sizes = latent_decoder(f, latent) | {"experts": experts}
    return sizes | {"mechanism": [delta if kind == LINEAR else latent for kind in kinds]}


def mamba(f: Fields) -> Sizes:
    """Mamba, as its files for transformers have it."""
    f.only("use_conv_bias", True)
    d_model = f.size("hidden_size", "d_model")
    mixer = Mamba(
        inner=d_model * f.size("expand", default=2),
        state=f.size("state_size", default=16),
        conv=f.size("conv_kernel", default=4),
        dt_rank=_rank(f, "time_step_rank"),
        bias=f.flag("use_bias", False),
    )
    sizes: Sizes = {"layers": f.layers("num_hidden_layers", "n_layer"), "d_model": d_model, "heads": 1, "ffn": 0}
    return sizes | {"vocab": f.size("vocab_size"), "tied": f.flag("tie_word_embeddings", True), "mechanism": mixer}


def _rank(f: Fields, name: str) -> int | None:
    return None if f.values.get(name) == "auto" else f.optional(name)


def mamba2(f: Fields) -> Sizes:
    """Mamba-2, as its files for transformers have it."""
    f.only("use_conv_bias", True)
    f.only("use_bias", False)
    d_model, heads, width = f.size("hidden_size"), f.size("num_heads"), f.size("head_dim")
    inner = d_model * f.size("expand", default=2)
    if heads * width != inner:
        raise f.wrong(f"num_heads is {heads}, head_dim {width}, and expand times hidden_size {inner}; wanted a product")
    state, groups = f.size("state_size", default=128), f.size("n_groups", default=8)
    mixer = Mamba2(inner, heads, state, groups, f.size("conv_kernel", default=4), f.optional("chunk_size"))
    sizes: Sizes = {"layers": f.layers(), "d_model": d_model, "heads": heads, "head_dim": width, "ffn": 0}
    return sizes | {"vocab": f.size("vocab_size"), "tied": f.flag("tie_word_embeddings", False), "mechanism": mixer}


def rwkv(f: Fields) -> Sizes:
    """RWKV-4: one norm more, after the embedding."""
    d_model = f.size("hidden_size")
    sizes: Sizes = {"layers": f.layers(), "d_model": d_model, "heads": 1, "vocab": f.size("vocab_size")}
    sizes |= {"ffn": f.optional("intermediate_size"), "norm_bias": True, "more_norms": 2}
    inner = f.optional("attention_hidden_size")
    return sizes | {"tied": f.flag("tie_word_embeddings", False), "mechanism": Rwkv4(inner)}


def jamba(f: Fields) -> Sizes:
    """Jamba: one layer of attention among several of Mamba, experts in every other layer."""
    f.only("mamba_conv_bias", True)
    d_model, layers = f.size("hidden_size"), f.layers()
    mixer = Mamba(
        inner=d_model * f.size("mamba_expand", default=2),
        state=f.size("mamba_d_state", default=16),
        conv=f.size("mamba_d_conv", default=4),
        dt_rank=_rank(f, "mamba_dt_rank"),
        inner_norms=True,
        bias=f.flag("mamba_proj_bias", False),
    )
    period, offset = f.size("attn_layer_period", default=8), f.size("attn_layer_offset", default=4, least=0)
    every, first = f.size("expert_layer_period", default=2), f.size("expert_layer_offset", default=1, least=0)
    if offset >= period or first >= every:
        raise f.wrong("attn_layer_offset and expert_layer_offset must be smaller than their periods")
    count, experts = f.size("num_experts", default=16), None
    if count > 1:
        active = f.size("num_experts_per_tok", default=2)
        experts = Experts(count, active, f.size("intermediate_size"), first=first, every=every)
    each = [Softmax() if n % period == offset else mixer for n in range(layers)]
    return decoder(f) | {"mechanism": each, "experts": experts}
