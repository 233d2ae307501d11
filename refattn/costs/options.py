"""What could be done about attention's cost: each option is a model, and who computes it, in one of three classes."""

from dataclasses import dataclass, replace

from refattn.costs.calibration import Calibration
from refattn.costs.hardware import Hardware
from refattn.costs.latent import Latent
from refattn.costs.mechanisms import Mechanism, Softmax
from refattn.costs.names import mechanism_named
from refattn.costs.prediction import Prediction, predict
from refattn.costs.transformer import Transformer
from refattn.dispatch import REFERENCE

CLASSES = ("exact", "approximate", "retrain")
"""The same numbers; changed results; another network, which must be trained."""

WINDOWS = (4096, 1024, 256)
LINEAR = ("linear_attention", "gated_delta_rule", "mamba2")
"""Offered on hardware, where nothing need be measured."""


@dataclass(frozen=True)
class Candidate:
    """One way to run the model."""

    name: str
    exactness: str
    """Of `CLASSES`."""
    model: Transformer
    backend: str = REFERENCE
    algorithm: str = "flash"
    """On hardware: "materialised" writes the matrix of scores."""
    cache_dtype: str | None = None
    """Of keys and values, where not that of the rest."""


@dataclass(frozen=True)
class Case:
    """What a time depends on beside the candidate and the length."""

    on: Hardware | Calibration
    batch: int
    phase: str
    causal: bool
    dtype: str

    def time(self, way: Candidate, seq: int) -> Prediction:
        """Return the time of one pass."""
        return predict(
            way.model, on=self.on, batch=self.batch, seq=seq, phase=self.phase, backend=way.backend, dtype=self.dtype,
            causal=self.causal, algorithm=way.algorithm, cache_dtype=way.cache_dtype,
        )  # fmt: skip


def candidates(
    m: Transformer, on: Hardware | Calibration, backend: str, longest: int, exactness: str
) -> list[Candidate]:
    """Return the present way first, then what else there is up to a class of exactness.

    Parameters
    ----------
    m : Transformer
    on : Hardware or Calibration
    backend : str
        Who computes now, on a calibration.
    longest : int
        A window that takes in so many tokens changes nothing, and is left out.
    exactness : {"exact", "approximate", "retrain"}

    Returns
    -------
    list of Candidate
    """
    found = _measured(m, on, backend, longest) if isinstance(on, Calibration) else _on_hardware(m, longest)
    allowed = CLASSES[: CLASSES.index(exactness) + 1]
    return [candidate for candidate in found if candidate.exactness in allowed]


def _measured(m: Transformer, on: Calibration, backend: str, longest: int) -> list[Candidate]:
    backends = [name for name in on.ratios if ":" not in name]
    found = [Candidate(f"{mixing(m)} on {backend}", "exact", m, backend)]
    found += [Candidate(f"{mixing(m)} on {name}", "exact", m, name) for name in backends if name != backend]
    for name in backends:
        found += [
            Candidate(f"window of {window:,} on {name}", "approximate", with_window(m, window), name)
            for window in _windows(m, longest)
        ]
        mixed = sorted({key.split(":")[1] for key in on.mixing if key.startswith(f"{name}:")})
        found += [
            Candidate(f"{mechanism} on {name}", "retrain", with_mechanism(m, mechanism_named(mechanism)), name)
            for mechanism in mixed
            if _has_softmax(m)
        ]
    return found


def _on_hardware(m: Transformer, longest: int) -> list[Candidate]:
    if not _has_softmax(m):
        return [Candidate(f"{mixing(m)} as it is", "exact", m)]
    found = [Candidate("flash attention", "exact", m)]
    found.append(Candidate("attention with its matrix in memory", "exact", m, algorithm="materialised"))
    found.append(Candidate("keys and values in 8 bits", "approximate", m, cache_dtype="int8"))
    found += [
        Candidate(f"window of {window:,}", "approximate", with_window(m, window)) for window in _windows(m, longest)
    ]
    if m.kv > 1:
        found.append(Candidate("one key head for all (MQA)", "retrain", replace(m, kv_heads=1)))
    if m.kv > 8 and m.heads % 8 == 0:
        found.append(Candidate("eight key heads (GQA)", "retrain", replace(m, kv_heads=8)))
    found.append(Candidate("latent keys and values (MLA)", "retrain", with_mechanism(m, Latent())))
    return found + [Candidate(name, "retrain", with_mechanism(m, mechanism_named(name))) for name in LINEAR]


def mixing(m: Transformer) -> str:
    """Return what to call that which mixes m's tokens: attention, or its mechanisms.

    Examples
    --------
    >>> mixing(Transformer(layers=2, d_model=64, heads=1, mechanism=["mamba", "rwkv7"]))
    'mamba and rwkv7'
    """
    return "attention" if _has_softmax(m) else " and ".join(dict.fromkeys(x.name for x in m.mechanism))


def _has_softmax(m: Transformer) -> bool:
    return any(isinstance(mechanism, Softmax) for mechanism in m.mechanism)


def _windows(m: Transformer, longest: int) -> list[int]:
    return [window for window in WINDOWS if window < longest and any(_wider(x, window) for x in m.mechanism)]


def _wider(mechanism: Mechanism, window: int) -> bool:
    return isinstance(mechanism, Softmax) and (mechanism.window is None or mechanism.window > window)


def with_window(m: Transformer, window: int) -> Transformer:
    """Return m with a window in each layer that sees farther.

    Examples
    --------
    >>> with_window(Transformer(layers=1, d_model=64, heads=1), 256).mechanism
    (Softmax(window=256, mask=None),)
    """
    return replace(
        m,
        mechanism=[
            replace(x, window=window) if isinstance(x, Softmax) and _wider(x, window) else x for x in m.mechanism
        ],
    )


def with_mechanism(m: Transformer, mechanism: Mechanism) -> Transformer:
    """Return m with another mechanism in place of each softmax attention."""
    return replace(m, mechanism=[mechanism if isinstance(x, Softmax) else x for x in m.mechanism])
