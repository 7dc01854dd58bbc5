"""Every fault of faults.csv: planted in a simulated machine, found by the shipped agent or the server, ended in the server's table."""

import re
from pathlib import Path

import pytest
from babel.messages.pofile import read_po
from sqlalchemy import text

from fleet_server.database import Database
from fleet_server.web.words import FAULTS
from simulator.faults import FORMS, Injection, Kind
from simulator.parameters import fault_rows
from simulator.world import HOUR_MS
from tests.played import BEGINS_MS, Played, audited, played
from tests.simulator.test_happenings import QUIET

ROOT = Path(__file__).parent.parent.parent
SEED = 5
CODES = {row["code"] for row in fault_rows()}
NEVER_HERE = {"EXPIRED_IN_SLOT", "COMM_RELIABILITY_LOW"}
"""These need weeks; tests/fleet_server/jobs has them."""
STAYS = {"THEFT"}
"""A machine that was carried off does not come back."""

# (machine, kind, from hour, to hour, value); hours count from the second midnight, when everything is loaded.
PLANTED: list[tuple[int, Kind, float, float | None, float | None]] = [
    (0, Kind.MAINS_FAILS, 2, 7.5, None),
    (0, Kind.SIM_DENIED, 12, 13, None),
    (0, Kind.READER_FAILS, 14, 15, None),
    (0, Kind.TEMPERATURE_SENSOR_FAILS, 16, 17, None),
    (0, Kind.STORAGE_NEAR_FULL, 18, 20, None),
    (0, Kind.CLOCK_WRONG, 21, 45, 1_200_000),
    (1, Kind.HEAT, 2, 40, 42),
    (1, Kind.HUMIDITY, 2, 40, 95),
    (1, Kind.SIGNAL_WEAK, 2, 6, None),
    (1, Kind.CONTROLLER_SILENT, 41, 43, None),
    (1, Kind.NETWORK_FAILS, 46, 60, None),
    (2, Kind.DROP_SENSOR_BLOCKED, 2, 4, None),
    (2, Kind.DROP_UNSEEN, 5, None, None),
    (2, Kind.DROP_UNSEEN, 6, None, None),
    (2, Kind.MOTOR_JAMS, 12, None, None),
    (2, Kind.TAMPERED, 13, None, None),
    (2, Kind.LOCK_STUCK, 14, None, None),
    (2, Kind.DOOR_FORCED, 15, 16, None),
    (2, Kind.DOOR_LEFT_OPEN, 17, None, None),
    (2, Kind.HELIX_UNSEATED, 18, None, None),
    (3, Kind.MOTOR_MISSING, 11, None, None),
    (3, Kind.SITE_CLOSED, 30, 36, None),
    (3, Kind.DOOR_SWITCH_STUCK, 37, None, None),
    (4, Kind.MACHINE_STOLEN, 20, None, None),
]

SLOTS = {Kind.MOTOR_MISSING: 1, Kind.MOTOR_JAMS: 1, Kind.HELIX_UNSEATED: 2}


def plant(fleet: Played) -> None:
    machines = list(fleet.fleet.machines.values())
    begins_ms = BEGINS_MS + 24 * HOUR_MS

    def happens(
        place: int, kind: Kind, from_h: float, to_h: float | None, value: float | None, slot: int | None
    ) -> None:
        until_ms = None if to_h is None else begins_ms + int(to_h * HOUR_MS)
        injection = Injection(begins_ms + int(from_h * HOUR_MS), kind, until_ms, slot, value)
        machines[place].plan(injection.at_ms, lambda: machines[place].inject(injection))

    for planted in PLANTED:
        happens(*planted, slot=SLOTS.get(planted[1]))
    # Somebody tries the slots that were tampered with.
    for place, slot in ((2, 1), (2, 2), (3, 1)):
        for day in range(6):
            for hour in (12, 15, 17):
                happens(place, Kind.VISITOR_COMES, 24 * day + hour + slot / 10, None, None, slot)


def found(database_url: str) -> dict[str, tuple[int, int]]:
    """By code: how often it began, and how often it ended."""
    database = Database(database_url)
    with database.begin() as connection:
        rows = connection.execute(
            text("SELECT code, count(*) AS began, count(cleared_at) AS ended FROM faults GROUP BY code")
        )
        counts = {row.code: (row.began, row.ended) for row in rows}
    database.close()
    return counts


@pytest.mark.slow
def test_every_fault_is_found_and_ended_in_the_servers_table(database_url: str) -> None:
    busy = QUIET | {f"type_base_boxes_per_day.{kind}": 18 for kind in ("community", "dormitory", "market")}
    with played(database_url, SEED, 5, parameters=busy) as fleet:
        plant(fleet)
        findings = fleet.play(7)
        counts = found(database_url)
        assert CODES - NEVER_HERE - set(counts) == set(), f"seed {SEED}: never began"
        never_ended = {code for code in CODES - NEVER_HERE - STAYS if counts[code][1] == 0}
        assert never_ended == set(), f"seed {SEED}"
        assert findings.residuals == [], f"seed {SEED}"
        assert audited(database_url).differences == []


# ---------------------------------------------------------------- the table in docs, and words


def test_the_table_in_docs_is_that_of_faults_csv() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` (.+?) \|(.*)\|$", (ROOT / "docs" / "faults.md").read_text(), re.MULTILINE)
    table = {code: (name, [cell.strip() for cell in rest.split("|")]) for code, name, rest in rows}
    assert list(table) == [row["code"] for row in fault_rows()]
    for row in fault_rows():
        name, (found_by, begins, ends, rate, made) = table[row["code"]]
        assert (name, rate) == (row["name_zh"], row["demo_rate_basis"])
        assert found_by in {"machine", "server"}
        assert begins
        assert ends
        kinds = {str(kind) for kind, form in FORMS.items() if row["code"] in form.codes}
        assert set(re.findall(r"`(\w+)`", made)) == kinds, row["code"]
        assert made


@pytest.mark.parametrize("language", ["zh", "en"])
def test_every_fault_has_a_name_in_both_languages(language: str) -> None:
    with (ROOT / "fleet_server/web/translations" / f"{language}.po").open("rb") as file:
        catalogue = read_po(file, locale=language)
    for code in CODES:
        assert catalogue[FAULTS[code]].string, code
