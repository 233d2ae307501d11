"""Export golden vectors, let another program compute from them (here: ten lines of NumPy), and have it judged."""

import json
import tempfile
from pathlib import Path

import numpy as np

import refattn.testing as rt


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        vectors = rt.export_vectors(Path(folder) / "vectors", ops=["rope"], dtypes=["float32"])
        (vectors / "outputs").mkdir()
        for entry in json.loads((vectors / "manifest.json").read_text())["entries"]:
            with np.load(vectors / entry["file"]) as arrays:
                inputs = {name: arrays[name] for name, x in entry["arrays"].items() if x["role"] == "input"}
            y = turned(**inputs, **entry["options"])
            np.savez(vectors / "outputs" / entry["id"].replace("/", "__"), o=y)
        report = rt.check_vectors(vectors)
        print(report)
        assert report.ok and report.count("PASS") == len(report.results)


def turned(x, positions, theta=10000.0, rotary_dim=None, interleaved=False, frequencies=None):
    """Rotary embedding as another program may write it: pairs are complex numbers."""
    n = x.shape[-1] if rotary_dim is None else rotary_dim
    frequencies = theta ** (-np.arange(0, n, 2) / max(n, 1)) if frequencies is None else frequencies
    angle = positions[..., None] * frequencies
    angle = angle[:, None] if positions.ndim > 1 else angle
    a, b = (slice(0, n, 2), slice(1, n, 2)) if interleaved else (slice(0, n // 2), slice(n // 2, n))
    z = (x[..., a] + 1j * x[..., b].astype(np.float64)) * np.exp(1j * angle)
    y = x.copy()
    y[..., a], y[..., b] = z.real, z.imag
    return y


if __name__ == "__main__":
    main()
