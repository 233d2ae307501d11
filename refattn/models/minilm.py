"""MiniLM sentence embeddings: a BERT encoder built from `multi_head_attention`, so it runs on every backend.

Wang et al., "MiniLM", 2020, arXiv:2002.10957; the encoder is Devlin et al., 2018, arXiv:1810.04805; the mean over the
tokens is Reimers and Gurevych, "Sentence-BERT", 2019, arXiv:1908.10084, section 3.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from refattn import masks
from refattn.arrays import Array, check_count
from refattn.dense.multihead import multi_head_attention
from refattn.dispatch import use_backend
from refattn.models.files import Tensors, count, find, read_json, read_optional_json
from refattn.models.wordpiece import PAD, WordPiece

SIZES = ("vocab_size", "max_position_embeddings", "type_vocab_size", "hidden_size")


class Layer(NamedTuple):
    """The weights of one encoder layer; d is the width, d_ff that of the feed-forward part."""

    attention: dict[str, Any]
    """w_q, w_k, w_v, w_o (d, d) and b_q, b_k, b_v, b_o (d,)."""
    norm_1: tuple[Array, Array]
    w_up: Array  # (d, d_ff)
    b_up: Array
    w_down: Array  # (d_ff, d)
    b_down: Array
    norm_2: tuple[Array, Array]


@dataclass(frozen=True)
class MiniLM:
    """A BERT encoder that turns texts into vectors of length 1. Make one with `MiniLM.load`."""

    tokenizer: WordPiece
    words: Array  # (vocab_size, d)
    positions: Array  # (max_position_embeddings, d)
    segment: Array  # (d,)
    norm: tuple[Array, Array]
    layers: list[Layer]
    heads: int
    eps: float
    max_tokens: int

    @classmethod
    def load(cls, folder: "str | Path") -> "MiniLM":
        """Read a model's folder, such as that of all-MiniLM-L6-v2.

        Parameters
        ----------
        folder : str or Path
            With config.json, model.safetensors and vocab.txt (or tokenizer.json). From sentence_bert_config.json, if
            there, comes the most tokens of a text that are read.

        Returns
        -------
        MiniLM

        Raises
        ------
        FileNotFoundError, ValueError
            Naming the file that is missing, corrupt, cut short, or does not describe such a model.
        ImportError
            Without the package safetensors.
        """
        path = find(folder, "config.json")
        config = read_json(path)
        _check_config(path, config)
        _check_pooling(Path(folder))
        vocabulary, positions, segments, d = (count(path, config, key) for key in SIZES)
        tokenizer = WordPiece.load(folder)
        tensors = Tensors(find(folder, "model.safetensors"))
        return cls(
            tokenizer=tokenizer,
            words=tensors.take("embeddings.word_embeddings.weight", vocabulary, d),
            positions=tensors.take("embeddings.position_embeddings.weight", positions, d),
            segment=tensors.take("embeddings.token_type_embeddings.weight", segments, d)[0],
            norm=_norm(tensors, "embeddings", d),
            layers=[
                _layer(tensors, f"encoder.layer.{n}", d, count(path, config, "intermediate_size"))
                for n in range(count(path, config, "num_hidden_layers"))
            ],
            heads=count(path, config, "num_attention_heads"),
            eps=config["layer_norm_eps"],
            max_tokens=min(positions, _max_seq_length(Path(folder), positions)),
        )

    def embed(self, texts: Sequence[str], *, batch_size: int = 32, backend: str | None = None) -> Array:
        """Return one vector of length 1 for each text: the mean of its tokens after the last layer, normalised.

        A text does not feel the others of its batch, beyond rounding. The tokens beyond `max_tokens` are not read.

        Parameters
        ----------
        texts : sequence of str
        batch_size : int
            How many texts to compute at a time, those of similar length together.
        backend : str, optional
            Who computes; see `refattn.backends`. By default that of `refattn.use_backend`, else "numpy".

        Returns
        -------
        float32 array, (len(texts), d)

        Raises
        ------
        TypeError
            Unless `texts` is a sequence of str.
        LookupError, ImportError, Unsupported
            For a backend that is not there or does not cover `multi_head_attention`.
        """
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise TypeError(f"embed: texts is {type(texts).__name__}; wanted a list of str")
        check_count("embed", "batch_size", batch_size)
        with nullcontext() if backend is None else use_backend(backend):
            ids = [self.tokenizer.encode(text, self.max_tokens) for text in texts]
            order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
            vectors = np.zeros((len(ids), self.words.shape[1]), np.float32)
            for start in range(0, len(ids), batch_size):
                chosen = order[start : start + batch_size]
                padded, lengths = self._pad([ids[n] for n in chosen])
                vectors[chosen] = mean_pool(self.encode(padded, lengths), lengths)
        return vectors

    def encode(self, ids: NDArray[np.int64], lengths: NDArray[np.int64], *, backend: str | None = None) -> Array:
        """Return the tokens after the last layer.

        Parameters
        ----------
        ids : int array, (B, T)
            Token ids; T is at most `max_position_embeddings`.
        lengths : int array, (B,)
            How many ids of each text count; those beyond influence nothing before them.
        backend : str, optional
            As for `embed`.

        Returns
        -------
        float32 array, (B, T, d)

        Raises
        ------
        ValueError
            For ids outside the vocabulary, or more of them than there are positions.
        """
        if ids.shape[1] > len(self.positions):
            raise ValueError(f"encode: ids has shape {ids.shape}; wanted at most {len(self.positions)} a text")
        if ids.size and not 0 <= ids.min() <= ids.max() < len(self.words):
            raise ValueError(f"encode: ids holds {ids.min()} to {ids.max()}; wanted 0 to {len(self.words) - 1}")
        mask = masks.padding(lengths)
        with nullcontext() if backend is None else use_backend(backend):
            x = self.words[ids] + self.positions[: ids.shape[1]] + self.segment  # (B, T, d)
            x = layer_norm(x, *self.norm, self.eps)
            for layer in self.layers:
                o = multi_head_attention(x, **layer.attention, heads=self.heads, mask=mask)
                x = layer_norm(x + o, *layer.norm_1, self.eps)
                o = gelu(x @ layer.w_up + layer.b_up) @ layer.w_down + layer.b_down
                x = layer_norm(x + o, *layer.norm_2, self.eps)
        return x

    def _pad(self, ids: list[list[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        lengths = np.array([len(row) for row in ids])
        padded = np.full((len(ids), lengths.max()), self.tokenizer.vocabulary[PAD])
        for row, given in zip(padded, ids, strict=True):
            row[: len(given)] = given
        return padded, lengths


def layer_norm(x: Array, gain: Array, shift: Array, eps: float) -> Array:
    """Return γ (x - μ) / √(σ² + ε) + β over the last axis (Ba et al., 2016, arXiv:1607.06450, eq. 4).

    Examples
    --------
    >>> layer_norm(np.array([1.0, 3.0]), np.ones(2), np.zeros(2), 0.0)
    array([-1.,  1.])
    """
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    y: Array = gain * centred / np.sqrt(variance + x.dtype.type(eps)) + shift
    return y


def gelu(x: Array) -> Array:
    """Return x Φ(x), Φ the normal distribution's (Hendrycks and Gimpel, 2016, arXiv:1606.08415).

    Examples
    --------
    >>> gelu(np.array([0.0, 100.0]))
    array([  0., 100.])
    """
    y: Array = x * ndtr(x)
    return y


def mean_pool(x: Array, lengths: NDArray[np.int64]) -> Array:
    """Return, for each text, the mean of its first `lengths` tokens, divided by its length as a vector.

    Examples
    --------
    >>> mean_pool(np.array([[[3.0, 0.0], [3.0, 8.0], [np.nan, np.nan]]]), np.array([2]))
    array([[0.6, 0.8]])
    """
    inside = np.arange(x.shape[-2]) < lengths[:, None]  # (B, T)
    mean = np.where(inside[..., None], x, 0).sum(axis=-2) / lengths[:, None].astype(x.dtype)
    y: Array = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
    return y


def _check_config(path: Path, config: dict[str, Any]) -> None:
    wanted = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise ValueError(f"{path}: {key} is {config[key]!r}; wanted {value!r}")
    d, heads = count(path, config, "hidden_size"), count(path, config, "num_attention_heads")
    if d % heads:
        raise ValueError(f"{path}: hidden_size {d} is not a multiple of num_attention_heads {heads}")
    eps = config.get("layer_norm_eps")
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise ValueError(f"{path}: layer_norm_eps is {eps!r}; wanted a small number above 0")


def _check_pooling(folder: Path) -> None:
    path = folder / "1_Pooling" / "config.json"
    for mode, value in read_optional_json(folder, "1_Pooling/config.json").items():
        if mode.startswith("pooling_mode_") and value is not (mode == "pooling_mode_mean_tokens"):
            raise ValueError(f"{path}: {mode} is {value!r}; this model takes the mean of the tokens only")


def _max_seq_length(folder: Path, default: int) -> int:
    settings = read_optional_json(folder, "sentence_bert_config.json")
    if settings.get("max_seq_length") is None:
        return default
    return max(2, count(folder / "sentence_bert_config.json", settings, "max_seq_length"))


def _layer(tensors: Tensors, name: str, d: int, d_ff: int) -> Layer:
    attention: dict[str, Any] = {}
    for letter, part in zip("qkvo", ("self.query", "self.key", "self.value", "output.dense"), strict=True):
        attention[f"w_{letter}"], attention[f"b_{letter}"] = _linear(tensors, f"{name}.attention.{part}", d, d)
    w_up, b_up = _linear(tensors, f"{name}.intermediate.dense", d, d_ff)
    w_down, b_down = _linear(tensors, f"{name}.output.dense", d_ff, d)
    return Layer(
        attention=attention,
        norm_1=_norm(tensors, f"{name}.attention.output", d),
        w_up=w_up,
        b_up=b_up,
        w_down=w_down,
        b_down=b_down,
        norm_2=_norm(tensors, f"{name}.output", d),
    )


def _linear(tensors: Tensors, name: str, d_in: int, d_out: int) -> tuple[Array, Array]:
    return tensors.take(f"{name}.weight", d_out, d_in).T, tensors.take(f"{name}.bias", d_out)  # the file keeps w.T


def _norm(tensors: Tensors, name: str, d: int) -> tuple[Array, Array]:
    return tensors.take(f"{name}.LayerNorm.weight", d), tensors.take(f"{name}.LayerNorm.bias", d)
