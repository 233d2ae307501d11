"""The mixers, loaded from the state dicts of transformers' models with random weights, beside those models on the CPU.

A sequence at once, in pieces, and a token at a time, on both backends; all to 1e-5 of the largest output.
"""

import importlib
import warnings

import numpy as np
import pytest

from refattn.dispatch import use_backend
from refattn.models import gated, mamba, rwkv

pytestmark = pytest.mark.peers

B, T, M = 2, 70, 24
X = np.random.default_rng(0).normal(size=(B, T, M)).astype(np.float32)
SMALL = {"hidden_size": M, "num_hidden_layers": 2, "vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1}
SMALL |= {"eos_token_id": 2}
LIMIT = 1e-5


def kimi_config():
    return {"linear_num_heads": 3, "linear_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}


def qwen_config(heads, value_heads):
    sizes = {"linear_num_key_heads": heads, "linear_num_value_heads": value_heads}
    sizes |= {"linear_key_head_dim": 8, "linear_value_head_dim": 6}
    return sizes | {"layer_types": ["linear_attention", "full_attention"]}


def mamba2_config(groups):
    return {"state_size": 8, "num_heads": 6, "head_dim": 8, "n_groups": groups, "expand": 2, "chunk_size": 16}


# name -> (module, config class, its arguments, layer class, our loader, our mixer)
MIXERS = {
    "Mamba": (
        "mamba", "MambaConfig", {"state_size": 8}, "MambaMixer",
        mamba.mamba_from_transformers, mamba.mamba,
    ),
    "Mamba2": (
        "mamba2", "Mamba2Config", mamba2_config(1), "Mamba2Mixer",
        mamba.mamba2_from_transformers, mamba.mamba2,
    ),
    "Mamba2, two groups": (
        "mamba2", "Mamba2Config", mamba2_config(2), "Mamba2Mixer",
        mamba.mamba2_from_transformers, lambda *a: mamba.mamba2(*a, groups=2),
    ),
    "Mamba2, limited steps": (
        "mamba2", "Mamba2Config", mamba2_config(1) | {"time_step_limit": (0.5, 1.0)}, "Mamba2Mixer",
        mamba.mamba2_from_transformers, lambda *a: mamba.mamba2(*a, dt_limit=(0.5, 1.0)),
    ),
    "RWKV-4 time-mix": (
        "rwkv", "RwkvConfig", {"attention_hidden_size": 32}, "RwkvSelfAttention",
        rwkv.rwkv4_from_transformers, rwkv.rwkv4_time_mix,
    ),
    "RWKV-4 channel-mix": (
        "rwkv", "RwkvConfig", {"intermediate_size": 40}, "RwkvFeedForward",
        rwkv.rwkv4_from_transformers, rwkv.rwkv4_channel_mix,
    ),
    "Gated DeltaNet of Qwen3-Next": (
        "qwen3_next", "Qwen3NextConfig", qwen_config(2, 2), "Qwen3NextGatedDeltaNet",
        lambda t: gated.gated_deltanet_from_transformers(t, heads=2, value_heads=2),
        lambda *a: gated.gated_deltanet(*a, heads=2, value_heads=2),
    ),
    "Gated DeltaNet, more value heads": (
        "qwen3_next", "Qwen3NextConfig", qwen_config(2, 4), "Qwen3NextGatedDeltaNet",
        lambda t: gated.gated_deltanet_from_transformers(t, heads=2, value_heads=4),
        lambda *a: gated.gated_deltanet(*a, heads=2, value_heads=4),
    ),
    "Kimi Delta Attention": (
        "kimi_linear", "KimiLinearConfig", kimi_config(), "KimiLinearDeltaAttention",
        gated.kimi_delta_from_transformers, lambda *a: gated.kimi_delta(*a, heads=3),
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=MIXERS)
def pair(request):
    """Return our mixer with its parameters, and what transformers makes of X."""
    torch = pytest.importorskip("torch", reason="torch is not installed: python -m pip install torch==2.13.0")
    pytest.importorskip("transformers", reason="transformers is not installed: python -m pip install transformers")
    folder, config_class, sizes, layer_class, load, mix = MIXERS[request.param]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = getattr(importlib.import_module(f"transformers.models.{folder}.configuration_{folder}"), config_class)(
            **SMALL | sizes
        )
        layer = getattr(importlib.import_module(f"transformers.models.{folder}.modeling_{folder}"), layer_class)(
            config, 0
        )
        layer = layer.eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            result = layer(torch.from_numpy(X))
    want = (result[0] if isinstance(result, tuple) else result).numpy()
    weights = load({name: x.numpy() for name, x in layer.state_dict().items()})
    return (lambda x, state=None: mix(x, weights, state)), want


def hold(y, want):
    assert y.dtype == np.float32 and y.shape == want.shape
    error = np.abs(y - want).max() / np.abs(want).max()
    assert error < LIMIT, error


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_sequence_at_once(pair, backend):
    mix, want = pair
    with use_backend(backend):
        hold(mix(X)[0], want)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_prompt_then_a_token_at_a_time(pair, backend):
    mix, want = pair
    with use_backend(backend):
        y, state = mix(X[:, :50])
        parts = [y]
        for t in range(50, T):
            y, state = mix(X[:, t : t + 1], state)
            parts.append(y)
    hold(np.concatenate(parts, axis=1), want)


def test_the_names_of_a_whole_model():
    torch = pytest.importorskip("torch", reason="torch is not installed: python -m pip install torch==2.13.0")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.MambaModel(transformers.MambaConfig(**SMALL, state_size=8)).eval()
    tensors = {name: x.numpy() for name, x in model.state_dict().items()}
    weights = mamba.mamba_from_transformers(tensors, "layers.1.mixer.")
    with torch.no_grad():
        want = model.layers[1].mixer(torch.from_numpy(X)).numpy()
    hold(mamba.mamba(X, weights)[0], want)
