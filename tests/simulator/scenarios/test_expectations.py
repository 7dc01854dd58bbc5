"""Expectations judge by figures; outcomes are told as a table, as JUnit XML and as JSON."""

import io
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from simulator.faults import FORMS
from simulator.scenarios import outcome as oc
from simulator.scenarios.expectations import OPERATORS, Figures, judge, read
from simulator.scenarios.metrics import METRICS

HOUR_MS = 3_600_000
FIGURES = Figures(
    fleet={"availability": 0.98765, "lost_access.jam": 41.5 * HOUR_MS, "facts": 1_000, "residual": 0},
    dispensers={"HD-001": {"facts": 12}},
    audit_clean=True,
)
DOCS = (Path(__file__).parents[3] / "docs" / "scenarios.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "held", "measured"),
    [
        ("audit clean", True, "clean"),
        ("residual == 0", True, "0 packs"),
        ("residual != 0 packs", False, "0 packs"),
        ("availability >= 98 %", True, "98.765 %"),
        ("availability>=0.99", False, "0.98765"),
        ("lost_access.jam <= 40 h", False, "41.5 h"),
        ("lost_access.jam <= 2 d", True, "1.729167 d"),
        ("facts > 1000", False, "1000"),
        ("facts[HD-001] < 13", True, "12"),
        ("requests >= 0", False, "not measured"),
    ],
)
def test_a_clause_is_judged_beside_what_was_measured(text: str, held: bool, measured: str) -> None:
    judged = judge(read(text), FIGURES)
    assert (judged.held, judged.measured) == (held, measured)


def test_an_audit_that_found_something_says_what() -> None:
    judged = judge(read("audit clean"), Figures(audit_clean=False, audit_found=["HD-001 slot 2: balance", "another"]))
    assert (judged.held, judged.measured) == (False, "2 findings: HD-001 slot 2: balance")


def test_what_only_a_ledger_can_tell_is_not_judged_without_one() -> None:
    without = Figures(fleet={"facts": 3})
    assert [judge(read(text), without).held for text in ("audit clean", "residual == 0", "faults.NET_LOSS >= 1")] == [
        None
    ] * 3
    assert judge(read("requests >= 1"), without).held is False


@given(st.sampled_from(sorted(OPERATORS)), st.integers(-1_000, 1_000), st.integers(-1_000, 1_000))
def test_operators_mean_what_they_mean_elsewhere(name: str, measured: int, wanted: int) -> None:
    judged = judge(read(f"facts {name} {wanted}"), Figures(fleet={"facts": measured}))
    assert judged.held == OPERATORS[name](measured, wanted)


def an_outcome(name: str = "it", **figures: float) -> oc.Outcome:
    clauses = [read("facts >= 10"), read("availability[HD-001] >= 50 %"), read("audit clean")]
    judged = [judge(clause, Figures(fleet=figures)) for clause in clauses]
    return oc.Outcome(name, 7, 2.0, 3, 12, 1.5, judged, replay="dispenser-fleet simulate it --seed 7")


def test_junit_has_a_suite_a_run_and_a_case_an_expectation_with_the_replay_in_a_failure() -> None:
    root = ET.fromstring(oc.junit([an_outcome(facts=12), an_outcome("other", facts=9)]))
    first, second = root.findall("testsuite")
    assert first.get("name") == "it[seed-7]"
    assert [second.get(name) for name in ("tests", "failures", "skipped")] == ["3", "2", "1"]
    cases = second.findall("testcase")
    assert [case.get("name") for case in cases] == ["facts >= 10", "availability[HD-001] >= 50 %", "audit clean"]
    failure = cases[0].find("failure")
    assert failure is not None
    assert failure.get("message") == "measured 9"
    assert "dispenser-fleet simulate it --seed 7" in (failure.text or "")
    assert cases[2].find("skipped") is not None


def test_the_table_shows_clauses_as_they_are_written() -> None:
    console = Console(file=io.StringIO(), width=120)
    oc.print_table(replace(an_outcome(facts=12)), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "availability[HD-001] >= 50 %" in text
    assert "needs a server" in text


def test_json_tells_everything_that_the_table_does() -> None:
    told = an_outcome(facts=12).to_json()
    assert (told["seed"], told["passed"], told["replay"]) == (7, False, "dispenser-fleet simulate it --seed 7")
    assert told["expectations"][0] == {"text": "facts >= 10", "measured": "12", "held": True}


def test_the_documentation_lists_every_metric_its_members_and_every_kind_and_no_other() -> None:
    rows = [line.split("|")[1].strip().strip("`") for line in DOCS.splitlines() if line.startswith("| `")]
    assert set(rows) >= set(METRICS) | set(FORMS)
    assert {row for row in rows if "_outage" not in row} <= set(METRICS) | set(FORMS) | {"lot_recall", "miscount"} | {
        "all", "30 s", "day 3", "5 per 1000 vends",
    }  # fmt: skip
    for metric in METRICS.values():
        line = next(line for line in DOCS.splitlines() if line.startswith(f"| `{metric.name}`"))
        if metric.name != "faults":
            assert all(member in line for member in metric.members), metric.name
