"""What no dialect can make sense of is refused by the name of the argument."""

import numpy as np
import pytest

from refattn.dialects import flash_attn, flash_attn_3, flex_attention, jax, torch_sdpa

Q, K = np.zeros((1, 2, 2, 4)), np.zeros((1, 3, 2, 4))  # tokens before heads


@pytest.mark.parametrize("size", [3, None, (1,), (1, 2, 3), (1.5, 2), "ab"])
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda size: flash_attn.flash_attn_func(Q, K, K, window_size=size), "flash_attn: window_size is .*"),
        (lambda size: flash_attn_3.flash_attn_func(Q, K, K, window_size=size), "flash_attn_3: window_size is .*"),
    ],
)
def test_a_window_has_two_integers(call, name, size):
    with pytest.raises(TypeError, match=name + r"; wanted two integers, \(left, right\)"):
        call(size)


@pytest.mark.parametrize("size", [2.5, (1,), "ab"])
def test_a_window_of_jax_is_a_number_or_two(size):
    with pytest.raises(TypeError, match=r"dot_product_attention: local_window_size is .*; wanted two integers"):
        jax.dot_product_attention(Q, K, K, local_window_size=size)


def test_a_list_is_no_mask():
    with pytest.raises(TypeError, match="scaled_dot_product_attention: attn_mask must be an array, got list"):
        torch_sdpa.scaled_dot_product_attention(Q, K, K, attn_mask=[[True]])


def test_widths_differ():
    with pytest.raises(ValueError, match="flex_attention: query and key have widths 3 and 4; wanted the same"):
        flex_attention.flex_attention(Q[..., :3], Q, Q)
