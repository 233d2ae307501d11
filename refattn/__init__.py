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
from refattn.dense.rope_scaling import (
    RopeFrequencies,
    dynamic_ntk_frequencies,
    linear_frequencies,
    llama3_frequencies,
    ntk_frequencies,
    yarn_frequencies,
)
from refattn.dense.mla import mla_attention, mla_attention_expanded, mla_attention_vjp
from refattn.dense.alibi import alibi_bias, alibi_slopes
from refattn.dense.t5_bias import t5_bias, t5_bias_vjp, t5_buckets
from refattn.dense.dropout import dropout_mask
from refattn.sparse.sparse import sparse_attention, sparse_attention_vjp
from refattn.sparse.local import local_attention, local_attention_vjp
from refattn.sparse.dilated import dilated_attention, dilated_attention_vjp
from refattn.sparse.strided import strided_attention, strided_attention_vjp
from refattn.sparse.fixed import fixed_attention, fixed_attention_vjp
from refattn.sparse.random_ import random_attention, random_attention_vjp
from refattn.sparse.global_ import global_attention, global_attention_vjp
from refattn.sparse.bigbird import bigbird_attention, bigbird_attention_vjp
from refattn.sparse.longformer import longformer_attention, longformer_attention_vjp
from refattn.sparse.block_sparse import block_sparse_attention, block_sparse_attention_vjp
from refattn.sparse.select import selected_keys
from refattn.sparse.topk import topk_attention
from refattn.sparse.moba import moba_attention
from refattn.sparse.nsa import nsa_attention
from refattn.sparse.lsh import draw_rotations, lsh_attention
from refattn.linear.delta_rule import delta_rule, delta_rule_chunked, delta_rule_recurrent, delta_rule_vjp
from refattn.linear.gated_delta_rule import (
    gated_delta_rule,
    gated_delta_rule_chunked,
    gated_delta_rule_recurrent,
    gated_delta_rule_vjp,
)
from refattn.linear.kda import kda, kda_chunked, kda_recurrent, kda_vjp
from refattn.linear.simple_gla import simple_gla, simple_gla_chunked, simple_gla_recurrent, simple_gla_vjp
from refattn.linear.gated_linear_attention import (
    gated_linear_attention,
    gated_linear_attention_chunked,
    gated_linear_attention_recurrent,
    gated_linear_attention_vjp,
)
from refattn.linear.retention import (
    retention,
    retention_chunked,
    retention_log_decay,
    retention_recurrent,
    retention_vjp,
)
from refattn.linear.lightning import (
    lightning_attention,
    lightning_attention_chunked,
    lightning_attention_recurrent,
    lightning_attention_vjp,
    lightning_log_decay,
)
from refattn.linear.hgrn2 import hgrn2, hgrn2_chunked, hgrn2_recurrent, hgrn2_vjp
from refattn.linear.features import FeatureMap, elu_plus_one, identity, relu
from refattn.linear.linear_attention import (
    linear_attention,
    linear_attention_chunked,
    linear_attention_recurrent,
    linear_attention_vjp,
)
from refattn.linear.performer import performer_attention, performer_attention_recurrent, performer_attention_vjp
from refattn.linear.random_features import draw_projection
from refattn.linear.cosformer import cosformer_attention, cosformer_attention_recurrent, cosformer_attention_vjp
from refattn.linear.linformer import linformer_attention, linformer_attention_vjp
from refattn.linear.nystrom import nystrom_attention, nystrom_attention_vjp
from refattn.ssm.s4d import s4d, s4d_recurrent, s4d_vjp
from refattn.ssm.selective_scan import selective_scan, selective_scan_chunked, selective_scan_recurrent
from refattn.ssm.selective_scan_vjp import selective_scan_vjp
from refattn.ssm.ssd import ssd, ssd_chunked, ssd_recurrent
from refattn.ssm.ssd_vjp import ssd_vjp
from refattn.ssm.causal_conv1d import causal_conv1d, causal_conv1d_vjp
from refattn.rwkv.rwkv4 import rwkv4, rwkv4_recurrent, rwkv4_vjp
from refattn.rwkv.rwkv5 import rwkv5, rwkv5_chunked, rwkv5_recurrent, rwkv5_vjp
from refattn.rwkv.rwkv6 import rwkv6, rwkv6_chunked, rwkv6_recurrent, rwkv6_vjp
from refattn.rwkv.rwkv7 import rwkv7, rwkv7_chunked, rwkv7_recurrent, rwkv7_vjp
from refattn.results import (
    AttentionGradients,
    ConvGradients,
    Hgrn2Gradients,
    LatentGradients,
    LinearState,
    LinformerGradients,
    LongformerGradients,
    LshAttention,
    MultiHeadGradients,
    NsaAttention,
    NystromGradients,
    PerformerGradients,
    PerformerState,
    Recurrent,
    RecurrentGradients,
    Rwkv4Gradients,
    Rwkv4State,
    Rwkv7Gradients,
    RwkvGradients,
    S4dGradients,
    SelectedAttention,
    SelectiveScanGradients,
    SsdGradients,
)
from refattn.dispatch import Explanation, Unsupported, backends, explain, register, unregister, use_backend

__version__ = "0.1.0"

__all__ = [
    "AttentionGradients",
    "ConvGradients",
    "Explanation",
    "FeatureMap",
    "Hgrn2Gradients",
    "KVCache",
    "LatentGradients",
    "LinearState",
    "LinformerGradients",
    "LongformerGradients",
    "LshAttention",
    "MultiHeadGradients",
    "NsaAttention",
    "NystromGradients",
    "PagedKVCache",
    "PerformerGradients",
    "PerformerState",
    "Recurrent",
    "RecurrentGradients",
    "RopeFrequencies",
    "Rwkv4Gradients",
    "Rwkv4State",
    "Rwkv7Gradients",
    "RwkvGradients",
    "S4dGradients",
    "SelectedAttention",
    "SelectiveScanGradients",
    "SsdGradients",
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
    "draw_projection",
    "draw_rotations",
    "dropout_mask",
    "dynamic_ntk_frequencies",
    "elu_plus_one",
    "explain",
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
    "global_attention",
    "global_attention_vjp",
    "hgrn2",
    "hgrn2_chunked",
    "hgrn2_recurrent",
    "hgrn2_vjp",
    "identity",
    "kda",
    "kda_chunked",
    "kda_recurrent",
    "kda_vjp",
    "lightning_attention",
    "lightning_attention_chunked",
    "lightning_attention_recurrent",
    "lightning_attention_vjp",
    "lightning_log_decay",
    "linear_attention",
    "linear_attention_chunked",
    "linear_attention_recurrent",
    "linear_attention_vjp",
    "linear_frequencies",
    "linformer_attention",
    "linformer_attention_vjp",
    "llama3_frequencies",
    "local_attention",
    "local_attention_vjp",
    "longformer_attention",
    "longformer_attention_vjp",
    "lsh_attention",
    "masks",
    "merge_attention",
    "mla_attention",
    "mla_attention_expanded",
    "mla_attention_vjp",
    "moba_attention",
    "multi_head_attention",
    "multi_head_attention_vjp",
    "nsa_attention",
    "ntk_frequencies",
    "nystrom_attention",
    "nystrom_attention_vjp",
    "paged_attention",
    "performer_attention",
    "performer_attention_recurrent",
    "performer_attention_vjp",
    "random_attention",
    "random_attention_vjp",
    "register",
    "relu",
    "retention",
    "retention_chunked",
    "retention_log_decay",
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
    "selected_keys",
    "selective_scan",
    "selective_scan_chunked",
    "selective_scan_recurrent",
    "selective_scan_vjp",
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
    "t5_bias",
    "t5_bias_vjp",
    "t5_buckets",
    "topk_attention",
    "unregister",
    "use_backend",
    "yarn_frequencies",
]
