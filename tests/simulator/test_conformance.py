"""The protocol's checklist against devices in processes of their own: ours and a foreign one pass, a defect has a name."""

import re
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

import pytest

from fleet_server.embedded import BrokerAddress, EmbeddedBroker
from simulator.__main__ import main
from simulator.conformance.checklist import RULES, SLOW, Checklist, Verdict
from simulator.conformance.counterpart import Counterpart
from simulator.mqtt import BridgeError, Listener
from tests.conftest import free_port, scratch_directory
from tests.simulator.bench import FOREIGN, ROOT, Device, Examined, examine, foreign_device, server_url, shipped_agent

AGENT, AGENT_UNHURRIED, EXAMPLE = "agent", "agent-unhurried", "example"
DEFECTS: Final = {
    "forgets-on-puback": {"KEEP"},
    "restarts-numbering": {"SEQ", "STREAM"},
    "runs-orders-twice": {"ORDER-ONCE"},
    "announces-first": {"SUBSCRIBE-FIRST"},
    "turns-first": {"INTENT"},
    "obeys-any-stream": {"OTHER-STREAM"},
    "serves-expired": {"EXPIRED-NEVER"},
    "answers-every-gap": {"GO-BACK"},
    "never-repeats": {"TIMEOUT"},
}
"""Those of docs/examples/foreign_device.py, with the rules that each one breaks."""
EVERY_DAY: Final = ("forgets-on-puback", "turns-first", "obeys-any-stream")


def started(name: str, broker: BrokerAddress, store: Path, dispenser_id: str) -> Device:
    """One device under test; a vend of a defective one is long enough to be cut off on a busy machine, too."""
    if name in {AGENT, AGENT_UNHURRIED}:
        return shipped_agent(store, broker, dispenser_id)
    defect = () if name == EXAMPLE else ("--vend", "1.5", "--defect", name)
    return foreign_device(store, broker, dispenser_id, *defect)


def examined(name: str, broker: BrokerAddress, here: Path) -> Examined:
    """One device, with its timeouts where they are short or there is time."""
    (here / name).mkdir()
    device = started(name, broker, here / name, name.upper())
    return examine(device, broker, name.upper(), quick=name not in {AGENT_UNHURRIED, EXAMPLE, "never-repeats"})


def all_at_once(broker: BrokerAddress, here: Path, names: list[str]) -> dict[str, Examined]:
    """Side by side: an examination is mostly waiting."""
    with ThreadPoolExecutor(len(names)) as pool:
        return dict(zip(names, pool.map(lambda name: examined(name, broker, here), names), strict=True))


@pytest.fixture(scope="module")
def every_day(broker: BrokerAddress, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Examined]:
    return all_at_once(broker, tmp_path_factory.mktemp("every-day"), [AGENT, EXAMPLE, *EVERY_DAY])


@pytest.fixture(scope="module")
def soaked(broker: BrokerAddress, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Examined]:
    return all_at_once(broker, tmp_path_factory.mktemp("soaked"), [AGENT_UNHURRIED, *DEFECTS])


def assert_passed(device: Examined, *, left_out: Iterable[str] = ()) -> None:
    """A new store keeps everything (OLDEST); whether the motor turned when the power was cut (INTENT) is up to this machine."""
    assert (device.code, device.failed, device.unreadable, device.junit_failures) == (0, set(), [], set()), device.text
    assert device.rules(Verdict.SKIPPED, Verdict.NOT_OBSERVED) - {"INTENT"} == {"OLDEST", *left_out}, device.text


def assert_found(device: Examined, rules: set[str]) -> None:
    assert (device.code, device.failed, device.unreadable, device.junit_failures) == (1, rules, [], rules), device.text


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_shipped_agent_passes(every_day: dict[str, Examined]) -> None:
    assert_passed(every_day[AGENT], left_out=SLOW)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_foreign_device_passes_with_its_timeouts(every_day: dict[str, Examined]) -> None:
    assert_passed(every_day[EXAMPLE])


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("defect", EVERY_DAY)
def test_a_defect_is_found_by_the_rules_that_it_breaks(every_day: dict[str, Examined], defect: str) -> None:
    assert_found(every_day[defect], DEFECTS[defect])


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("defect", DEFECTS)
def test_every_defect_is_found_by_the_rules_that_it_breaks(soaked: dict[str, Examined], defect: str) -> None:
    assert_found(soaked[defect], DEFECTS[defect])


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_the_shipped_agent_passes_with_its_timeouts(soaked: dict[str, Examined]) -> None:
    assert_passed(soaked[AGENT_UNHURRIED])


# ---------------------------------------------------------------- the list and its prose


def test_every_named_rule_of_the_protocol_is_on_the_checklist() -> None:
    named = re.findall(r"\[([A-Z][A-Z-]+)\]", (ROOT / "docs" / "protocol.md").read_text())
    assert set(named) == RULES.keys()


def test_the_documentation_tells_of_every_rule_what_is_checked_and_what_no_wire_can_show() -> None:
    rows = set((ROOT / "docs" / "conformance.md").read_text().splitlines())
    due = {f"| `{name}` | {rule.checked} | {rule.beyond} |".replace("|  |", "| |") for name, rule in RULES.items()}
    assert due - rows == set()


def test_the_example_knows_the_defects_that_are_looked_for() -> None:
    text = subprocess.run([sys.executable, FOREIGN, "--help"], capture_output=True, text=True, check=True).stdout
    offered = re.search(r"--defect \{(.*?)\}", text, re.DOTALL)
    assert offered is not None
    assert set(re.sub(r"\s", "", offered[1]).split(",")) == DEFECTS.keys()


def test_a_breach_outweighs_what_held_and_all_forms_say_so() -> None:
    checklist = Checklist()
    checklist.expect("SEQ", True, "1 to 9 without a gap")
    checklist.expect("CHAIN", True, "adds up")
    checklist.expect("CHAIN", False, "", "before 5: <other>")
    checklist.skip(["WATCHDOG"])
    checklist.unreadable.append("fact 3: no such kind")
    assert (checklist.failed(), checklist.good) == (["CHAIN"], False)
    as_json = {check["rule"]: check["verdict"] for check in checklist.as_json()["checks"]}
    assert (as_json["SEQ"], as_json["CHAIN"], as_json["STARTED"]) == ("passed", "failed", "not observed")
    suite = ET.fromstring(checklist.as_junit("HD-1"))[0]
    cases = {case.attrib["name"]: [(part.tag, part.attrib.get("message")) for part in case] for case in suite}
    assert suite.attrib["tests"] == str(len(RULES) + 1)
    assert (suite.attrib["failures"], suite.attrib["skipped"]) == ("2", str(len(RULES) - 2))
    assert cases["CHAIN"] == [("failure", "before 5: <other>")]
    assert cases["readable"] == [("failure", "fact 3: no such kind")]
    assert cases["WATCHDOG"][0][0] == cases["STARTED"][0][0] == "skipped"
    assert cases["SEQ"] == [("system-out", None)]
    assert "failed        CHAIN               before 5: <other>" in checklist.as_table()


# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--dispenser", "hd/001", "dispenser_id 'hd/001': expected 1 to 32 of A-Z, 0-9"),
        ("--broker", "http://h", "--broker http://h: expected mqtt://USER:PASSWORD@HOST:PORT"),
        ("--broker", "mqtt://a:secret@h:x", "--broker mqtt://h: expected mqtt://USER:PASSWORD@HOST:PORT"),
        ("--patience", "nan", "--patience = nan: expected seconds above 0"),
        ("--patience", "soon", "argument --patience: invalid float value: 'soon'"),
        ("--ask-command", "press", "--ask-command = 'press': expected {slot} in it"),
        ("--door-command", "door", "--door-command = 'door': expected {position} in it"),
        ("--junit", "/no/such/x.xml", "--junit /no/such/x.xml: expected a file in a directory that is there"),
    ],
)
def test_a_wrong_argument_ends_with_2_and_one_clear_line(
    option: str, value: str, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SIMULATOR_BROKER_URL", raising=False)
    try:
        code = main(["conformance", "--broker", "mqtt://a:b@127.0.0.1:1", "--dispenser", "HD-001", option, value])
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert words in err.splitlines()[-1]
    assert "secret" not in err


def test_a_broker_that_is_not_there_ends_with_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMULATOR_BROKER_URL", f"mqtt://a:secret@127.0.0.1:{free_port()}")
    monkeypatch.setattr("simulator.conformance.command.BROKER_S_MAX", 0.5)
    assert main(["conformance", "--broker", "mqtt://x:y@z", "--dispenser", "HD-001"]) == 2
    assert capsys.readouterr().err.endswith("nothing answers there\n")


def test_a_broker_that_leaves_ends_the_run_rather_than_blame_the_dispenser() -> None:
    with scratch_directory() as here, EmbeddedBroker(here / "broker") as broker:
        listener = Listener(server_url(broker), "HD-001")
        server = Counterpart(listener, "HD-001", Checklist())
        listener.start()
        server.settle(0.1)
    with pytest.raises(BridgeError, match="connection to the broker was lost"):
        server.settle(60)
    listener.stop()
