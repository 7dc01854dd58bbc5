"""What a run came to, as a table, as JUnit XML and as JSON."""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from simulator.scenarios.expectations import Judged


@dataclass
class Outcome:
    """One scenario played with one seed. `replay` is the command that plays it again."""

    name: str
    seed: int
    days: float
    dispensers: int
    facts: int
    seconds: float
    judged: list[Judged]
    findings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    replay: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing that was judged failed."""
        return not self.failed

    @property
    def failed(self) -> list[Judged]:
        """The expectations that do not hold."""
        return [one for one in self.judged if one.held is False]

    def words(self) -> str:
        """Say what failed, and how to see it again."""
        lines = [f"{self.name}, seed {self.seed}: {len(self.failed)} of {len(self.judged)} expectations do not hold"]
        lines += [f"  {one.expectation.text}: measured {one.measured}" for one in self.failed]
        lines += [f"  audit: {finding}" for finding in self.findings[:10]]
        lines += [f"  problem: {problem}" for problem in self.problems[:10]]
        return "\n".join([*lines, f"replay: {self.replay}"])

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        expectations = [
            {"text": one.expectation.text, "measured": one.measured, "held": one.held} for one in self.judged
        ]
        return {
            "scenario": self.name, "seed": self.seed, "passed": self.passed, "days": self.days,
            "dispensers": self.dispensers, "facts": self.facts, "seconds": round(self.seconds, 2),
            "expectations": expectations, "audit": self.findings, "problems": self.problems, "replay": self.replay,
        }  # fmt: skip


VERDICTS = {True: "[green]holds[/]", False: "[bold red]FAILS[/]", None: "[yellow]needs a server[/]"}


def print_table(outcome: Outcome, console: Console) -> None:
    """Show every expectation beside what was measured."""
    of = f"seed {outcome.seed}, {outcome.days:g} days, {outcome.dispensers} dispensers, {outcome.facts} facts"
    console.print(f"[bold]{outcome.name}[/]: {of}, {outcome.seconds:.1f} s", soft_wrap=True, highlight=False)
    table = Table()
    for column in ("expected", "measured", ""):
        table.add_column(column, overflow="fold")
    for one in outcome.judged:
        # Text of a file is no markup: `lost_access[HD-001]` is not a style.
        table.add_row(_plain(one.expectation.text), _plain(one.measured), VERDICTS[one.held])
    console.print(table)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def junit(outcomes: Sequence[Outcome]) -> str:
    """Return JUnit XML: a suite for every run, a case for every expectation."""
    root = ET.Element("testsuites")
    for outcome in outcomes:
        suite = ET.SubElement(root, "testsuite", name=f"{outcome.name}[seed-{outcome.seed}]")
        skipped = sum(one.held is None for one in outcome.judged)
        _set(suite, tests=len(outcome.judged), failures=len(outcome.failed), errors=0, skipped=skipped)
        _set(suite, time=f"{outcome.seconds:.2f}")
        properties = ET.SubElement(suite, "properties")
        for name, value in (("seed", outcome.seed), ("days", outcome.days), ("facts", outcome.facts)):
            ET.SubElement(properties, "property", name=name, value=str(value))
        for one in outcome.judged:
            case = ET.SubElement(suite, "testcase", classname=f"scenarios.{outcome.name}", name=one.expectation.text)
            # The time of the run, shared out: many viewers add it up.
            case.set("time", f"{outcome.seconds / len(outcome.judged):.3f}")
            if one.held is None:
                ET.SubElement(case, "skipped", message="needs a server")
            elif not one.held:
                failure = ET.SubElement(case, "failure", message=f"measured {one.measured}", type="expectation")
                failure.text = outcome.words()
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _set(element: ET.Element, **values: object) -> None:
    for name, value in values.items():
        element.set(name, str(value))
