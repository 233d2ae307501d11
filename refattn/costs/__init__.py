"""What attention costs: counted exactly, predicted with intervals, measured.

Read `mechanisms` and `transformer` first, then `flops`, `memory` and `traffic`, which count; `steps`, `calibration` and
`prediction`, which tell times; `advice` and `serving`, which draw conclusions.
"""

from refattn.costs.advice import Advice, Option, advise
from refattn.costs.calibration import Calibration, CalibrationWarning
from refattn.costs.config import from_config
from refattn.costs.experts import Experts
from refattn.costs.hardware import HARDWARE, Hardware, hardware
from refattn.costs.landmarks import Linformer, Nystrom
from refattn.costs.latent import Latent
from refattn.costs.lengths import Lengths
from refattn.costs.measuring import calibrate
from refattn.costs.mechanisms import GatedSoftmax, Mechanism, Softmax
from refattn.costs.pairs import pairs, tile_pairs
from refattn.costs.prediction import Prediction, predict
from refattn.costs.presets import PRESETS, Preset, preset
from refattn.costs.promises import Slo
from refattn.costs.receptance import Rwkv4, Rwkv6, Rwkv7
from refattn.costs.recurrent import DeltaNet, Gla, Recurrent
from refattn.costs.serving import Plan, serve_plan
from refattn.costs.spaces import S4D, Convolution, Mamba, Mamba2
from refattn.costs.transformer import Transformer

__all__ = [
    "HARDWARE",
    "PRESETS",
    "S4D",
    "Advice",
    "Calibration",
    "CalibrationWarning",
    "Convolution",
    "DeltaNet",
    "Experts",
    "GatedSoftmax",
    "Gla",
    "Hardware",
    "Latent",
    "Lengths",
    "Linformer",
    "Mamba",
    "Mamba2",
    "Mechanism",
    "Nystrom",
    "Option",
    "Plan",
    "Prediction",
    "Preset",
    "Recurrent",
    "Rwkv4",
    "Rwkv6",
    "Rwkv7",
    "Slo",
    "Softmax",
    "Transformer",
    "advise",
    "calibrate",
    "from_config",
    "hardware",
    "pairs",
    "predict",
    "preset",
    "serve_plan",
    "tile_pairs",
]
