"""The operations of refattn on the CPU: tiled, vectorised and threaded kernels compiled by Numba.

Read `flash` first (what is launched and why it is shaped so), then `forward`, `backward`, and `simd` for the few loops
that are written as LLVM IR.
"""

from refattn_numba.attention import attention, attention_vjp
from refattn_numba.bigbird import bigbird_attention, bigbird_attention_vjp
from refattn_numba.block_sparse import block_sparse_attention, block_sparse_attention_vjp
from refattn_numba.causal_conv1d import causal_conv1d, causal_conv1d_vjp
from refattn_numba.selective_scan import (
    selective_scan,
    selective_scan_chunked,
    selective_scan_recurrent,
    selective_scan_vjp,
)
from refattn_numba.s4d import s4d, s4d_recurrent, s4d_vjp
from refattn_numba.rwkv4 import rwkv4, rwkv4_recurrent, rwkv4_vjp
from refattn_numba.linear_attention_back import linear_attention_vjp
from refattn_numba.linformer import linformer_attention, linformer_attention_vjp
from refattn_numba.nystrom import nystrom_attention, nystrom_attention_vjp
from refattn_numba.cosformer import cosformer_attention, cosformer_attention_recurrent, cosformer_attention_vjp
from refattn_numba.performer import performer_attention, performer_attention_recurrent, performer_attention_vjp
from refattn_numba.decode import attention_split_kv, merge_attention
from refattn_numba.delta_back import delta_rule_vjp, gated_delta_rule_vjp, kda_vjp
from refattn_numba.delta_rule import delta_rule, delta_rule_chunked, delta_rule_recurrent
from refattn_numba.dilated import dilated_attention, dilated_attention_vjp
from refattn_numba.fixed import fixed_attention, fixed_attention_vjp
from refattn_numba.flash import flash_attention, flash_attention_vjp, peak_attention_bytes
from refattn_numba.gated_back import (
    gated_linear_attention_vjp,
    hgrn2_vjp,
    lightning_attention_vjp,
    retention_vjp,
    simple_gla_vjp,
)
from refattn_numba.gated_delta_rule import gated_delta_rule, gated_delta_rule_chunked, gated_delta_rule_recurrent
from refattn_numba.gated_linear_attention import (
    gated_linear_attention,
    gated_linear_attention_chunked,
    gated_linear_attention_recurrent,
)
from refattn_numba.global_ import global_attention, global_attention_vjp
from refattn_numba.hgrn2 import hgrn2, hgrn2_chunked, hgrn2_recurrent
from refattn_numba.kda import kda, kda_chunked, kda_recurrent
from refattn_numba.lightning import lightning_attention, lightning_attention_chunked, lightning_attention_recurrent
from refattn_numba.linear_attention import linear_attention, linear_attention_chunked, linear_attention_recurrent
from refattn_numba.local import local_attention, local_attention_vjp
from refattn_numba.longformer import longformer_attention, longformer_attention_vjp
from refattn_numba.mla import mla_attention, mla_attention_expanded, mla_attention_vjp
from refattn_numba.multihead import multi_head_attention, multi_head_attention_vjp
from refattn_numba.paged import paged_attention
from refattn_numba.random_ import random_attention, random_attention_vjp
from refattn_numba.retention import retention, retention_chunked, retention_recurrent
from refattn_numba.rope import rope, rope_vjp
from refattn_numba.rwkv5 import rwkv5, rwkv5_chunked, rwkv5_recurrent
from refattn_numba.rwkv6 import rwkv6, rwkv6_chunked, rwkv6_recurrent
from refattn_numba.rwkv7 import rwkv7, rwkv7_chunked, rwkv7_recurrent
from refattn_numba.rwkv_back import rwkv5_vjp, rwkv6_vjp, rwkv7_vjp
from refattn_numba.selected import lsh_attention, moba_attention, nsa_attention, topk_attention
from refattn_numba.simple_gla import simple_gla, simple_gla_chunked, simple_gla_recurrent
from refattn_numba.sparse import sparse_attention, sparse_attention_vjp
from refattn_numba.ssd import ssd, ssd_chunked, ssd_recurrent
from refattn_numba.ssd_back import ssd_vjp
from refattn_numba.strided import strided_attention, strided_attention_vjp
from refattn_numba.threads import get_num_threads, set_num_threads
from refattn_numba.varlen import attention_varlen, attention_varlen_vjp

RANK = 10

TILES = dict.fromkeys(("attention", "flash_attention", "attention_split_kv"), (64, 128))
"""Queries and keys of the tiles that are computed whole or not at all."""

CONTRACT = {"p": "float32"}
"""What the kernels claim before `refattn.testing`: 16-bit inputs are computed in float32, weights included."""

LIMITS = {
    "flash_attention(on_tile)": "a compiled kernel does not stop to report its tiles; the reference does",
}

__all__ = [
    "CONTRACT",
    "LIMITS",
    "RANK",
    "TILES",
    "attention",
    "attention_split_kv",
    "attention_varlen",
    "attention_varlen_vjp",
    "attention_vjp",
    "bigbird_attention",
    "bigbird_attention_vjp",
    "block_sparse_attention",
    "block_sparse_attention_vjp",
    "causal_conv1d",
    "causal_conv1d_vjp",
    "cosformer_attention",
    "cosformer_attention_recurrent",
    "cosformer_attention_vjp",
    "delta_rule",
    "delta_rule_chunked",
    "delta_rule_recurrent",
    "delta_rule_vjp",
    "dilated_attention",
    "dilated_attention_vjp",
    "fixed_attention",
    "fixed_attention_vjp",
    "flash_attention",
    "flash_attention_vjp",
    "gated_delta_rule",
    "gated_delta_rule_chunked",
    "gated_delta_rule_recurrent",
    "gated_delta_rule_vjp",
    "gated_linear_attention",
    "gated_linear_attention_chunked",
    "gated_linear_attention_recurrent",
    "gated_linear_attention_vjp",
    "get_num_threads",
    "global_attention",
    "global_attention_vjp",
    "hgrn2",
    "hgrn2_chunked",
    "hgrn2_recurrent",
    "hgrn2_vjp",
    "kda",
    "kda_chunked",
    "kda_recurrent",
    "kda_vjp",
    "lightning_attention",
    "lightning_attention_chunked",
    "lightning_attention_recurrent",
    "lightning_attention_vjp",
    "linear_attention",
    "linear_attention_chunked",
    "linear_attention_recurrent",
    "linear_attention_vjp",
    "linformer_attention",
    "linformer_attention_vjp",
    "local_attention",
    "local_attention_vjp",
    "longformer_attention",
    "longformer_attention_vjp",
    "lsh_attention",
    "merge_attention",
    "mla_attention",
    "mla_attention_expanded",
    "mla_attention_vjp",
    "moba_attention",
    "multi_head_attention",
    "multi_head_attention_vjp",
    "nsa_attention",
    "nystrom_attention",
    "nystrom_attention_vjp",
    "paged_attention",
    "peak_attention_bytes",
    "performer_attention",
    "performer_attention_recurrent",
    "performer_attention_vjp",
    "random_attention",
    "random_attention_vjp",
    "retention",
    "retention_chunked",
    "retention_recurrent",
    "retention_vjp",
    "rope",
    "rope_vjp",
    "rwkv4",
    "rwkv4_recurrent",
    "rwkv4_vjp",
    "rwkv5",
    "rwkv5_chunked",
    "rwkv5_recurrent",
    "rwkv5_vjp",
    "rwkv6",
    "rwkv6_chunked",
    "rwkv6_recurrent",
    "rwkv6_vjp",
    "rwkv7",
    "rwkv7_chunked",
    "rwkv7_recurrent",
    "rwkv7_vjp",
    "s4d",
    "s4d_recurrent",
    "s4d_vjp",
    "selective_scan",
    "selective_scan_chunked",
    "selective_scan_recurrent",
    "selective_scan_vjp",
    "set_num_threads",
    "simple_gla",
    "simple_gla_chunked",
    "simple_gla_recurrent",
    "simple_gla_vjp",
    "sparse_attention",
    "sparse_attention_vjp",
    "ssd",
    "ssd_chunked",
    "ssd_recurrent",
    "ssd_vjp",
    "strided_attention",
    "strided_attention_vjp",
    "topk_attention",
]
