r"""Frequencies of `rope` for contexts longer than those of the training.

Linear: Chen et al., "Extending Context Window of Large Language Models via Positional Interpolation", 2023,
arXiv:2306.15595, eq. 4. NTK-aware, dynamic NTK and YaRN: Peng et al., "YaRN", 2023, arXiv:2309.00071, sections 3.1, 3.3
and 3.4. llama3: the rule that came with the weights of Llama 3.1 ("The Llama 3 Herd of Models", 2024,
arXiv:2407.21783). Each function takes the numbers that stand in a checkpoint's configuration.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from refattn.arrays import Array, check_count, check_number


class RopeFrequencies(NamedTuple):
    """What the functions of this file return: ``rope(attention_factor * x, positions, frequencies=frequencies)``."""

    frequencies: Array
    """Radians per position for each pair, float64 (rotary_dim / 2,)."""
    attention_factor: float
    """What the rotated queries and the rotated keys are multiplied by; 1.0 for all but `yarn_frequencies`."""


def linear_frequencies(rotary_dim: int, *, theta: float = 10000.0, factor: float) -> RopeFrequencies:
    r"""Return frequencies divided by one factor: position t turns as t / factor did (position interpolation).

    .. math::
        f_n' = f_n / s

    Parameters
    ----------
    rotary_dim : int
        D: how many dimensions rotate; even.
    theta : float
        The base of the wavelengths: f_n = theta^(-2n/D) for pair n.
    factor : float
        s: how many times longer the context is to be.

    Returns
    -------
    RopeFrequencies
        (frequencies, 1.0).

    Raises
    ------
    TypeError, ValueError
        For an odd or negative rotary_dim, or numbers out of range.

    Examples
    --------
    >>> linear_frequencies(4, theta=100.0, factor=2.0).frequencies
    array([0.5 , 0.05])
    """
    f = _base("linear_frequencies", rotary_dim, theta, factor=factor)
    return RopeFrequencies(f / factor, 1.0)


def ntk_frequencies(rotary_dim: int, *, theta: float = 10000.0, factor: float) -> RopeFrequencies:
    r"""Return the frequencies of a larger theta: the fastest pair stays, the slowest is divided by the factor.

    .. math::
        f_n' = \theta'^{-2n/D}, \quad \theta' = \theta \cdot s^{D / (D - 2)}

    Parameters
    ----------
    rotary_dim, theta
        As in `linear_frequencies`; rotary_dim is at least 4.
    factor : float
        s: how many times longer the context is to be.

    Returns
    -------
    RopeFrequencies
        (frequencies, 1.0).

    Raises
    ------
    TypeError, ValueError
        As `linear_frequencies`.

    Examples
    --------
    >>> ntk_frequencies(4, theta=100.0, factor=2.0).frequencies
    array([1.  , 0.05])
    """
    operation = "ntk_frequencies"
    _base(operation, rotary_dim, theta, least=4, factor=factor)
    larger = theta * factor ** (rotary_dim / (rotary_dim - 2))  # θ' = θ s^(D/(D-2))
    return RopeFrequencies(_base(operation, rotary_dim, larger), 1.0)


def dynamic_ntk_frequencies(
    rotary_dim: int, *, theta: float = 10000.0, factor: float, original_max_position: int, length: int
) -> RopeFrequencies:
    r"""Return the frequencies of `ntk_frequencies` with a factor that grows with the length of the sequence.

    .. math::
        s' = s \cdot \max(T, L) / L - (s - 1)

    where T is the length and L the length of the training: up to L nothing changes.

    Parameters
    ----------
    rotary_dim, theta
        As in `linear_frequencies`; rotary_dim is at least 4.
    factor : float
        s.
    original_max_position : int
        L.
    length : int
        T: how many tokens there are now. Keys that were rotated for a shorter sequence have to be rotated again.

    Returns
    -------
    RopeFrequencies
        (frequencies, 1.0).

    Raises
    ------
    TypeError, ValueError
        As `linear_frequencies`.

    Examples
    --------
    >>> dynamic_ntk_frequencies(4, theta=100.0, factor=1.0, original_max_position=8, length=16).frequencies
    array([1.  , 0.05])
    """
    operation = "dynamic_ntk_frequencies"
    _base(operation, rotary_dim, theta, least=4, factor=factor)
    check_count(operation, "original_max_position", original_max_position)
    check_count(operation, "length", length, least=0)
    grown = factor * max(length, original_max_position) / original_max_position - (factor - 1)
    return ntk_frequencies(rotary_dim, theta=theta, factor=grown)


def yarn_frequencies(
    rotary_dim: int,
    *,
    theta: float = 10000.0,
    factor: float,
    original_max_position: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
    mscale: float = 1.0,
    mscale_all_dim: float = 0.0,
) -> RopeFrequencies:
    r"""Return frequencies of which the fast stay, the slow are divided by the factor, and those between are mixed.

    .. math::
        f_n' = (1 - \gamma_n) f_n / s + \gamma_n f_n, \quad
        \gamma_n = 1 - \text{clip}\left(\frac{n - n_\text{fast}}{n_\text{slow} - n_\text{fast}}, 0, 1\right), \quad
        n_\beta = \frac{D \log (L / 2 \pi \beta)}{2 \log \theta}

    where pair n_β turns β times in the L positions of the training. The attention factor is m(mscale) /
    m(mscale_all_dim) with m(x) = 0.1 x log s + 1.

    Parameters
    ----------
    rotary_dim, theta
        As in `linear_frequencies`; theta is above 1.
    factor : float
        s: how many times longer the context is to be.
    original_max_position : int
        L.
    beta_fast, beta_slow : float
        Pairs that turn at least beta_fast times stay; those that turn at most beta_slow times are divided.
    truncate : bool
        Round n_fast down and n_slow up to whole pairs, as the authors' code does.
    mscale, mscale_all_dim : float
        As in DeepSeek's configurations; the paper has 1 and 0: an attention factor of 0.1 log s + 1.

    Returns
    -------
    RopeFrequencies
        (frequencies, attention_factor).

    Raises
    ------
    TypeError, ValueError
        As `linear_frequencies`, and for betas that are not in descending order.

    Examples
    --------
    >>> f, attention_factor = yarn_frequencies(4, theta=100.0, factor=2.0, original_max_position=20)
    >>> f, round(attention_factor, 4)  # the first pair stays, the second is divided; 0.1 log 2 + 1
    (array([1.  , 0.05]), 1.0693)
    """
    operation = "yarn_frequencies"
    f = _base(operation, rotary_dim, theta, factor=factor, beta_fast=beta_fast, beta_slow=beta_slow)
    check_number(operation, "theta", theta, above=1)
    check_count(operation, "original_max_position", original_max_position)
    for name, x in (("mscale", mscale), ("mscale_all_dim", mscale_all_dim)):
        check_number(operation, name, x)
    if beta_fast <= beta_slow:
        raise ValueError(f"{operation}: beta_fast is {beta_fast}; wanted it above beta_slow = {beta_slow}")
    if original_max_position <= 2 * math.pi * beta_slow:
        raise ValueError(f"{operation}: no pair turns {beta_slow} times in {original_max_position} positions")

    def pair(turns: float) -> float:
        return rotary_dim * math.log(original_max_position / (turns * 2 * math.pi)) / (2 * math.log(theta))  # n_β

    def m(x: float) -> float:
        return 0.1 * x * math.log(max(factor, 1)) + 1

    fast, slow = pair(beta_fast), pair(beta_slow)
    if truncate:
        fast, slow = math.floor(fast), math.ceil(slow)
    fast, slow = max(fast, 0), min(slow, rotary_dim - 1)
    width = slow - fast if slow != fast else 0.001  # a step instead of a ramp
    stays = 1 - np.clip((np.arange(rotary_dim // 2) - fast) / width, 0, 1)  # γ_n
    return RopeFrequencies((1 - stays) * f / factor + stays * f, m(mscale) / m(mscale_all_dim))


def llama3_frequencies(
    rotary_dim: int,
    *,
    theta: float = 500000.0,
    factor: float,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    original_max_position: int,
) -> RopeFrequencies:
    r"""Return frequencies mixed as those of `yarn_frequencies`, on a ramp over how often a pair turns.

    .. math::
        f_n' = (1 - \gamma_n) f_n / s + \gamma_n f_n, \quad
        \gamma_n = \text{clip}\left(\frac{L f_n / 2 \pi - \beta_\text{low}}{\beta_\text{high} - \beta_\text{low}}, 0, 1
        \right)

    Parameters
    ----------
    rotary_dim, theta
        As in `linear_frequencies`, but theta is 500000 unless given, as in these checkpoints.
    factor : float
        s.
    low_freq_factor, high_freq_factor : float
        Pairs that turn less than low_freq_factor times in the training's length are divided by s; those that turn more
        than high_freq_factor times stay.
    original_max_position : int
        L.

    Returns
    -------
    RopeFrequencies
        (frequencies, 1.0).

    Raises
    ------
    TypeError, ValueError
        As `linear_frequencies`, and unless high_freq_factor is above low_freq_factor.

    Examples
    --------
    >>> llama3_frequencies(4, theta=1e4, factor=2.0, original_max_position=100).frequencies  # 16 turns, and 0.16
    array([1.   , 0.005])
    """
    operation = "llama3_frequencies"
    f = _base(operation, rotary_dim, theta, factor=factor, low_freq_factor=low_freq_factor)
    check_number(operation, "high_freq_factor", high_freq_factor, above=low_freq_factor)
    check_count(operation, "original_max_position", original_max_position)
    turns = original_max_position * f / (2 * math.pi)
    stays = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)  # γ_n
    return RopeFrequencies((1 - stays) * f / factor + stays * f, 1.0)


def _base(operation: str, rotary_dim: Any, theta: Any, *, least: int = 0, **positive: Any) -> Array:
    """Refuse numbers out of range, and return f_n = theta^(-2n/D)."""
    check_count(operation, "rotary_dim", rotary_dim, least=least)
    if rotary_dim % 2:
        raise ValueError(f"{operation}: rotary_dim is {rotary_dim}; wanted an even number")
    for name, x in {"theta": theta, **positive}.items():
        check_number(operation, name, x, above=0)
    return np.asarray(theta ** (-np.arange(0, rotary_dim, 2) / max(rotary_dim, 1)))
