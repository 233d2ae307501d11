"""The simulated engine against closed forms, against a plain queue, and against books kept apart."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refattn.costs.queueing import erlang_c, md1_wait, mg1_wait, mmc_wait
from refattn.costs.simulation import Engine, poisson, queue_waits, simulate

SEEDS = range(8)
NOTHING = np.zeros(20_000, np.int64)
UTILISATIONS = [0.3, 0.7, 0.9]


def one_server(seconds):
    """Return an engine that is a queue with one server: one slot, and all service in prefill."""
    return Engine(lambda prompts: seconds(prompts), lambda batch, kept: kept, NOTHING, room=1, slots=1)


def many_servers(servers, step):
    """Return an engine that is a queue with several servers: each in a slot, and all service in decoding."""
    flat = lambda batch, kept: np.full(len(kept), step)  # noqa: E731
    return Engine(lambda prompts: 0.0, flat, NOTHING, room=1, slots=servers, pass_tokens=10**9)


def agrees(found, wanted):
    """Assert that the mean over seeds is within five standard errors."""
    error = np.std(found, ddof=1) / math.sqrt(len(found))
    assert error < 0.1 * wanted, "so noisy that nothing could fail"
    assert abs(np.mean(found) - wanted) < 5 * error


def settled(values):
    return values[len(values) // 5 :].mean()


@pytest.mark.parametrize("rho", UTILISATIONS)
class TestClosedForms:
    def test_md1(self, rho):
        found = []
        for seed in SEEDS:
            arrivals = poisson(rho / 0.02, 12_000, np.random.default_rng([seed, 1, int(10 * rho)]))
            ones = np.ones(len(arrivals), np.int64)
            found.append(settled(simulate(one_server(lambda prompts: 0.02), arrivals, ones, ones).wait))
        agrees(found, md1_wait(rho / 0.02, 0.02))

    def test_mg1_where_prefill_depends_on_the_prompt(self, rho):
        found = []
        for seed in SEEDS:
            rng = np.random.default_rng([seed, 2, int(10 * rho)])
            arrivals, prompts = poisson(rho, 12_000, rng), rng.choice([50, 150], 12_000)
            engine = one_server(lambda prompts: float(prompts.sum()) / 100)
            found.append(settled(simulate(engine, arrivals, prompts, np.ones_like(prompts)).wait))
        agrees(found, mg1_wait(rho, 1.0, (0.5**2 + 1.5**2) / 2))

    def test_mmc(self, rho):
        servers, step, waits, waiting = 3, 1 / 500, [], []
        count = 6000 if rho < 0.9 else 20_000  # a queue that is nearly full forgets slowly
        for seed in SEEDS:
            rng = np.random.default_rng([seed, 3, int(10 * rho)])
            arrivals, outputs = poisson(rho * servers, count, rng), rng.geometric(step, count) + 1
            run = simulate(many_servers(servers, step), arrivals, np.ones_like(outputs), outputs)
            waits.append(settled(run.wait))
            waiting.append(settled(run.wait > step))  # up to a step passes even where a server is free
        agrees(waits, mmc_wait(rho * servers, 1.0, servers))
        agrees(waiting, erlang_c(servers, rho * servers))

    def test_a_plain_queue(self, rho):
        found, several = [], []
        for seed in SEEDS:
            rng = np.random.default_rng([seed, 4, int(10 * rho)])
            arrivals = poisson(rho, 12_000, rng)
            found.append(settled(queue_waits(arrivals, np.ones(12_000))))
            several.append(settled(queue_waits(arrivals / 3, rng.exponential(size=12_000), 3)))
        agrees(found, md1_wait(rho, 1))
        agrees(several, mmc_wait(3 * rho, 1, 3))


@pytest.mark.parametrize("servers", [1, 2, 7])
def test_request_by_request_it_is_the_plain_queue_to_within_a_step(servers):
    rng, step = np.random.default_rng(1), 1 / 1000
    arrivals, outputs = poisson(0.9 * servers, 1500, rng), rng.geometric(step, 1500) + 1
    run = simulate(many_servers(servers, step), arrivals, np.ones_like(outputs), outputs)
    late = run.wait - queue_waits(arrivals, (outputs - 1) * step, servers)
    assert late.min() > -1e-6 and late.max() < 2 * step


def an_engine(room=4000, slots=6, pass_tokens=300):
    def step(batch, kept):
        return kept * 1e-5 + 1e-3 * batch

    return Engine(lambda prompts: 1e-4 * float(prompts.sum()), step, np.arange(2000) * 2, room, slots, pass_tokens)


def requests(seed, count=400, rate=20.0):
    rng = np.random.default_rng(seed)
    return poisson(rate, count, rng), rng.integers(1, 200, count), rng.integers(1, 60, count)


def slowly(engine, arrivals, prompts, outputs):
    """Return when requests finish and the first tokens come, one step at a time, in plain Python."""
    waiting, running, t = list(range(len(arrivals))), {}, 0.0
    first, finish = {}, {}
    while waiting or running:
        new, tokens = [], 0
        while waiting and arrivals[waiting[0]] <= t and len(running) + len(new) < engine.slots:
            i = waiting[0]
            held = sum(engine.kept[prompts[j] + outputs[j]] for j in [*running, *new, i])
            if held > engine.room or (new and tokens + prompts[i] > engine.pass_tokens):
                break
            tokens += prompts[i]
            new.append(waiting.pop(0))
        if new:
            t += engine.prefill(prompts[new])
            first |= dict.fromkeys(new, t)
            running |= dict.fromkeys(new, 1)
        elif running:
            kept = sum(engine.kept[prompts[i] + made] for i, made in running.items())
            t += float(engine.step(len(running), np.array([kept], float))[0])
            running = {i: made + 1 for i, made in running.items()}
        else:
            t = arrivals[waiting[0]]
        finish |= {i: t for i, made in running.items() if made == outputs[i]}
        running = {i: made for i, made in running.items() if made < outputs[i]}
    return [np.array([times[i] for i in range(len(arrivals))]) for times in (first, finish)]


@pytest.mark.parametrize("rate", [2.0, 8.0, 50.0])
@pytest.mark.parametrize("engine", [an_engine(), an_engine(slots=1), an_engine(room=520), an_engine(pass_tokens=1)])
def test_many_steps_at_once_are_the_steps_one_by_one(engine, rate):
    given_ = requests(5, 150, rate)
    run = simulate(engine, *given_)
    first, finish = slowly(engine, *given_)
    np.testing.assert_allclose(run.first, first, rtol=1e-9)
    np.testing.assert_allclose(run.finish, finish, rtol=1e-9)


def test_a_cache_that_does_not_grow_evenly():
    windowed = Engine(
        lambda prompts: 0.01, lambda batch, kept: kept * 1e-5, np.minimum(np.arange(400), 64) * 2, 1000, 6, 300
    )
    given_ = requests(5, 100, 30.0)
    np.testing.assert_allclose(simulate(windowed, *given_).finish, slowly(windowed, *given_)[1], rtol=1e-9)


class TestBooks:
    def test_littles_law(self):
        """The engine adds up who is in service pass by pass; requests know how long they were."""
        run = simulate(an_engine(), *requests(2))
        assert run.in_service == pytest.approx((run.finish - run.start).sum(), rel=1e-9)

    @pytest.mark.parametrize("rho", UTILISATIONS)
    def test_littles_law_seen_from_outside(self, rho):
        """How many are there at moments that know nothing of the requests: rate times time in the system."""
        ones, found, wanted = np.ones(12_000, np.int64), [], []
        for seed in SEEDS:
            run = simulate(
                one_server(lambda prompts: 1.0), poisson(rho, 12_000, np.random.default_rng(seed)), ones, ones
            )
            moments = np.random.default_rng([seed, 1]).uniform(0.2 * run.end, 0.9 * run.end, 20_000)
            there = np.searchsorted(run.arrival, moments) - np.searchsorted(np.sort(run.finish), moments)
            found.append(there.mean())
            wanted.append(rho * (md1_wait(rho, 1) + 1))
        agrees(found, wanted[0])

    def test_time_goes_forward_and_memory_and_slots_suffice(self):
        engine = an_engine(room=700)
        run = simulate(engine, *requests(3, rate=50))
        assert (run.arrival <= run.start).all() and (run.start < run.first).all() and (run.first <= run.finish).all()
        assert (np.diff(run.start) >= 0).all()
        assert 600 < run.most_bytes <= engine.room
        assert 1 < run.most_running <= engine.slots
        assert 0 < run.busy <= run.end
        assert simulate(an_engine(room=1e9, slots=3), *requests(3, rate=50)).most_running == 3

    def test_what_never_fits_is_refused_and_holds_up_nobody(self):
        arrivals, prompts, outputs = requests(4)
        engine = an_engine(room=400)
        large = engine.kept[prompts + outputs] > 400
        run = simulate(engine, arrivals, prompts, outputs)
        assert 0 < large.sum() == run.rejected == np.isnan(run.finish).sum()
        alone = simulate(engine, arrivals[~large], prompts[~large], outputs[~large])
        assert (alone.finish == run.finish[~large]).all()
        none = simulate(an_engine(room=-5), arrivals, prompts, outputs)
        assert none.rejected == len(arrivals) and none.end == 0

    def test_it_repeats(self):
        a, b = (simulate(an_engine(), *requests(6)) for _ in range(2))
        assert (a.finish == b.finish).all() and a.busy == b.busy

    def test_times_of_tokens(self):
        engine = Engine(lambda prompts: 0.5, lambda batch, kept: kept * 0 + 0.1, np.arange(100), 99, 4)
        run = simulate(engine, [1.0, 1.0], [10, 10], [5, 1])
        np.testing.assert_allclose(run.ttft, [0.5, 0.5])
        np.testing.assert_allclose(run.tpot, [0.1, math.nan])
        np.testing.assert_allclose(run.finish, [1.9, 1.5])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.5, 40))
def test_an_engine_that_is_faster_in_all_makes_nobody_of_one_slot_later(seed, rate):
    given_ = requests(seed, 60, rate)
    slow, fast = (
        Engine(lambda p, f=f: f * float(p.sum()), lambda b, k, f=f: f * k, np.arange(300), 1000, slots=1)
        for f in (1e-3, 0.9e-3)
    )
    assert (simulate(fast, *given_).finish <= simulate(slow, *given_).finish + 1e-9).all()


def test_rates_stretch_the_same_arrivals():
    slow, fast = (poisson(rate, 50, np.random.default_rng(9)) for rate in (2.0, 4.0))
    np.testing.assert_allclose(slow, 2 * fast)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (([0.0, 1.0], [1], [1]), "as many of each"),
        (([1.0, 0.0], [1, 1], [1, 1]), "go back"),
        (([-1.0, 0.0], [1, 1], [1, 1]), "go back"),
        (([math.nan], [1], [1]), "no times"),
        (([0.0], [0], [1]), "a length below 1"),
        (([0.0], [1], [0]), "a length below 1"),
        (([0.0], [1500], [600]), "2100 tokens; engine.kept goes to 1999"),
    ],
)
def test_bad_requests(arrays, message):
    with pytest.raises(ValueError, match=message):
        simulate(an_engine(), *map(np.array, arrays))


def test_bad_numbers():
    for rate in (0, -1, math.inf):
        with pytest.raises(ValueError, match="rate is"):
            poisson(rate, 5, np.random.default_rng(0))
    with pytest.raises(ValueError, match="count is 0"):
        poisson(1, 0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="servers is 0"):
        queue_waits([0.0], [1.0], 0)
    with pytest.raises(ValueError, match="slots is 0"):
        simulate(an_engine(slots=0), *requests(0))
