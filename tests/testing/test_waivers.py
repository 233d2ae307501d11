"""The ledger of waivers: what it accepts, what it refuses, and when an entry must go."""

import datetime
import re

import pytest

from refattn.testing.contract import Contract
from refattn.testing.verdicts import Report, Result
from refattn.testing.waivers import WaiverRule, apply_waivers, load_waivers

TODAY = datetime.date(2026, 5, 1)
GOOD = 'check = "attention/ties"\nreason = "known"\nlink = "#12"\n'


@pytest.fixture
def ledger(tmp_path):
    """Write a ledger and return its path."""

    def write(text):
        path = tmp_path / "waivers.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def report(subject="flash_tiled", contract=None, **verdicts):
    results = [Result(f"attention/{name}", verdict.replace("_", " ")) for name, verdict in verdicts.items()]
    return Report(subject, contract or Contract(dtype="bfloat16"), "quick", 0, results)


def rule(check="attention/ties", **others):
    return WaiverRule(check, "known", "#12", **others)


def test_a_ledger_is_read(ledger):
    path = ledger(
        f"[[waiver]]\n{GOOD}\n[[waiver]]\n"
        'check = "attention/needle_*"\nreason = "slow path"\nlink = "https://example.org/issues/3"\n'
        'kernel = "flash_*"\ndtype = "float16"\nexpires = 2030-06-30\n'
    )
    first, second = load_waivers(str(path))
    assert first == WaiverRule("attention/ties", "known", "#12", source=f"waiver 1 of {path}")
    assert (second.kernel, second.dtype, second.expires) == ("flash_*", "float16", datetime.date(2030, 6, 30))
    assert load_waivers(ledger("")) == []


@pytest.mark.parametrize("link", ["#1", "owner/repo#12", "http://a.b/c", "https://example.org/x?y=1#z"])
def test_links(ledger, link):
    text = GOOD.replace("#12", link)
    assert load_waivers(ledger(f"[[waiver]]\n{text}"))[0].link == link


@pytest.mark.parametrize(
    ("entry", "kind", "message"),
    [
        (GOOD.replace('reason = "known"\n', ""), ValueError, "waiver 2 of {path}: no reason"),
        (GOOD.replace('link = "#12"\n', ""), ValueError, "waiver 2 of {path}: no link"),
        (GOOD.replace("known", " "), ValueError, "waiver 2 of {path}: reason is empty"),
        (GOOD.replace("attention/ties", ""), ValueError, "waiver 2 of {path}: check is empty"),
        (GOOD.replace('"known"', "3"), TypeError, "waiver 2 of {path}: reason is 3; wanted a string"),
        (GOOD.replace("#12", "ask Ann"), ValueError, "waiver 2 of {path}: link is 'ask Ann'; wanted a URL, #12"),
        (GOOD.replace("#12", "https://"), ValueError, "waiver 2 of {path}: link is 'https://'"),
        (GOOD.replace("#12", "javascript:x#1"), ValueError, "waiver 2 of {path}: link is"),
        (GOOD + "until = 2030-01-01", ValueError, "waiver 2 of {path}: unknown 'until'; wanted check, reason, link"),
        (GOOD + 'expires = "2030-01-01"', TypeError, "waiver 2 of {path}: expires is '2030-01-01'; wanted a date"),
        (GOOD + "expires = 2030-01-01T00:00:00", TypeError, "waiver 2 of {path}: expires is datetime"),
        (GOOD + 'dtype = "half"', ValueError, "waiver 2 of {path}: dtype is 'half'; wanted one of float32"),
        ("check = attention", ValueError, "{path} is not TOML: Invalid value (at line 6"),
    ],
)
def test_an_error_names_the_file_and_the_entry(ledger, entry, kind, message):
    path = ledger(f"[[waiver]]\n{GOOD}[[waiver]]\n{entry}")
    with pytest.raises(kind, match=re.escape(message.format(path=path))):
        load_waivers(path)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("[waiver]\n" + GOOD, TypeError, "waiver must be tables"),
        ("waiver = 3", TypeError, "waiver must be tables"),
        ("[[waivers]]\n" + GOOD, ValueError, "unknown 'waivers'"),
    ],
)
def test_other_layouts_are_refused(ledger, text, kind, message):
    with pytest.raises(kind, match=message):
        load_waivers(ledger(text))


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "waivers.toml").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="is not TOML"):
        load_waivers(tmp_path / "waivers.toml")


@pytest.mark.parametrize("verdict", ["FAIL", "SUSPECT", "UNDECLARED"])
def test_what_is_waived_does_not_count(verdict):
    one = report(ties=verdict, plain="PASS")
    assert not one.ok
    apply_waivers(one, [rule(expires=TODAY)], TODAY)
    assert one.ok and one.complaints == []
    waiver = one.results[0].waiver
    assert (waiver.check, waiver.reason, waiver.link, waiver.expires) == ("attention/ties", "known", "#12", TODAY)
    assert one.results[1].waiver is None


def test_other_checks_are_not_waived():
    one = report(ties="FAIL", window="FAIL")
    apply_waivers(one, [rule()], TODAY)
    assert [result.check for result in one.failures] == ["attention/window"]


def test_a_pattern_waives_many_and_may_match_some_that_pass():
    one = report(needle_1="FAIL", needle_2="PASS", needle_3="SUSPECT", needle_4="NOT_RUN")
    apply_waivers(one, [rule("attention/needle_*")], TODAY)
    assert one.ok and [result.waiver is not None for result in one.results] == [True, False, True, False]


def test_an_id_with_brackets_matches_itself():
    one = Report("flash", None, "quick", 0, [Result("rope[17]", "FAIL")])
    apply_waivers(one, [rule("rope[17]")], TODAY)
    assert one.ok


def test_a_waiver_that_is_not_needed_any_more_must_go():
    one = report(ties="PASS", ties_2="PASS")
    apply_waivers(one, [rule(source="waiver 1 of w.toml"), rule("attention/ties*")], TODAY)
    assert not one.ok and one.failures == []
    assert one.complaints == [
        "the waiver for attention/ties (waiver 1 of w.toml) is not needed any more: the check passes; "
        "the reason was: known (#12)",
        "the waiver for attention/ties* is not needed any more: all 2 checks pass; the reason was: known (#12)",
    ]


def test_a_waiver_for_no_check_must_go():
    one = report(plain="PASS")
    apply_waivers(one, [rule()], TODAY)
    assert one.complaints == ["the waiver for attention/ties matches no check; the reason was: known (#12)"]


def test_nothing_is_known_of_what_was_not_run():
    one = report(ties="NOT_RUN")
    apply_waivers(one, [rule("attention/ties*")], TODAY)
    assert one.ok and all(result.waiver is None for result in one.results)


def test_what_the_contract_rules_out_keeps_no_waiver_alive():
    one = report(ties="NOT_RUN", ties_2="PASS")
    apply_waivers(one, [rule("attention/ties*")], TODAY)
    assert one.complaints == [
        "the waiver for attention/ties* is not needed any more: the check passes; the reason was: known (#12)"
    ]


def test_an_expired_waiver_counts_no_more():
    one = report(ties="FAIL")
    apply_waivers(one, [rule(expires=TODAY - datetime.timedelta(1))], TODAY)
    assert len(one.failures) == 1
    assert one.complaints == ["the waiver for attention/ties expired on 2026-04-30; the reason was: known (#12)"]


def test_the_present_day_is_the_default():
    one = report(ties="FAIL")
    apply_waivers(one, [rule(expires=datetime.date(2000, 1, 1))])
    assert len(one.failures) == len(one.complaints) == 1


@pytest.mark.parametrize("others", [{"kernel": "paged_*"}, {"dtype": "float16"}])
def test_a_waiver_for_another_kernel_or_dtype_is_left_alone(others):
    one = report(ties="FAIL", plain="PASS")
    apply_waivers(one, [rule(**others), rule("attention/plain", **others), rule("attention/none", **others)], TODAY)
    assert len(one.failures) == 1 and one.complaints == []


def test_a_waiver_for_this_kernel_and_dtype_counts():
    one = report(ties="FAIL")
    apply_waivers(one, [rule(kernel="flash_*", dtype="bfloat16")], TODAY)
    assert one.ok


def test_without_a_contract_the_dtype_is_part_of_the_id():
    results = [Result("rope/plain/float16", "FAIL"), Result("rope/plain/float32", "FAIL")]
    one = Report("numba", None, "quick", 0, results)
    apply_waivers(one, [rule("rope/plain/*", dtype="float16")], TODAY)
    assert [result.check for result in one.failures] == ["rope/plain/float32"]


def test_applying_twice_changes_nothing():
    one = report(ties="FAIL", plain="PASS")
    rules = [rule(), rule("attention/plain")]
    apply_waivers(one, rules, TODAY)
    results, complaints = list(one.results), list(one.complaints)
    apply_waivers(one, rules, TODAY)
    assert (one.results, one.complaints) == (results, complaints)
