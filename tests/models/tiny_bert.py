"""A BERT of two layers with random weights, written as the folder of files that `MiniLM.load` reads."""

import json
from pathlib import Path

import numpy as np

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *("##" + c for c in LETTERS), "hello", "world"]
CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "vocab_size": len(VOCABULARY),
    "layer_norm_eps": 1e-12,
}


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Return random weights under the names and in the layout of a BERT checkpoint."""
    rng = np.random.default_rng(seed)
    d, d_ff = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (CONFIG["vocab_size"], d),
        "embeddings.position_embeddings.weight": (CONFIG["max_position_embeddings"], d),
        "embeddings.token_type_embeddings.weight": (CONFIG["type_vocab_size"], d),
        "embeddings.LayerNorm.weight": (d,),
        "embeddings.LayerNorm.bias": (d,),
    }
    for n in range(CONFIG["num_hidden_layers"]):
        layer = f"encoder.layer.{n}"
        for name, out, into in (
            ("attention.self.query", d, d),
            ("attention.self.key", d, d),
            ("attention.self.value", d, d),
            ("attention.output.dense", d, d),
            ("intermediate.dense", d_ff, d),
            ("output.dense", d, d_ff),
        ):
            shapes |= {f"{layer}.{name}.weight": (out, into), f"{layer}.{name}.bias": (out,)}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{layer}.{name}.weight": (d,), f"{layer}.{name}.bias": (d,)}
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder: Path, *, weights: dict[str, np.ndarray] | None = None, config: dict | None = None) -> Path:
    """Write the model's files into `folder` and return it."""
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16}))
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    save_file(tensors() if weights is None else weights, folder / "model.safetensors")
    return folder
