"""How long requests wait in queues that have a formula: Poisson arrivals, one server or several, in order of arrival.

Erlang, 1909 and 1917; Pollaczek, 1930; Khinchine, 1932; all of it in Kleinrock, 1975, "Queueing Systems", volume 1,
chapters 3 (M/M/m) and 5 (M/G/1). Waiting ends where service begins; a queue that is asked for all it can do, or more,
grows without end, and its waiting time is infinite.
"""

import math

from refattn.arrays import check_count, check_number


def md1_wait(rate: float, service: float) -> float:
    r"""Return the mean wait of M/D/1: Poisson arrivals, one server, each service as long as the other.

    .. math:: W = \frac{\rho s}{2 (1 - \rho)}, \qquad \rho = \lambda s

    Parameters
    ----------
    rate : float
        Arrivals a second, λ.
    service : float
        Seconds, s.

    Returns
    -------
    float
        Seconds; infinite for ρ of 1 and more.

    Raises
    ------
    TypeError, ValueError
        For numbers that are not above 0.

    Examples
    --------
    >>> md1_wait(rate=0.5, service=1), md1_wait(rate=1, service=1)
    (0.5, inf)
    """
    return mg1_wait(rate, service, service**2)


def mg1_wait(rate: float, service: float, square: float) -> float:
    r"""Return the mean wait of M/G/1, by Pollaczek and Khinchine.

    .. math:: W = \frac{\lambda E[s^2]}{2 (1 - \rho)}, \qquad \rho = \lambda E[s]

    Parameters
    ----------
    rate : float
        Arrivals a second, λ.
    service : float
        Mean of the service times, in seconds.
    square : float
        Mean of their squares.

    Returns
    -------
    float
        Seconds; infinite for ρ of 1 and more.

    Raises
    ------
    TypeError, ValueError
        For numbers that are not above 0, and a mean of squares below the square of the mean.

    Examples
    --------
    >>> mg1_wait(rate=0.5, service=1, square=2)  # exponential services: M/M/1, ρ s / (1 - ρ)
    1.0
    """
    for name, x in (("rate", rate), ("service", service), ("square", square)):
        check_number("queueing", name, x, above=0)
    if square < service**2 * (1 - 1e-9):
        raise ValueError(f"queueing: square is {square:g}; wanted at least {service**2:g}, the square of the mean")
    free = 1 - rate * service
    return rate * square / (2 * free) if free > 0 else math.inf


def erlang_c(servers: int, load: float) -> float:
    r"""Return the probability that an arrival of M/M/c has to wait.

    From Erlang's B by its recurrence, which does not overflow:

    .. math:: B_0 = 1, \quad B_k = \frac{a B_{k-1}}{k + a B_{k-1}}, \quad C = \frac{c B_c}{c - a (1 - B_c)}

    Parameters
    ----------
    servers : int
        c.
    load : float
        a = λs, the servers that would be busy on average.

    Returns
    -------
    float
        1 for a load of c and more.

    Raises
    ------
    TypeError, ValueError
        For no servers, and a load that is not above 0.

    Examples
    --------
    >>> erlang_c(1, 0.7), round(erlang_c(2, 1.0), 12)  # ρ for one server; 1/3
    (0.7, 0.333333333333)
    """
    check_count("queueing", "servers", servers)
    check_number("queueing", "load", load, above=0)
    if load >= servers:
        return 1.0
    blocked = 1.0
    for k in range(1, servers + 1):
        blocked = load * blocked / (k + load * blocked)
    return servers * blocked / (servers - load * (1 - blocked))


def mmc_wait(rate: float, service: float, servers: int) -> float:
    r"""Return the mean wait of M/M/c: exponential services, c servers.

    .. math:: W = \frac{C(c, \lambda s)}{c/s - \lambda}

    Parameters
    ----------
    rate : float
        Arrivals a second, λ.
    service : float
        Mean of the service times, in seconds, s.
    servers : int
        c.

    Returns
    -------
    float
        Seconds; infinite where λs is c or more.

    Raises
    ------
    TypeError, ValueError
        As `erlang_c`.

    Examples
    --------
    >>> mmc_wait(rate=0.5, service=1, servers=1), round(mmc_wait(rate=1, service=1, servers=2), 12)
    (1.0, 0.333333333333)
    """
    for name, x in (("rate", rate), ("service", service)):
        check_number("queueing", name, x, above=0)
    waits, free = erlang_c(servers, rate * service), servers / service - rate
    return waits / free if free > 0 else math.inf


def mmc_wait_quantile(rate: float, service: float, servers: int, p: float) -> float:
    r"""Return the wait that a share p of M/M/c's arrivals does not exceed: P(W > t) = C e^{-(c/s - λ)t}.

    Parameters
    ----------
    rate, service, servers
        As for `mmc_wait`.
    p : float
        Above 0 and below 1.

    Returns
    -------
    float
        Seconds; 0 where a share p does not wait at all.

    Raises
    ------
    TypeError, ValueError
        As `mmc_wait`, and for another p.

    Examples
    --------
    >>> mmc_wait_quantile(rate=0.5, service=1, servers=1, p=0.4)
    0.0
    >>> round(mmc_wait_quantile(rate=0.5, service=1, servers=1, p=0.95), 6)  # 2 ln(0.5 / 0.05)
    4.60517
    """
    check_number("queueing", "p", p, above=0)
    if p >= 1:
        raise ValueError(f"queueing: p is {p}; wanted a share below 1")
    if math.isinf(mmc_wait(rate, service, servers)):
        return math.inf
    waits = erlang_c(servers, rate * service)
    return max(0.0, math.log(waits / (1 - p)) / (servers / service - rate))
