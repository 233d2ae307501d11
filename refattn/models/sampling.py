"""How the next token is chosen from what a network expects."""

import numpy as np

from refattn.arrays import Array


def pick(z: Array, temperature: float, top_k: int | None, rng: np.random.Generator) -> int:
    r"""Choose a token.

    .. math::
        p_n \propto e^{z_n / \text{temperature}} \quad \text{for the } k \text{ largest } z_n

    Parameters
    ----------
    z : array, (V,)
        Logits.
    temperature : float
        At 0 the likeliest token is certain.
    top_k : int or None
        k; None is V. Of equal logits the lowest token counts as the largest.
    rng : numpy Generator
        Drawn from once, unless the temperature is 0.

    Returns
    -------
    int

    Examples
    --------
    >>> pick(np.array([1.0, 3.0, 3.0]), 0.0, None, np.random.default_rng(0))
    1
    """
    likeliest = np.argsort(-z, kind="stable")[:top_k]
    if temperature == 0:
        return int(likeliest[0])
    p = np.exp((z[likeliest] - z[likeliest[0]]).astype(np.float64) / temperature)
    return int(rng.choice(likeliest, p=p / p.sum()))
