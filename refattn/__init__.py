"""Attention mechanisms, defined in readable NumPy; the same calls run on fast backends with ``backend=``."""

from refattn import masks
from refattn.dense.attention import attention, attention_vjp
from refattn.dense.flash import flash_attention, flash_attention_vjp
from refattn.dense.tiles import Tile
from refattn.dense.decode import KVCache, attention_split_kv, merge_attention
from refattn.dense.varlen import attention_varlen, attention_varlen_vjp
from refattn.dense.paged import paged_attention
from refattn.dense.cache import PagedKVCache
from refattn.dense.multihead import multi_head_attention, multi_head_attention_vjp
from refattn.dense.rope import rope, rope_vjp
from refattn.dense.mla import mla_attention, mla_attention_expanded, mla_attention_vjp
from refattn.dense.alibi import alibi_bias, alibi_slopes
from refattn.results import AttentionGradients, LatentGradients, MultiHeadGradients
from refattn.dispatch import Explanation, Unsupported, backends, explain, register, unregister, use_backend

__version__ = "0.1.0"

__all__ = [
    "AttentionGradients",
    "Explanation",
    "KVCache",
    "LatentGradients",
    "MultiHeadGradients",
    "PagedKVCache",
    "Tile",
    "Unsupported",
    "alibi_bias",
    "alibi_slopes",
    "attention",
    "attention_split_kv",
    "attention_varlen",
    "attention_varlen_vjp",
    "attention_vjp",
    "backends",
    "explain",
    "flash_attention",
    "flash_attention_vjp",
    "masks",
    "merge_attention",
    "mla_attention",
    "mla_attention_expanded",
    "mla_attention_vjp",
    "multi_head_attention",
    "multi_head_attention_vjp",
    "paged_attention",
    "register",
    "rope",
    "rope_vjp",
    "unregister",
    "use_backend",
]
