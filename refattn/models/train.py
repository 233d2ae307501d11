"""How a `GPT` learns: its gradients by this project's own derivatives, AdamW, and windows drawn from a text."""

import math
from contextlib import nullcontext
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.dispatch import use_backend
from refattn.models import mixers
from refattn.models.block import block, block_vjp
from refattn.models.checkpoint import Config
from refattn.models.elementwise import swap
from refattn.models.gpt import GPT
from refattn.models.layers import (
    Tokens,
    cross_entropy,
    cross_entropy_vjp,
    embedding,
    embedding_vjp,
    linear,
    linear_vjp,
    rms_norm,
    rms_norm_vjp,
)
from refattn.models.tape import Tape


def initial(config: Config, seed: int = 0, dtype: Any = np.float32) -> GPT:
    """Draw a network that knows nothing: normal, of a spread that keeps the stream's size through the layers.

    A mixer other than attention draws its own parameters.

    Examples
    --------
    >>> gpt = initial(Config("ab", layers=1, width=4, heads=2, kv_heads=1, head_dim=2, hidden=3))
    >>> gpt.parameters["norm"]
    array([1., 1., 1., 1.], dtype=float32)
    """
    rng = np.random.default_rng(seed)
    parameters = {}
    for name, shape in config.shapes().items():
        spread = shape[-1] ** -0.5 if name == "embedding" else shape[0] ** -0.5
        if name.endswith(("w_o", "w_down")):
            spread *= (2 * config.layers) ** -0.5  # so many of them add up
        parameters[name] = (rng.normal(0, spread, shape) if len(shape) > 1 else np.ones(shape)).astype(dtype)
    for n in range(config.layers if config.mixer != "attention" else 0):
        drawn = config.draw_mixer(int(rng.integers(2**32)))
        parameters |= {f"layers.{n}.{name}": x.astype(dtype) for name, x in drawn.items()}
    return GPT(config, parameters)


def loss_and_gradients(gpt: GPT, tokens: Tokens, *, backend: str | None = None) -> tuple[float, dict[str, Array]]:
    """Run the network forwards and then backwards.

    Parameters
    ----------
    gpt : GPT
    tokens : int array, (..., T + 1)
        Each but the first is to be guessed from those before it.
    backend : str, optional
        Who computes; see `refattn.backends`. By default that of `refattn.use_backend`, else "numpy".

    Returns
    -------
    loss : float
        As `GPT.loss`.
    gradients : dict of array
        In the names of the parameters.
    """
    tokens = gpt.checked("loss_and_gradients", tokens, least=2)
    run = _loss_and_gradients if gpt.config.mixer == "attention" else taped_loss_and_gradients
    with nullcontext() if backend is None else use_backend(backend):
        return run(gpt, tokens[..., :-1], tokens[..., 1:])


def _loss_and_gradients(gpt: GPT, inputs: Tokens, targets: Tokens) -> tuple[float, dict[str, Array]]:
    w, config, positions = gpt.parameters, gpt.config, np.arange(inputs.shape[-1])
    x = embedding(inputs, w["embedding"])  # (..., T, E)
    saved = []
    for n in range(config.layers):
        x, of_layer = block(x, gpt.layer(n), config, positions)
        saved.append(of_layer)
    h = rms_norm(x, w["norm"])
    logits = linear(h, gpt.head)  # (..., T, V)
    loss = cross_entropy(logits, targets)

    gradients = {}
    dh, dhead = linear_vjp(cross_entropy_vjp(1.0, logits, targets), h, gpt.head)
    dx, gradients["norm"] = rms_norm_vjp(dh, x, w["norm"])
    for n in reversed(range(config.layers)):
        dx, dw = block_vjp(dx, saved[n], gpt.layer(n), config, positions)
        gradients |= {f"layers.{n}.{name}": g for name, g in dw.items()}
    gradients["embedding"] = embedding_vjp(dx, inputs, w["embedding"])
    if config.tied:
        gradients["embedding"] += dhead.T  # was: head = embedding.T
    else:
        gradients["head"] = dhead
    return loss, gradients


def taped_loss_and_gradients(gpt: GPT, inputs: Tokens, targets: Tokens) -> tuple[float, dict[str, Array]]:
    """Do as `loss_and_gradients` does, with any mixer; targets (..., T) may be other tokens than the next ones."""
    w, tape = gpt.parameters, Tape()
    x = tape(embedding, inputs, w["embedding"])
    for n in range(gpt.config.layers):
        x, _ = mixers.block(x, gpt.layer(n), gpt.config, call=tape)
    head = tape(swap, w["embedding"]) if gpt.config.tied else w["head"]
    logits = tape(linear, tape(rms_norm, x, w["norm"]), head)
    gradient = tape.gradients(logits, cross_entropy_vjp(1.0, logits, targets))
    return cross_entropy(logits, targets), {name: gradient(parameter) for name, parameter in w.items()}


class AdamW:
    r"""Adam with decoupled weight decay: Loshchilov and Hutter, 2019, arXiv:1711.05101, Algorithm 2.

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
        \theta \leftarrow \theta - \eta \Big(
            \frac{m / (1 - \beta_1^n)}{\sqrt{v / (1 - \beta_2^n)} + \epsilon} + \lambda \theta \Big)

    Parameters
    ----------
    parameters : dict of array
        Changed in place by `step`. Vectors (gains) do not decay.
    betas, eps, decay : float
        As above.
    clip : float
        Gradients whose common norm exceeds it are scaled down to it.

    Examples
    --------
    >>> x = {"x": np.array([[1.0]])}
    >>> AdamW(x, decay=0.0).step({"x": np.array([[0.3]])}, rate=0.5)  # the first step has the rate's size
    >>> np.round(x["x"], 6)
    array([[0.5]])
    """

    def __init__(
        self,
        parameters: dict[str, Array],
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        decay: float = 0.1,
        clip: float = 1.0,
    ) -> None:
        self.parameters, self.betas, self.eps, self.decay, self.clip = parameters, betas, eps, decay, clip
        self.m = {name: np.zeros_like(x) for name, x in parameters.items()}
        self.v = {name: np.zeros_like(x) for name, x in parameters.items()}
        self.steps = 0

    def step(self, gradients: dict[str, Array], rate: float) -> None:
        """Move the parameters by one step of size `rate`."""
        self.steps += 1
        beta_1, beta_2 = self.betas
        norm = math.sqrt(sum(float(np.vdot(g, g)) for g in gradients.values()))
        shrink = min(1.0, self.clip / norm) if norm > 0 else 1.0
        for name, x in self.parameters.items():
            g, m, v = shrink * gradients[name], self.m[name], self.v[name]
            m += (1 - beta_1) * (g - m)
            v += (1 - beta_2) * (g * g - v)
            m_hat, v_hat = m / (1 - beta_1**self.steps), v / (1 - beta_2**self.steps)
            decay = self.decay if x.ndim > 1 else 0.0
            x -= rate * (m_hat / (np.sqrt(v_hat) + self.eps) + decay * x)


def learning_rate(progress: float, *, peak: float, warm_up: float = 0.05, floor: float = 0.05) -> float:
    """Return a linear rise to `peak` and then half a cosine down to ``floor * peak``; progress goes from 0 to 1.

    Examples
    --------
    >>> [round(learning_rate(p, peak=1.0), 3) for p in (0.0, 0.05, 1.0)]
    [0.0, 1.0, 0.05]
    """
    if progress < warm_up:
        return peak * progress / warm_up
    fall = (min(progress, 1.0) - warm_up) / (1 - warm_up)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * fall)))


def windows(tokens: Tokens, batch: int, length: int, rng: np.random.Generator) -> Tokens:
    """Draw `batch` runs of `length` tokens at random places, (batch, length)."""
    if len(tokens) < length:
        raise ValueError(f"windows: there are {len(tokens)} tokens; wanted {length} at least")
    starts = rng.integers(0, len(tokens) - length + 1, batch)
    return tokens[starts[:, None] + np.arange(length)]


def held_out_loss(gpt: GPT, tokens: Tokens, *, batch: int = 8, backend: str | None = None) -> float:
    """Return the loss on a text cut into runs of the context's length, in nats per token.

    Parameters
    ----------
    gpt : GPT
    tokens : int array, (N,)
        Each but the first is guessed once, from what stands before it in its run; the remainder of a run is left out.
    batch : int
        Runs at a time.
    backend : str, optional
        As `GPT.logits`.

    Returns
    -------
    float
    """
    T = gpt.config.context
    starts = np.arange(0, len(tokens) - T, T)
    if not starts.size:
        raise ValueError(f"held_out_loss: there are {len(tokens)} tokens; wanted more than {T}")
    runs: Any = tokens[starts[:, None] + np.arange(T + 1)]
    losses = [
        gpt.loss(runs[n : n + batch], backend=backend) * len(runs[n : n + batch]) for n in range(0, len(runs), batch)
    ]
    return sum(losses) / len(runs)
