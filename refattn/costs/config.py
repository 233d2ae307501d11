"""Read a Hugging Face config.json as a `Transformer`.

Which fields make which sizes is in `config_families`, and in `config_hybrids` where layers keep a state.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from refattn.costs import config_families as families
from refattn.costs import config_hybrids as hybrids
from refattn.costs.config_fields import Fields
from refattn.costs.names import unknown
from refattn.costs.transformer import Transformer
from refattn.models.files import find, read_json

FAMILIES: dict[str, Callable[[Fields], families.Sizes]] = {
    "bert": families.bert,
    "roberta": families.bert,
    "xlm-roberta": families.bert,
    "distilbert": families.distilbert,
    "gpt2": families.gpt2,
    "gpt_neox": families.gpt_neox,
    "opt": families.opt,
    "llama": families.llama,
    "mistral": families.mistral,
    "mixtral": families.mixtral,
    "gemma": families.gemma,
    "gemma2": families.gemma2,
    "gemma3_text": families.gemma3,
    "qwen2": families.qwen2,
    "qwen3": families.qwen3,
    "qwen3_moe": families.qwen3_moe,
    "qwen3_next": hybrids.qwen3_next,
    "phi3": families.phi3,
    "deepseek_v2": families.deepseek,
    "deepseek_v3": families.deepseek,
    "kimi_linear": hybrids.kimi_linear,
    "mamba": hybrids.mamba,
    "mamba2": hybrids.mamba2,
    "rwkv": hybrids.rwkv,
    "jamba": hybrids.jamba,
}
"""model_type -> what reads it."""


def from_config(source: "str | Path | dict[str, Any]") -> Transformer:
    """Return the sizes that a config.json gives.

    Parameters
    ----------
    source : str, Path or dict
        The file, a folder that has it, or its contents. Of a model that sees as well, the part that reads text.

    Returns
    -------
    Transformer
        With the parameters of the model as transformers builds it: language models with their head, BERT with its
        pooler and without one.

    Raises
    ------
    FileNotFoundError
        Where there is no such file.
    LookupError
        For a model_type that is not known here; the nearest names are offered.
    TypeError
        For a source that is none of these.
    ValueError
        For a file that is no JSON object, and fields that are missing, no sizes, or do not fit each other.

    Examples
    --------
    >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
    >>> print(from_config({"model_type": "llama", "vocab_size": 10, "num_key_value_heads": 1} | sizes))
    llama: 1 layers of width 8, 760 parameters, softmax
    >>> from_config({"model_type": "llama", "vocab_size": 10, "num_key_value_heads": 3} | sizes)
    Traceback (most recent call last):
    ...
    ValueError: config: num_attention_heads is 2 and num_key_value_heads 3; wanted a multiple
    """
    where, values = _contents(source)
    inside = values.get("text_config")
    if isinstance(inside, dict) and str(values.get("model_type")) not in FAMILIES:
        where, values = f"{where}: text_config", inside
    kind = values.get("model_type")
    if not isinstance(kind, str):
        raise ValueError(f"{where}: model_type is {kind!r:.60}; wanted one of {', '.join(FAMILIES)}")
    if kind not in FAMILIES:
        raise LookupError(f"{where}: {unknown('model_type', kind, FAMILIES)}")
    try:
        sizes = FAMILIES[kind](Fields(where, values))
        return Transformer(name=kind, **sizes)
    except ValueError as error:
        raise _named(error, where) from None


def _contents(source: "str | Path | dict[str, Any]") -> tuple[str, dict[str, Any]]:
    if isinstance(source, dict):
        return "config", source
    if not isinstance(source, str | Path):
        raise TypeError(f"from_config: source is {type(source).__name__}; wanted a path or a dict")
    path = Path(source)
    if path.is_dir():
        path = find(path, "config.json")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; wanted a config.json or a folder that has one")
    try:
        return str(path), read_json(path)
    except ValueError as error:
        raise _named(error, str(path)) from None


def _named(error: ValueError, where: str) -> ValueError:
    """Return the error with the name of the file, which it may have already."""
    return error if str(error).startswith(where) else ValueError(f"{where}: {error}")
