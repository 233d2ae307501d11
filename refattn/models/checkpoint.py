"""What a `GPT` is on disk: its sizes, its parameters as float16, and a note on how it was trained, in one npz."""

import dataclasses
import json
import os
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refattn import masks
from refattn.arrays import FLOATS, Array, check_count, check_number, check_shape
from refattn.masks import Mask
from refattn.models.mixers import MIXERS

SIZES = ("layers", "width", "heads", "kv_heads", "head_dim", "hidden", "context")


@dataclass(frozen=True)
class Config:
    """The sizes of a `GPT`.

    Examples
    --------
    >>> Config("abc", layers=1, width=8).shapes()["embedding"]
    (3, 8)
    """

    vocabulary: str
    """One character per token."""
    layers: int = 4
    width: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    hidden: int = 320
    """Between the matrices of the feed-forward network."""
    context: int = 256
    """The most tokens that one token sees in a layer, itself included."""
    theta: float = 10000.0
    tied: bool = True
    """The head is the embedding, transposed."""
    mixer: str = "attention"
    """What mixes tokens: attention, or one of `refattn.models.mixers.MIXERS`."""

    def __post_init__(self) -> None:
        for name in SIZES:
            check_count("Config", name, getattr(self, name))
        check_number("Config", "theta", self.theta, above=0)
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise ValueError(
                f"Config: heads is {self.heads}, kv_heads {self.kv_heads}, head_dim {self.head_dim}; "
                "wanted key heads that divide the heads, and an even head_dim"
            )
        if self.mixer != "attention" and self.mixer not in MIXERS:
            raise ValueError(f"Config: mixer is {self.mixer!r}; wanted one of attention, {', '.join(MIXERS)}")
        if not isinstance(self.vocabulary, str) or not 0 < len(self.vocabulary) == len(set(self.vocabulary)):
            raise ValueError("Config: vocabulary must be a string of different characters, one at least")

    @property
    def mask(self) -> Mask:
        """Each token sees itself and the context - 1 tokens before it."""
        return masks.causal() & masks.window(self.context - 1, 0)

    def draw_mixer(self, seed: int) -> dict[str, Array]:
        """Return first parameters of the mixer of one layer."""
        return MIXERS[self.mixer].draw(np.random.default_rng(seed), self)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of every parameter."""
        V, E, F, D = len(self.vocabulary), self.width, self.hidden, self.head_dim
        attention = {
            "w_q": (E, self.heads * D),
            "w_k": (E, self.kv_heads * D),
            "w_v": (E, self.kv_heads * D),
            "w_o": (self.heads * D, E),
        }
        layer = {
            "norm_1": (E,),
            **(attention if self.mixer == "attention" else {name: x.shape for name, x in self.draw_mixer(0).items()}),
            "norm_2": (E,),
            "w_gate": (E, F),
            "w_up": (E, F),
            "w_down": (F, E),
        }
        shapes = {f"layers.{n}.{name}": shape for n in range(self.layers) for name, shape in layer.items()}
        return {"embedding": (V, E), **shapes, "norm": (E,)} | ({} if self.tied else {"head": (E, V)})


def check_parameters(config: Config, parameters: dict[str, Array]) -> None:
    """Raise ValueError unless the parameters are exactly those of `config`, finite, of one dtype."""
    shapes = config.shapes()
    missing, strange = sorted(shapes.keys() - parameters.keys()), sorted(parameters.keys() - shapes.keys())
    if missing or strange:
        raise ValueError(f"GPT: parameters are missing ({missing}) or unknown ({strange})")
    for name, x in parameters.items():
        check_shape("GPT", name, x, shapes[name], "what the config says")
        if str(x.dtype) not in FLOATS or x.dtype != parameters["embedding"].dtype:
            raise ValueError(f"GPT: {name} has dtype {x.dtype}; wanted one float dtype for all")
        if not np.isfinite(x).all():
            raise ValueError(f"GPT: {name} holds NaN or infinity")


def write(path: str | Path, config: Config, parameters: dict[str, Array], record: dict[str, Any]) -> None:
    """Write a checkpoint beside `path` and then move it there, so that no reader ever meets half a file.

    Raises
    ------
    ValueError
        If a parameter is too large for float16, or NaN.
    """
    path = Path(path)
    header = {"config": json.dumps(dataclasses.asdict(config)), "record": json.dumps(record)}
    arrays: dict[str, Any] = {name: np.array(text) for name, text in header.items()}
    for name, x in parameters.items():
        if not np.abs(x).max() <= np.finfo(np.float16).max:
            raise ValueError(f"GPT.save: {name} has entries that float16 cannot hold")
        arrays[name] = x.astype(np.float16)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez_compressed(file, **arrays)
        os.chmod(temporary, 0o644)  # mkstemp's files are for their owner alone
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def read(path: str | Path) -> tuple[Config, dict[str, Array], dict[str, Any]]:
    """Read what `write` wrote, the parameters as float32.

    Raises
    ------
    OSError
        If there is no such file.
    ValueError
        If it is no checkpoint, or a damaged one.
    """
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):
                raise ValueError("it is not an npz, or its end is missing")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        config = Config(**json.loads(str(arrays.pop("config"))))
        record = dict(json.loads(str(arrays.pop("record"))))
        for name, x in arrays.items():
            if x.dtype != np.float16:
                raise ValueError(f"{name} has dtype {x.dtype}; wanted float16")
    except (ValueError, TypeError, KeyError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"GPT.load: {path} is no checkpoint of a GPT, or a damaged one: {error}") from error
    return config, {name: x.astype(np.float32) for name, x in arrays.items()}, record
