"""Every backend that is installed passes every case of refattn.testing, in every operation that it offers."""

import pytest

from refattn import dispatch
from refattn.testing import check_backend
from refattn.testing.bounds import BOUNDS
from refattn.testing.calls import FAMILIES
from refattn.testing.conformance import false_limits


@pytest.mark.parametrize("operation", sorted(dispatch.OPERATIONS))
def test_backend(backend, operation):
    report = check_backend(backend, [operation], level="standard")
    assert report.ok, str(report)
    assert report.results


def test_limits_name_what_there_is(backend):
    assert false_limits(getattr(dispatch.load(backend), "LIMITS", {})) == []


@pytest.mark.parametrize("operation", sorted(dispatch.OPERATIONS))
def test_the_reference_in_low_precision(operation):
    report = check_backend("numpy", [operation], level="quick")
    assert report.ok, str(report)
    assert report.count("PASS") + report.count("NOT RUN") == len(report.results)
    assert report.count("PASS") > 10


@pytest.mark.slow
@pytest.mark.parametrize("operation", sorted(dispatch.OPERATIONS))
def test_the_reference_in_every_case(operation):
    report = check_backend("numpy", [operation], level="standard")
    assert report.ok, str(report)
    assert report.count("PASS") + report.count("NOT RUN") == len(report.results)


def test_every_operation_has_cases_and_bounds():
    assert set(FAMILIES) == set(dispatch.OPERATIONS)
    assert set(BOUNDS) == set(dispatch.OPERATIONS)
