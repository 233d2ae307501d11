"""The kit finds every mutant, and says nothing against correct kernels."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from refattn.testing import Contract, check, checks
from refattn.testing.attention.cases import CASES
from refattn.testing.attention.judge import analyse, judge
from refattn.testing.attention.problem import problem
from refattn.testing.mutants import correct, mutants
from refattn.testing.mutants.survey import survivors
from refattn.testing.session import Session
from refattn.testing.verdicts import VERDICTS

DTYPES = ("float32", "float16", "bfloat16")
OPERATIONS = ("attention", "attention_vjp")


def test_every_mutant_is_killed_or_argued_to_be_equivalent(monkeypatch):
    """Those of attention; each operation of the linear family has its own test."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # a process for each core
    assert len(mutants("attention")) + len(mutants("attention_vjp")) >= 100
    jobs = [(op, dtype, part, 2) for op in OPERATIONS for dtype in DTYPES for part in (0, 1)]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        left = [name for names in pool.map(survivors, *zip(*jobs, strict=True)) for name in names]
    assert left == []


def test_the_arguments_for_equivalence_are_arguments():
    for mutant in mutants():
        for dtype, why in mutant.equivalent.items():
            assert dtype in DTYPES
            assert len(why.split()) >= 6, mutant.name


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", [16, 32, 64, 128])
def test_a_correct_kernel_passes(op, dtype, tile):
    report = check(correct(op, tile_q=tile, tile_k=tile), Contract(op=op, dtype=dtype), "quick", seed=tile)
    assert report.ok, str(report)
    assert report.count("PASS") == len(report.results) > 90


@pytest.mark.slow
@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", ["quick", "standard", "deep"])
def test_no_flag_with_fresh_seeds(op, dtype, level):
    """With 5 kernels of different tiles: 50 seeds for each contract at quick level, 9 (54 over all) at the others."""
    for seed in range(1000, 1050 if level == "quick" else 1009):
        tile = (16, 32, 48, 64, 128)[seed % 5]
        report = check(correct(op, tile_q=tile, tile_k=tile), Contract(op=op, dtype=dtype), level, seed=seed)
        assert report.ok, f"seed {seed}, tile {tile}\n{report}"


DISTRIBUTIONS = {
    "normal": lambda rng, *shape: rng.standard_normal(shape),
    "uniform": lambda rng, *shape: rng.random(shape),
    "heavy tails": lambda rng, *shape: rng.standard_t(3, shape),
    "outlier channels": lambda rng, *shape: rng.standard_normal(shape) * np.where(np.arange(shape[-1]) % 32, 1, 20),
    "signs": lambda rng, *shape: np.sign(rng.standard_normal(shape)),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_flag_on_any_distribution(name, dtype):
    """Tiles of 16 to 128 and 1 to 4 splits, causal or not; statistics apply to normal inputs only."""
    rng, draw = np.random.default_rng(11), DISTRIBUTIONS[name]
    for tile in (16, 32, 64, 128):
        kernel = correct("attention", tile_q=tile, tile_k=tile)
        contract = Contract(dtype=dtype).with_options_of(kernel)
        session = Session(kernel, contract)
        for splits in (1, 2, 3, 4):
            sizes = ((2, 4, 70, 64), (2, 2, 150, 64), (2, 2, 150, 64))
            arrays = [draw(rng, *size) for size in sizes]
            causal = True if splits % 2 else None
            p = problem(contract, *arrays, causal=causal, num_splits=splits, normal=name == "normal")
            findings = judge(analyse(p, contract), session.call(p), contract)
            assert not findings.wrong, (tile, splits, findings.wrong)
            assert not findings.suspect, (tile, splits, findings.suspect)


@pytest.mark.parametrize("op", OPERATIONS)
def test_ids_are_unique_and_levels_grow(op):
    ids = {level: [one.id for one in checks(Contract(op=op), level)] for level in ("quick", "standard", "deep")}
    assert all(len(set(found)) == len(found) for found in ids.values())
    assert set(ids["quick"]) < set(ids["standard"]) < set(ids["deep"])
    assert all(id.startswith(f"{op}/") for id in ids["deep"])


def test_a_case_is_reproducible_from_its_id_and_seed():
    contract = Contract()
    for case in CASES.values():
        if case.level == "quick":
            once, again = case.problem(contract, 3), case.problem(contract, 3)
            other = case.problem(contract, 4)
            assert once.q.tobytes() == again.q.tobytes() and once.v.tobytes() == again.v.tobytes()
            assert once.q.shape == other.q.shape or case.name.startswith("mixture")


def test_first_numbers_stay_what_they_are():
    """A check that somebody noted down must still be the same one: change its name when it changes."""
    q = CASES["normal_plain"].problem(Contract(dtype="float64"), 0).q
    np.testing.assert_allclose(q[0, 0, 0, :2], FIRST_NUMBERS, rtol=1e-12)


FIRST_NUMBERS = [0.0711746390262216, -1.6493723992598828]


def test_every_result_has_a_verdict_and_time():
    report = check(correct("attention"), Contract(), "quick", only=lambda id: "needle" in id)
    assert {result.verdict for result in report.results} <= set(VERDICTS)
    assert all(result.seconds > 0 for result in report.results)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="level is 'fast'; wanted one of quick, standard, deep"):
        check(correct("attention"), Contract(), "fast")
    with pytest.raises(LookupError, match="the kit judges no operation 'atention'; there are: attention"):
        check(correct("attention"), Contract(op="atention"))
    with pytest.raises(TypeError, match="kernel is int; wanted something to call"):
        check(3)
