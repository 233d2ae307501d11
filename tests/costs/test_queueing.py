"""Waiting times against numbers that can be worked out otherwise: sums over states, special cases, published tables."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.costs.queueing import erlang_c, md1_wait, mg1_wait, mmc_wait, mmc_wait_quantile

LOADS = [0.1, 0.3, 0.7, 0.9, 0.99]


@pytest.mark.parametrize("load", LOADS)
class TestOneServer:
    def test_deterministic_services_wait_half_as_long_as_exponential_ones(self, load):
        assert md1_wait(load, 1) == pytest.approx(mmc_wait(load, 1, 1) / 2)
        assert mg1_wait(load, 1, 2) == pytest.approx(mmc_wait(load, 1, 1))

    def test_exponential_services(self, load):
        assert mmc_wait(load / 3, 3, 1) == pytest.approx(3 * load / (1 - load))

    def test_seconds_scale(self, load):
        assert md1_wait(load * 1000, 1e-3) == pytest.approx(md1_wait(load, 1) / 1000)


def by_states(servers, load, states=4000):
    """Return Erlang's C and the mean queue as sums over the probabilities of a birth-death chain."""
    logs, log = [], 0.0
    for n in range(states):
        logs.append(log)
        log += math.log(load / min(n + 1, servers))
    total = math.fsum(math.exp(x) for x in logs)
    shares = [math.exp(x) / total for x in logs]
    return math.fsum(shares[servers:]), math.fsum((n - servers) * p for n, p in enumerate(shares) if n > servers)


@pytest.mark.parametrize("share", LOADS)
@pytest.mark.parametrize("servers", [1, 2, 5, 40])
def test_several_servers_by_the_probabilities_of_states(servers, share):
    load = servers * share
    waits, queue = by_states(servers, load)
    assert erlang_c(servers, load) == pytest.approx(waits, rel=1e-9)
    assert mmc_wait(load, 1, servers) == pytest.approx(queue / load, rel=1e-9)  # Little's law


def test_numbers_by_hand():
    assert erlang_c(2, 1) == pytest.approx(1 / 3)
    assert erlang_c(3, 2) == pytest.approx(4 / 9)
    assert erlang_c(500, 450) == pytest.approx(erlang_c(500, 450.0)) and 0 < erlang_c(500, 450) < 0.02
    assert md1_wait(0.8, 1) == pytest.approx(2.0)


def test_the_quantile_is_where_the_tail_says():
    rate, service, servers = 3.2, 1.0, 4
    t = mmc_wait_quantile(rate, service, servers, 0.95)
    assert erlang_c(servers, rate) * math.exp(-(servers - rate) * t) == pytest.approx(0.05)
    assert mmc_wait_quantile(0.1, 1, 4, 0.5) == 0


@given(st.floats(0.01, 0.98), st.integers(1, 30))
def test_more_work_waits_longer_and_more_servers_wait_less(share, servers):
    rate = share * servers
    assert mmc_wait(rate, 1, servers) < mmc_wait(rate * 1.01, 1, servers)
    assert mmc_wait(rate, 1, servers + 1) < mmc_wait(rate, 1, servers)
    assert 0 < erlang_c(servers, rate) < 1


@pytest.mark.parametrize("rate", [1.0, 1.5])
def test_all_that_can_be_done_or_more_waits_without_end(rate):
    assert md1_wait(rate, 1) == mmc_wait(2 * rate, 1, 2) == mmc_wait_quantile(2 * rate, 1, 2, 0.5) == math.inf
    assert erlang_c(2, 2 * rate) == 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: md1_wait(0, 1), ValueError, "rate is 0"),
        (lambda: md1_wait(1, -1), ValueError, "service is -1"),
        (lambda: md1_wait(math.nan, 1), ValueError, "rate is nan"),
        (lambda: md1_wait("1", 1), TypeError, "rate must be a number"),
        (lambda: mg1_wait(0.5, 2, 3), ValueError, "square is 3; wanted at least 4"),
        (lambda: erlang_c(0, 1), ValueError, "servers is 0"),
        (lambda: erlang_c(1.5, 1), TypeError, "servers must be an integer"),
        (lambda: erlang_c(2, 0), ValueError, "load is 0"),
        (lambda: mmc_wait(1, 0, 2), ValueError, "service is 0"),
        (lambda: mmc_wait_quantile(1, 1, 2, 1), ValueError, "p is 1; wanted a share below 1"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
