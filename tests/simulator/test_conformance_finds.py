"""One changed line in the example device, one rule broken: the checklist names that rule. A rule that cannot fail checks nothing."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import copy
from typing import Final

import pytest

from fleet_server.embedded import BrokerAddress
from simulator.conformance.checklist import RULES, SLOW
from tests.simulator.bench import FOREIGN, Examined, examine, foreign_device
from tests.simulator.test_conformance import DEFECTS

SIDE_BY_SIDE: Final = 8
NEVER_SEEN: Final = {"OLDEST"}
"""It takes a store of more than 90 days."""
CHANGES: Final[dict[str, tuple[str, str]]] = {
    "TOPIC-OWN": ('"dispenser_id": self.options.dispenser,', '"dispenser_id": self.options.dispenser + "X",'),
    "STREAM": ('keep([self.started("new_stream")], stream=', 'keep([self.started("start")], stream='),
    "CHAIN": ("sha256(self.digests[-1] + line.encode())", "sha256(line.encode() + self.digests[-1])"),
    "PREV-DIGEST": ("digests[self.next - 1].hex()", "digests[max(0, self.next - 2)].hex()"),
    "DURABLE": ("        self.file.flush()\n", "        len(self.lines) > 5 or self.file.flush()\n"),
    "STARTED": ('journal.keep([self.started("start")])', "pass"),
    "NO-IDENTITY": ('{"clock_trusted": True,', '{"clock_trusted": True, "user_name": "Li",'),
    "LIMITS": ("4, 100, 16 * 1024", "4, 150, 60 * 1024"),
    "RECUT": ("lines.append(line)", 'lines.append(line if self.resent_from is None else line.replace(b": ", b":"))'),
    "IN-ORDER": ("4, 100, 16 * 1024", "40, 2, 16 * 1024"),
    "ACK-ENDS-PENDING": (
        'self.journal.get("acked") if through is None',
        'max(0, self.journal.get("acked") - 1) if through is None',
    ),
    "NACK-SMALLER": ('"nack":\n            self.smaller()', '"nack":\n            self.rewind()'),
    "FORK-STOPS": ("self.forked, self.in_flight = True, []", "self.forked, self.in_flight = False, []"),
    "WATCHDOG": ("self.silent_since_s > self.options.silence", "self.silent_since_s > 1_000"),
    "EPOCH": (' or epoch < journal.get("epoch"):', ":"),
    "ACK-DIGEST": (' and said["digest"] != journal.digests[through].hex():', " and False:"),
    "WILL": ('self.topic("status"), self.status(online=False)', 'self.topic("will"), self.status(online=False)'),
    "SESSION": ('session=self.journal.get("session") + 1', "session=1"),
    "ORDER-BOUND": (
        'if (order["stream_id"], session) != (journal.stream, journal.get("session")):',
        "if False:",
    ),
    "NEW-STREAM": ('raise OSError("a new stream: a fresh connection announces it")', "pass"),
    "ORDER-EXPIRY": ('elif age_ms > order["expires_after_ms"]:', "elif False:"),
    "ORDER-ANSWER": ('self.rewind()\n            self.answer(order_id, kind, "done", "")', "self.rewind()"),
    "DESIRED-WHOLE": ("if slots and lots:", "if True:"),
    "BOOKS-REFOLD": ("for line in journal.lines[as_of:]:", "for line in []:"),
    "DOOR-CODE": ('code = f"{secrets.randbelow(1_000_000):06d}"', 'code = "123456"'),
    "DOOR-SERVES-NOBODY": ('if self.journal.get("door", None) and not test:', "if False:"),
    "IGNORE-UNKNOWN": ("(json.loads(payload))", '({} if b"x_future" in payload else json.loads(payload))'),
}
"""rule: (what stands in the example, what stands there instead)."""


def test_every_rule_is_broken_by_some_device() -> None:
    assert CHANGES.keys() | set().union(*DEFECTS.values()) | NEVER_SEEN == RULES.keys()


@pytest.mark.parametrize("rule", CHANGES)
def test_every_change_changes_one_place_of_the_example(rule: str) -> None:
    old, new = CHANGES[rule]
    text = FOREIGN.read_text()
    assert text.count(old) == 1
    compile(text.replace(old, new), rule, "exec")


@pytest.fixture(scope="module")
def found(broker: BrokerAddress, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Examined]:
    here = tmp_path_factory.mktemp("changed")

    def examined(rule: str) -> Examined:
        store = here / rule
        store.mkdir()
        program = Path(copy(FOREIGN, store))
        copy(FOREIGN.with_name("small_mqtt.py"), store)
        program.write_text(program.read_text().replace(*CHANGES[rule]))
        device = foreign_device(store, broker, f"CHANGED-{rule}", program=program)
        return examine(device, broker, f"CHANGED-{rule}", quick=rule not in SLOW)

    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        return dict(zip(CHANGES, pool.map(examined, CHANGES), strict=True))


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("rule", CHANGES)
def test_a_changed_device_fails_by_the_name_of_the_rule(found: dict[str, Examined], rule: str) -> None:
    assert rule in found[rule].failed, found[rule].text
    assert found[rule].code == 1
