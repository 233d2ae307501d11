"""What attention costs: counted exactly, predicted with intervals, measured."""

from refattn.costs.experts import Experts
from refattn.costs.landmarks import Linformer, Nystrom
from refattn.costs.latent import Latent
from refattn.costs.mechanisms import Mechanism, Softmax
from refattn.costs.pairs import pairs, tile_pairs
from refattn.costs.receptance import Rwkv4, Rwkv6, Rwkv7
from refattn.costs.recurrent import DeltaNet, Gla, Recurrent
from refattn.costs.spaces import S4D, Convolution, Mamba, Mamba2
from refattn.costs.transformer import Transformer

__all__ = [
    "S4D",
    "Convolution",
    "DeltaNet",
    "Experts",
    "Gla",
    "Latent",
    "Linformer",
    "Mamba",
    "Mamba2",
    "Mechanism",
    "Nystrom",
    "Recurrent",
    "Rwkv4",
    "Rwkv6",
    "Rwkv7",
    "Softmax",
    "Transformer",
    "pairs",
    "tile_pairs",
]
