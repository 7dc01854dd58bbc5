"""A scenario file says what it means, or is told at which line and key it does not."""

from datetime import datetime, timedelta

import jsonschema_rs
import pytest
import yaml

from simulator.faults import Injection, Kind
from simulator.scenarios import injections
from simulator.scenarios.command import schema
from simulator.scenarios.form import Scenario
from simulator.scenarios.reading import SHIPPED, Mistake, ScenarioError, load, read, shipped
from simulator.world import DAY_MS, LOCAL

HOUR_MS = 3_600_000

GOOD = """\
name: two-machines
description: A network outage, a clock that jumps, and more jams than usual.
seed: 7
start: 2026-06-01
days: 8
fleet:
  sites: [HD-001, HD-002]
world:
  patience.share: 0.25
restock: {policy: rounds, every: 3 d, miscount_sd: 0}
faults:
  - kind: network_fails
    at: day 3 04:00
    for: 4 d
    dispensers: all
  - kind: clock_wrong
    at: 2026-06-02 03:00
    value: -2 h
    dispensers: 1
  - code: SLOT_JAM
    rate: 5 per 1000 vends
events:
  - {event: server_outage, at: day 2, for: 90 min}
expect:
  - audit clean
  - availability >= 99 %
  - lost_access.jam[HD-001] <= 40 h
"""


def mistakes(text: str) -> list[Mistake]:
    with pytest.raises(ScenarioError) as caught:
        read(text, "it.yaml")
    return caught.value.mistakes


def with_line(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


def test_a_good_file_becomes_what_the_world_takes() -> None:
    scenario = read(GOOD)
    begins = datetime(2026, 6, 1, tzinfo=LOCAL)
    assert scenario.start == begins
    assert scenario.end_ms - scenario.start_ms == 8 * DAY_MS
    assert scenario.dispensers() == ["HD-001", "HD-002"]
    assert (scenario.restock.policy, scenario.restock.every) == ("rounds", 3 * DAY_MS)
    outage, jump, _ = scenario.faults
    at_ms = int((begins + timedelta(days=2, hours=4)).timestamp() * 1000)
    assert injections.injection(outage, scenario.start_ms) == Injection(
        at_ms, Kind.NETWORK_FAILS, until_ms=at_ms + 4 * DAY_MS
    )
    at_ms = int((begins + timedelta(days=1, hours=3)).timestamp() * 1000)
    assert injections.injection(jump, scenario.start_ms) == Injection(at_ms, Kind.CLOCK_WRONG, value=-2 * HOUR_MS)
    assert injections.overrides(scenario) == {
        "patience.share": 0.25,
        "faults.SLOT_JAM.rate": 5,
        "stock_drift.miscount_per_refill_sd_boxes": 0,
    }
    assert [clause.value for clause in scenario.expect] == [1, 0.99, 40 * HOUR_MS]
    assert scenario.expect[2].dispenser == "HD-001"


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "told"),
    [
        # Keys
        ("seed: 7", "seeed: 7", 3, "seeed", "did you mean seed? Expected one of name, description"),
        ("    for: 4 d", "    during: 4 d", 14, "faults[0].during", "expected one of kind, at, for"),
        ("every: 3 d", "evry: 3 d", 10, "restock.evry", "did you mean every?"),
        ("for: 90 min", "dispensers: all, for: 90 min", 23, "events[0].dispensers", "expected one of at, event, for"),
        ("days: 8\n", "", 1, "days", "missing: expected it here"),
        ("    for: 4 d\n", "", 12, "faults[0].kind", "expected for: beside network_fails"),
        (", for: 90 min", "", 23, "events[0].for", "missing: expected it here"),
        ("seed: 7", "seed: 7\nseed: 8", 4, "seed", "twice, first on line 3"),
        ("    for: 4 d", "    at: day 4", 14, "faults[0].at", "twice, first on line 13"),
        # Types
        ("seed: 7", "seed: seven", 3, "seed", "'seven': expected a whole number"),
        ("seed: 7", "seed: 7.5", 3, "seed", "7.5: expected a whole number"),
        ("seed: 7", "seed: -1", 3, "seed", "-1: expected at least 0"),
        ("seed: 7", "seed: true", 3, "seed", "True: expected a whole number"),
        ("days: 8", "days: 8 d", 5, "days", "'8 d': expected a number"),
        ("days: 8", "days: .nan", 5, "days", "expected a number"),
        ("days: 8", "days: 0", 5, "days", "0: expected more than 0"),
        ("name: two-machines", "name: Two Machines", 1, "name", "expected words with hyphens"),
        ("world:\n  patience.share: 0.25", "world:", 8, "world", "nothing: expected keys and values"),
        ("restock: {policy: rounds, every: 3 d, miscount_sd: 0}", "restock: plan", 10, "restock", "expected keys and values"),
        # Small notations
        ("for: 4 d", "for: 4 dayz", 14, "faults[0].for", "'4 dayz': expected a duration such as 30 s, 90 min"),
        ("for: 4 d", "for: 4", 14, "faults[0].for", "4: expected a duration"),
        ("for: 4 d", "for: -4 d", 14, "faults[0].for", "'-4 d': expected a duration"),
        ("value: -2 h", "value: -2", 18, "faults[1].value", "expected a duration such as 30 s, 90 min, 4 h or 2.5 d, - or +"),
        ("at: day 3 04:00", "at: day 0", 13, "faults[0].at", "expected a local moment such as day 3"),
        ("at: day 3 04:00", "at: day 3 24:00", 13, "faults[0].at", "expected a local moment"),
        ("at: day 3 04:00", "at: 2026-06-31", 13, "faults[0].at", "expected a local moment"),
        ("at: day 3 04:00", "at: 04:00", 13, "faults[0].at", "'04:00': expected a local moment"),
        ("rate: 5 per 1000 vends", "rate: 5 per mille", 21, "faults[2].rate", "expected a rate such as"),
        ("start: 2026-06-01", "start: June", 4, "start", "expected a local date such as 2026-06-01"),
        # Names
        ("code: SLOT_JAM", "code: SLOT_JAMM", 20, "faults[2].code", "did you mean SLOT_JAM?"),
        ("kind: network_fails", "kind: network_failed", 12, "faults[0].kind", "did you mean network_fails?"),
        ("event: server_outage", "event: server_outrage", 23, "events[0].event", "did you mean server_outage?"),
        ("{event: server_outage, at", "{at", 23, "events[0]", "expected a key 'event'"),
        ("patience.share: 0.25", "patience.shares: 0.25", 9, "world.patience.shares", "expected a known parameter"),
        ("policy: rounds", "policy: round", 10, "restock.policy", "expected 'plan', 'rounds' or 'none'"),
        ("availability >= 99 %", "availabilty >= 99 %", 26, "expect[1]", "availabilty is not a metric; did you mean availability?"),
        ("lost_access.jam[HD-001]", "lost_access.jamm", 27, "expect[2]", "did you mean lost_access.jam?"),
        ("<= 40 h", "<= 40", 27, "expect[2]", "expected s, min, h, d behind the number: lost_access is a time"),
        (">= 99 %", ">= 99 h", 26, "expect[1]", "expected nothing, % behind the number"),
        (">= 99 %", "=> 99 %", 26, "expect[1]", "expected METRIC OPERATOR NUMBER UNIT"),
        ("audit clean", "audit == 1", 25, "expect[0]", "expected audit clean, without a number"),
        ("- audit clean", "- 5", 25, "expect[0]", "5: expected METRIC OPERATOR NUMBER UNIT"),
        # What does not go together
        ("at: day 3 04:00", "at: day 9", 13, "faults[0].at", "expected a moment within the 8 days from 2026-06-01 00:00"),
        ("at: day 2, for", "at: 2026-05-31, for", 23, "events[0].at", "expected a moment within the 8 days"),
        ("[HD-001, HD-002]", "[HD-001, HD-099]", 7, "fleet.sites[1]", "'HD-099': did you mean HD-0"),
        ("[HD-001, HD-002]", "0", 7, "fleet.sites", "0: expected all, a number of machines"),
        ("[HD-001, HD-002]", "every", 7, "fleet.sites", "expected all, a number of machines, or a list of ids"),
        ("dispensers: 1", "dispensers: 3", 19, "faults[1].dispensers", "at most the 2 machines that take part"),
        ("dispensers: 1", "dispensers: [HD-003]", 19, "faults[1].dispensers", "expected machines that take part: HD-001, HD-002"),
        ("jam[HD-001]", "jam[HD-003]", 27, "expect[2]", "expected a machine that takes part in place of [HD-003]"),
        ("every: 3 d, ", "", 10, "restock", "expected every: exactly with policy: rounds"),
        ("    value: -2 h\n", "", 16, "faults[1].kind", "expected value: beside clock_wrong"),
        ("    dispensers: all", "    slot: 3", 15, "faults[0].slot", "3: expected none with network_fails"),
        ("rate: 5 per 1000 vends", "rate: 5 per machine-month", 21, "faults[2].rate", "expected a rate per vends"),
        ("code: SLOT_JAM", "code: SLOT_EMPTY", 20, "faults[2].code", "expected a code that has a rate"),
        ("rate: 5 per 1000 vends", "at: day 2", 20, "faults[2].code", "expected kind: and at:, or code: and rate:"),
        # YAML
        ("days: 8", "\tdays: 8", 5, "", "a tab: expected spaces"),
        ("seed: 7", "seed: [7", 4, "", "not YAML: "),
        ("seed: 7", "seed: &seed 7\nother: *seed", 4, "*seed", "expected the value itself, not an alias"),
        ("seed: 7", "seed: !!python/name:os.system 7", 3, "seed", "expected text, a number, true or false"),
        ("seed: 7", "? [seed]\n: 7", 3, "", "expected a plain word as a key"),
        ("seed: 7", "---\nseed: 7", 3, "", "not YAML: expected a single document"),
        ("seed: 7", "seed: 7\x07", 3, "", "not YAML: special characters are not allowed"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line_its_key_and_what_was_expected(
    old: str, new: str, line: int, key: str, told: str
) -> None:
    (found,) = mistakes(with_line(old, new))
    assert (found.line, found.key) == (line, key), found
    assert told in found.told, found
    assert str(found).startswith(f"it.yaml:{line}: {key}")


def test_every_mistake_of_a_file_is_told_at_once_in_the_order_of_its_lines() -> None:
    text = with_line("seed: 7", "seed: x").replace("days: 8", "days: y").replace("audit clean", "audit dirty")
    assert [(mistake.line, mistake.key) for mistake in mistakes(text)] == [(3, "seed"), (5, "days"), (25, "expect[0]")]


@pytest.mark.parametrize("text", ["", "# only a comment\n", "- a\n- b\n", "just words"])
def test_a_file_that_is_no_mapping_is_told_how_to_begin(text: str) -> None:
    assert "beginning with `name:`" in mistakes(text)[0].told


def test_words_that_older_yaml_would_change_stay_words() -> None:
    scenario = read(
        with_line("description: A network outage, a clock that jumps, and more jams than usual.", "description: no")
    )
    assert scenario.description == "no"


def test_a_nest_without_end_is_refused() -> None:
    assert "nested more than 10 deep" in mistakes("a: " + "[" * 20_000)[0].told


def test_what_is_no_file_and_no_name_is_told_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("scenarios")
    (directory / "latin.yaml").write_bytes(b"name: ok\ndescription: caf\xe9\n")
    (directory / "huge.yaml").write_bytes(b"#" * 300_000)
    for name, told in (
        ("latin.yaml", "latin.yaml:2: expected UTF-8 text"),
        ("huge.yaml", "expected at most 262144"),
        ("none.yaml", "expected a readable file (No such file or directory)"),
    ):
        with pytest.raises(ScenarioError) as caught:
            load(str(directory / name))
        assert told in str(caught.value)
    with pytest.raises(ScenarioError) as caught:
        load("four-day-outrage")
    assert "expected a .yaml file or the name of a shipped scenario" in str(caught.value)


def test_the_schema_for_editors_takes_every_shipped_file_and_refuses_what_we_refuse() -> None:
    validator = jsonschema_rs.validator_for(schema())
    for name in shipped():
        assert validator.is_valid(
            yaml.safe_load((SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")) | {"start": "2026-06-01"}
        )
    for old, new in (
        ("seed: 7", "seeed: 7"),
        ("seed: 7", "seed: seven"),
        ("for: 4 d", "for: 4 dayz"),
        ("kind: network_fails", "kind: network_failed"),
        ("code: SLOT_JAM", "code: SLOT_JAMM"),
        ("event: server_outage", "event: server_outrage"),
        ("policy: rounds", "policy: round"),
    ):
        text = with_line(old, new).replace("start: 2026-06-01", "start: '2026-06-01'")
        assert not validator.is_valid(yaml.safe_load(text)), new


def test_the_schema_for_editors_knows_every_key() -> None:
    described = Scenario.model_json_schema()
    assert set(described["properties"]) == {
        "name", "description", "seed", "start", "days", "world", "fleet", "restock", "faults", "events", "expect",
    }  # fmt: skip
    assert described["additionalProperties"] is False
    fault = described["$defs"]["Fault"]["properties"]
    assert "for" in fault
    assert "network_fails" in str(fault["kind"])
    assert set(described["properties"]["events"]["items"]["discriminator"]["mapping"]) >= {
        "broker_outage",
        "lot_recall",
    }
