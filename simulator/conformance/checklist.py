"""The checklist: one entry for every rule that docs/protocol.md names, and what was seen of it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final
from xml.etree import ElementTree as ET

SEEN_PARTS_MAX: Final = 8
BY_RESTART: Final = "needs --restart-command"
BY_DOOR: Final = "needs --door-command"


@dataclass(frozen=True, slots=True)
class Rule:
    """What is looked at, why it may not have been observed, and what no wire can show."""

    checked: str
    needs: str
    beyond: str = ""


RULES: Final[dict[str, Rule]] = {
    "TOPIC-OWN": Rule(
        "headers name the sender; what is sent to another dispenser is not obeyed",
        "no batch came",
        "what is published on topics of others: the broker's access list has to forbid it",
    ),
    "SUBSCRIBE-FIRST": Rule(
        "an order sent at the sight of `online` arrives", f"no session began: {BY_RESTART}, or WATCHDOG"
    ),
    "SEQ": Rule("numbers without a gap, never given twice", "no batch came"),
    "STREAM": Rule(
        "an id of 32 hexadecimal digits; the first fact is `started`, `new_stream`",
        "no stream began",
        "that the id is random",
    ),
    "CHAIN": Rule("the chain of digests, computed again from the bytes", "no batch came"),
    "DURABLE": Rule(
        "what was said before a power cut is there after it, byte for byte",
        BY_RESTART,
        "that it reached the disk: a kill -9 spares what the kernel still holds, only pulling the plug does not",
    ),
    "INTENT": Rule(
        "a vend cut off by a power cut is settled, once",
        f"{BY_RESTART} and a board that counts its life",
        "a full or broken disk: no motor may turn then",
    ),
    "KEEP": Rule(
        "facts come again although the broker took them, until the server has them", BY_RESTART, "the 90 days"
    ),
    "STARTED": Rule("a start of the agent is a fact", BY_RESTART),
    "NO-IDENTITY": Rule(
        "no field or value that would name a person (by a list of words and patterns)",
        "no message came",
        "a person behind a harmless name: somebody has to read the messages",
    ),
    "LIMITS": Rule("bytes of facts and batches, facts of a batch", "no batch came"),
    "PREV-DIGEST": Rule("`prev_digest` is that of the fact before", "no batch came"),
    "RECUT": Rule("facts that come again in other batches have the same bytes", "nothing came again"),
    "IN-ORDER": Rule("batches in the order of their numbers, few ahead of the answers", "no batch came"),
    "ACK-ENDS-PENDING": Rule("what is acknowledged does not come again, what is not does", "nothing came again"),
    "GO-BACK": Rule("three `gap` answers bring the rest once, from `through_seq + 1`", "no fact could be called for"),
    "NACK-SMALLER": Rule("after a `nack` a pause, then smaller batches", "no batch of several facts to refuse"),
    "FORK-STOPS": Rule("after a `fork` nothing more of the stream, until `new_stream`", "no fact could be called for"),
    "TIMEOUT": Rule(
        "without an answer the window comes again, in smaller batches, later each time",
        "no facts to withhold",
        "the jitter: a fleet shows it, one dispenser does not",
    ),
    "WATCHDOG": Rule("60 s of sending without an answer make a new session", "no facts to withhold"),
    "EPOCH": Rule("a lower cursor counts with a higher epoch only; a lower epoch never", "no fact could be called for"),
    "OLDEST": Rule(
        "a stream whose beginning is not kept any more goes on from a batch that says `oldest`",
        "everything from 1 was still there",
        "a store grown full during the run",
    ),
    "OTHER-STREAM": Rule("an answer for another stream changes nothing", "GO-BACK must work to see it"),
    "ACK-DIGEST": Rule(
        "an answer with the digest of another history ends no pending fact", "GO-BACK must work to see it"
    ),
    "WILL": Rule(
        "the end of a connection is told by its last will; `status` is retained",
        BY_RESTART,
        "the retain flag of the will itself: the next session has taken its place",
    ),
    "SESSION": Rule("session numbers grow", f"no session began: {BY_RESTART}, or WATCHDOG"),
    "ORDER-BOUND": Rule("orders for another stream or session are refused and not run", "no answer to any order"),
    "NEW-STREAM": Rule(
        "`new_stream` is run whatever session it names, and a fresh connection announces the new stream",
        "no fact could be called for",
    ),
    "ORDER-EXPIRY": Rule(
        "an order past its time is answered `expired`",
        "no answer to any order",
        "that a change of the wall clock moves nothing",
    ),
    "ORDER-ONCE": Rule("the same order again does nothing, also after a power cut", "no answer to any order"),
    "ORDER-ANSWER": Rule("every order is answered by `order_result`", "no order was sent"),
    "DESIRED-WHOLE": Rule(
        "applied whole and answered, or not at all; older and repeated ones change nothing", "not sent"
    ),
    "EXPIRED-NEVER": Rule(
        "no pack of an expired, blocked or unknown lot",
        "no vend of a good lot to compare with",
        "a lot that expires at the midnight to come",
    ),
    "BOOKS-REFOLD": Rule("own later facts on top of the books; foreign books refused", "not sent"),
    "DOOR-CODE": Rule(
        "six digits, the same in `door_opened` and `door_closed`", BY_DOOR, "that a screen shows the code"
    ),
    "DOOR-SERVES-NOBODY": Rule(
        "no vend between the two, except as a test", f"{BY_DOOR} and --ask-command", "the service key"
    ),
    "IGNORE-UNKNOWN": Rule("unknown fields of orders, answers, desired states and books are ignored", "not sent"),
}
SLOW: Final = ("NACK-SMALLER", "TIMEOUT", "WATCHDOG")
"""These wait for timeouts of the implementation; `--quick` leaves them out."""


class Verdict(StrEnum):
    """How a rule fared."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_OBSERVED = "not observed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the checklist."""

    rule: str
    verdict: Verdict
    seen: str


@dataclass(slots=True)
class _Entry:
    held: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    skipped: bool = False


class Checklist:
    """Collects what was seen of each rule; one breach outweighs everything that held."""

    def __init__(self) -> None:
        self._entries = {rule: _Entry() for rule in RULES}
        self.unreadable: list[str] = []
        """Messages that no version of the protocol can read: they belong to no rule, and fail the run."""

    def expect(self, rule: str, holds: bool, held: str, broken: str = "") -> bool:
        """Note one observation; returns whether the rule held."""
        parts = self._entries[rule].held if holds else self._entries[rule].broken
        text = held if holds else broken or f"not so: {held}"
        if text not in parts and len(parts) < SEEN_PARTS_MAX:
            parts.append(text)
        return holds

    def unobserved(self, rule: str, why: str) -> None:
        """Note why a part of a rule could not be seen."""
        self._entries[rule].unseen.append(why)

    def skip(self, rules: Iterable[str]) -> None:
        """Leave rules out."""
        for rule in rules:
            self._entries[rule].skipped = True

    def failed(self) -> list[str]:
        """Name the rules that were broken."""
        return [result.rule for result in self.results() if result.verdict is Verdict.FAILED]

    def results(self) -> list[Result]:
        """Return one result for every rule, in the order of the protocol."""
        return [self._result(rule, entry) for rule, entry in self._entries.items()]

    @staticmethod
    def _result(rule: str, entry: _Entry) -> Result:
        if entry.broken:
            return Result(rule, Verdict.FAILED, "; ".join(entry.broken))
        if entry.held:
            unseen = [f"not observed: {why}" for why in entry.unseen]
            return Result(rule, Verdict.PASSED, "; ".join(entry.held + unseen))
        if entry.skipped:
            return Result(rule, Verdict.SKIPPED, "waits for timeouts: left out by --quick")
        return Result(rule, Verdict.NOT_OBSERVED, "; ".join(entry.unseen) or RULES[rule].needs)

    @property
    def good(self) -> bool:
        """Whether nothing failed."""
        return not self.failed() and not self.unreadable

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        checks = [
            {"rule": r.rule, "verdict": str(r.verdict), "seen": r.seen, "checked": RULES[r.rule].checked}
            for r in self.results()
        ]
        return {"good": self.good, "checks": checks, "unreadable": self.unreadable}

    def as_junit(self, suite: str) -> bytes:
        """Return the checklist as JUnit XML, a test case for each rule."""
        cases = [(r.rule, r.verdict, r.seen) for r in self.results()]
        cases += [("readable", Verdict.FAILED, text) for text in self.unreadable]
        top = ET.Element("testsuites")
        failures = sum(verdict is Verdict.FAILED for _, verdict, _ in cases)
        skipped = sum(verdict in {Verdict.SKIPPED, Verdict.NOT_OBSERVED} for _, verdict, _ in cases)
        counts = {"tests": len(cases), "failures": failures, "errors": 0, "skipped": skipped}
        named = {"name": suite} | {name: str(count) for name, count in counts.items()}
        group = ET.SubElement(top, "testsuite", named)
        for name, verdict, seen in cases:
            case = ET.SubElement(group, "testcase", classname=suite, name=name)
            if verdict is Verdict.FAILED:
                ET.SubElement(case, "failure", message=seen)
            elif verdict is not Verdict.PASSED:
                ET.SubElement(case, "skipped", message=f"{verdict}: {seen}")
            else:
                ET.SubElement(case, "system-out").text = seen
        written: bytes = ET.tostring(top, encoding="utf-8", xml_declaration=True)
        return written

    def as_table(self) -> str:
        """Return the checklist for reading."""
        results = self.results()
        width = max(map(len, RULES))
        lines = [f"{r.verdict:<12}  {r.rule:<{width}}  {r.seen}" for r in results]
        lines += [f"{'unreadable':<12}  {'':<{width}}  {text}" for text in self.unreadable]
        counts = {verdict: sum(r.verdict is verdict for r in results) for verdict in Verdict}
        lines.append(", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count))
        if skipped := [r.rule for r in results if r.verdict is Verdict.SKIPPED]:
            lines.append(f"skipped by --quick: {', '.join(skipped)}")
        return "\n".join(lines)
