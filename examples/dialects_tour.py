"""Move a call from PyTorch to FlashAttention: the same words, another answer, and how to say what was meant."""

import numpy as np

import refattn
from refattn.dialects import flash_attn, flashinfer, torch_sdpa
from refattn.masks import causal

rng = np.random.default_rng(0)
q = rng.standard_normal((1, 4, 2, 8))  # 2 new tokens ...
k, v = rng.standard_normal((2, 1, 4, 6, 8))  # ... after 4 old ones: 6 keys
tokens_first = [x.swapaxes(1, 2) for x in (q, k, v)]

in_torch = torch_sdpa.scaled_dot_product_attention(q, k, v, is_causal=True)
in_flash = flash_attn.flash_attn_func(*tokens_first, causal=True).swapaxes(1, 2)
print("the same words, the furthest apart:", np.abs(in_torch - in_flash).max().round(3))

# PyTorch counts from the first key, FlashAttention from the last: say with a mask what the last two tokens see.
mask = causal().dense(2, 6)
print(causal().picture(2, 6))
repaired = torch_sdpa.scaled_dot_product_attention(q, k, v, attn_mask=mask)
print("with a mask:", np.abs(repaired - in_flash).max().round(3))

# The lse of FlashInfer is a logarithm to the base 2.
o, lse = refattn.attention(q, k, v, mask=causal(), return_lse=True)
out, lse2 = flashinfer.single_prefill_with_kv_cache(*(x[0] for x in tokens_first), causal=True, return_lse=True)
print("natural, and to the base 2:", lse[0, 0, 0].round(3), lse2[0, 0].round(3))

assert not np.allclose(in_torch, in_flash)
assert np.allclose(repaired, in_flash) and np.allclose(repaired, o)
assert np.allclose(lse2.T * np.log(2), lse[0])
