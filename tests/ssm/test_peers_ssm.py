"""State spaces against the plain PyTorch code of transformers, which stands in for the kernels of mamba_ssm there."""

import numpy as np
import pytest

import refattn
from tests.ssm.draws import draw

pytestmark = pytest.mark.peers


@pytest.fixture
def peers():
    torch = pytest.importorskip("torch", reason="torch is not installed: python -m pip install torch")
    reason = "transformers is not installed: python -m pip install transformers"
    pytest.importorskip("transformers", reason=reason)
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan
    from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

    return torch, mamba_selective_scan, mamba2_chunk_scan


@pytest.mark.parametrize("T", [1, 40, 65])
def test_selective_scan_is_that_of_transformers(peers, T):
    torch, scan, _ = peers
    x, options = draw("selective_scan", np.random.default_rng(T), T)
    del x["initial_state"]
    channels_first = {name: torch.tensor(x[name]).transpose(1, 2) for name in ("u", "delta", "B", "C", "z")}
    u, delta, B, C, z = channels_first.values()
    A, D, bias = (torch.tensor(x[name]) for name in ("A", "D", "delta_bias"))
    given = {"D": D, "z": z, "delta_bias": bias, "delta_softplus": True, "return_last_state": True}
    o, state = scan(u, delta, A, B, C, **given)
    got = refattn.selective_scan(**x, **options)
    np.testing.assert_allclose(got.o, o.transpose(1, 2).numpy(), atol=1e-5)  # B and C are float32 there
    np.testing.assert_allclose(got.state, state.numpy(), atol=1e-5)


@pytest.mark.parametrize(("T", "chunk"), [(1, 4), (40, 16), (65, 64)])
def test_ssd_is_that_of_transformers(peers, T, chunk):
    torch, _, scan = peers
    x, options = draw("ssd", np.random.default_rng(T), T)
    del x["z"]  # the network of transformers has its gate inside the norm that follows
    tokens_first = {name: torch.tensor(x[name]).transpose(1, 2) for name in ("x", "dt", "B", "C")}
    u, dt, B, C = tokens_first.values()
    A, D, bias = (torch.tensor(x[name]) for name in ("A", "D", "dt_bias"))
    first = torch.tensor(x["initial_state"]).transpose(-1, -2)
    given = {"D": D, "dt_bias": bias, "initial_states": first, "return_final_states": True, **options}
    o, state = scan(u, dt, A, B, C, chunk, **given)
    got = refattn.ssd(**x, **options)
    np.testing.assert_allclose(got.o, o.transpose(1, 2).numpy(), atol=1e-5)
    np.testing.assert_allclose(got.state, state.transpose(-1, -2).numpy(), atol=1e-5)


def test_decoding_in_transformers_forgets_the_limits_of_steps():
    """Mamba2's mixer passes time_step_limit on to the chunked scan, and to its step of decoding nothing of the kind."""
    pytest.importorskip("transformers", reason="transformers is not installed: python -m pip install transformers")
    import inspect

    from transformers.models.mamba2 import modeling_mamba2

    assert "dt_limit" in inspect.signature(modeling_mamba2.mamba2_chunk_scan).parameters
    assert "dt_limit" not in inspect.signature(modeling_mamba2.mamba2_selective_state_update).parameters
