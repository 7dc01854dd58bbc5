"""Random fault schedules: many machines side by side, each with a schedule of its own, and the promises checked for each.

A machine's schedule, and everything that happens to it, follows from the seed and its id alone: the machine that breaks a promise
can be played again by itself.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import text

from fleet_server.database import Database
from fleet_server.devices import outgoing
from fleet_server.jobs.work import book_lost_doors
from fleet_server.ledger.audit import audit
from simulator.auditor import Auditor
from simulator.bridges import InProcessBridge
from simulator.faults import FORMS, Injection, Kind
from simulator.machine import SimulatedMachine
from simulator.world import DAY_MS, HOUR_MS
from tests.played import BEGINS_MS, Played, played

DAYS: Final = 1.5
CALM_MS: Final = 3 * HOUR_MS
"""First the machines are filled."""
WILD: Final = (
    Kind.NETWORK_FAILS, Kind.NETWORK_BAD, Kind.ACKS_LOST, Kind.SERVER_SILENT, Kind.MAINS_FAILS, Kind.AGENT_RESTARTS,
    Kind.MOTOR_JAMS, Kind.DROP_UNSEEN, Kind.DROP_FAILS, Kind.DROP_DOUBLE, Kind.DROP_SENSOR_BLOCKED,
    Kind.CONTROLLER_SILENT, Kind.CLOCK_WRONG, Kind.PACKS_STOLEN, Kind.DOOR_FORCED, Kind.CARD_REPLACED, Kind.CARD_RESTORED,
)  # fmt: skip
"""What a schedule is made of; a card that is restored was kept some time before."""
ORDERS: Final = ("self_test", "clear_jam", "reboot", "unlock")
BUSY: Final = {
    f"type_base_boxes_per_day.{kind}": 14.0
    for kind in ("community", "market", "dormitory", "campus", "health", "transport")
}
NO_MORE: Final[Mapping[str, float]] = {}
CATCH_UP_MS_MAX: Final = 90_000
"""30 s, and the 60 s after which a machine that hears nothing makes a new connection."""
NEW_STREAM_MS: Final = 30_000
"""More, where a fork was found only then: an order, a new stream and a fresh connection come before what is to be told."""


def schedule(seed: int, machine: SimulatedMachine) -> list[Injection]:
    """Draw what happens to one machine."""
    draw = random.Random(f"schedule/{seed}/{machine.id}")
    found: list[Injection] = []
    for _ in range(draw.randrange(4, 11)):
        kind = draw.choice(WILD)
        at_ms = BEGINS_MS + draw.randrange(CALM_MS, int(DAYS * DAY_MS) - HOUR_MS)
        lasts_ms = int(draw.choice((20_000, 300_000, HOUR_MS, 6 * HOUR_MS)) * draw.uniform(0.3, 1.5))
        values: dict[Kind, float] = {
            Kind.NETWORK_BAD: draw.uniform(10, 80),
            Kind.CLOCK_WRONG: draw.choice((-400 * DAY_MS, -HOUR_MS, 5 * HOUR_MS)),
        }
        until_ms = at_ms + lasts_ms if FORMS[kind].until != "no" else None
        found.append(Injection(at_ms, kind, until_ms, value=values.get(kind)))
        if kind is Kind.CARD_RESTORED:
            found.append(Injection(at_ms - draw.randrange(HOUR_MS, 12 * HOUR_MS), Kind.CARD_KEPT))
    return sorted(found, key=lambda injection: injection.at_ms)


class CrashingBridge(InProcessBridge):
    """A server that is killed now and then, after it has taken messages and before it has committed them."""

    def __init__(self, server: Any) -> None:
        super().__init__(server)
        self.share, self.crashes = 0.0, 0
        self.randomness = random.Random("crashes")

    def settle(self) -> None:
        if not self._published or self.randomness.random() >= self.share:
            super().settle()
            return
        # What was answered before is true; what is taken now, and its answers, are lost.
        published, self._published = self._published, []
        self._server.commit()  # type: ignore[attr-defined]
        self._server.take(published)
        self._server.crash()  # type: ignore[attr-defined]
        self.crashes += 1


@dataclass
class Result:
    """What a run of schedules found: every broken promise, with the machine that broke it."""

    seed: int
    schedules: int
    facts: int = 0
    crashes: int = 0
    orders: int = 0
    listed: set[str] = field(default_factory=set)
    """Machines with entries that wait for a door which will never be told of: an old card went on before anybody had heard of the
    present one. No stream shows it; the entries are listed as what could not be booked, and the machine's books are not compared."""
    broken: list[str] = field(default_factory=list)

    def replay(self) -> str:
        """Say how to play it again."""
        return f"FAULT_SEED={self.seed} FAULT_SCHEDULES={self.schedules} make soak PYTEST_ARGS='-k many_schedules'"


def run(
    database_url: str, seed: int, machines: int, only: str | None = None, parameters: Mapping[str, float] = NO_MORE
) -> Result:
    """Play so many schedules, or `only` that of one machine, and check I1 to I6 for each."""
    result = Result(seed, machines)
    with played(
        database_url, seed, machines, CrashingBridge, only=only, filled=True, parameters={**BUSY, **parameters}
    ) as running:
        bridge = running.bridge
        assert isinstance(bridge, CrashingBridge)
        bridge.randomness, bridge.share = random.Random(f"crashes/{seed}"), 0.03
        for machine in running.fleet.machines.values():
            for injection in schedule(seed, machine):
                machine.plan(injection.at_ms, lambda m=machine, i=injection: m.inject(i))  # type: ignore[misc]
        result.orders = _plan_orders(running, seed)
        running.fleet.crew.stays_home = False
        running.fleet.play(BEGINS_MS + int(DAYS * DAY_MS), 60, lambda _: None)
        bridge.share = 0.0
        took_ms, late = _catch_up(running)
        if late:
            result.broken.append(f"I6: after {took_ms} ms not all is told that was waiting when faults ended: {late}")
        running.fleet.finish(60)
        _let_the_night_pass(running)
        _check(running, result, "after healing")
        for machine in running.fleet.machines.values():
            machine.count_exactly()
        running.fleet.finish(60)
        _let_the_night_pass(running)
        _check(running, result, "after an exact count")
        _check_counted(running, result)
        result.facts = sum(machine.facts() for machine in running.fleet.machines.values())
        result.crashes = bridge.crashes
    return result


def _catch_up(running: Played) -> tuple[int, list[str]]:
    """End the faults; returns how long it took until all was told that waited then, and the machines that were too late."""
    machines = running.fleet.machines.values()
    waiting = {machine.id: machine.stands()[:2] for machine in machines if machine.pending()}
    healed_ms, began = running.fleet.now_ms, 0
    while waiting and running.fleet.now_ms - healed_ms < CATCH_UP_MS_MAX + (NEW_STREAM_MS if began else 0):
        running.fleet.finish(60, steps_max=1)
        for machine in [running.fleet.machines[dispenser_id] for dispenser_id in waiting]:
            stream_id, last, acked = machine.stands()
            if stream_id != waiting[machine.id][0]:
                waiting[machine.id] = stream_id, last
                began += 1
            if acked >= waiting[machine.id][1]:
                del waiting[machine.id]
    return running.fleet.now_ms - healed_ms, sorted(waiting)


def _plan_orders(running: Played, seed: int) -> int:
    """Let somebody order things of machines, at moments that no machine knows."""
    draw = random.Random(f"orders/{seed}")
    machines = sorted(running.fleet.machines)
    number = len(machines)
    database = Database(running.database_url)

    def give(dispenser_id: str, kind: Any, lives_s: int) -> None:
        now = datetime.fromisoformat(running.people.administrator.get("/clock")["now"])
        with database.begin() as connection:
            outgoing.order(
                connection, dispenser_id, kind, lives_s=lives_s, now=now, slot=1 if kind == "clear_jam" else None
            )

    for _ in range(number):
        at_ms = BEGINS_MS + draw.randrange(CALM_MS, int(DAYS * DAY_MS))
        arguments = (draw.choice(machines), draw.choice(ORDERS), draw.choice((60, 3_600)))
        running.fleet.at_desk(at_ms, lambda a=arguments: give(*a))  # type: ignore[misc]
    return number


def _let_the_night_pass(running: Played) -> None:
    """Run the nightly job that books visits of which only a lost card knew the door."""
    running.server.commit()
    database = Database(running.database_url)
    now = datetime.fromtimestamp(running.fleet.now_ms / 1000, UTC)
    with database.begin() as connection:
        book_lost_doors(connection, now + timedelta(hours=2))
    database.close()


def _check(running: Played, result: Result, when: str) -> None:
    """I1 a and b, I2, I3, I4, I5."""
    database = Database(running.database_url)
    with database.begin() as connection:
        differences = audit(connection).differences
    with database.begin() as connection:
        cursors: dict[Any, Any] = {
            (row.dispenser_id, row.stream_id): row.through_seq
            for row in connection.execute(text("SELECT dispenser_id, stream_id, through_seq FROM streams"))
        }
        waiting = set(connection.execute(text("SELECT dispenser_id FROM operations WHERE state = 'waiting'")).scalars())
        orders = connection.execute(text("SELECT key FROM outgoing WHERE channel = 'orders'")).scalars().all()
        unlocks: dict[str, int] = dict(
            connection.execute(
                text("""SELECT dispenser_id, count(*) FROM outgoing
                        WHERE channel = 'orders' AND payload->>'kind' = 'unlock' GROUP BY dispenser_id""")
            ).all()
        )
    database.close()
    result.broken += [f"I1a, I2, I3 {when}: {difference}" for difference in differences]
    findings = Auditor(running.people.administrator).compare(running.fleet.machines)
    result.listed |= waiting
    result.broken += [
        f"I1 {when}: {residual}" for residual in findings.residuals if residual.dispenser_id not in waiting
    ]
    for machine in running.fleet.machines.values():
        stream_id, _, acked = machine.stands()
        if acked > cursors.get((machine.id, stream_id), 0):
            result.broken.append(
                f"I4 {when}: {machine.id}: acknowledged {acked}, the server has {cursors.get((machine.id, stream_id))}"
            )
        tally = machine.truth.tally
        tally.acted.pop("own", None)  # self tests that nobody ordered
        if max(tally.acted.values(), default=0) > 1 or tally.orders["twice"] or not set(tally.acted) <= set(orders):
            result.broken.append(f"I5 {when}: {machine.id}: {tally.acted}, {tally.orders}")
        if tally.pulses > unlocks.get(machine.id, 0):
            result.broken.append(
                f"I5 {when}: {machine.id}: {tally.pulses} pulses for {unlocks.get(machine.id, 0)} orders"
            )


def _check_counted(running: Played, result: Result) -> None:
    """I1c: after an accurate count with nothing pending, physical and ledger are equal."""
    for machine in running.fleet.machines.values():
        if machine.id in result.listed:
            continue
        for slot in machine.agent.plan.slots:
            physical, book = len(machine.board.coils.get(slot, [])), machine.truth.books.slots.get(slot)
            if physical != (book.units if book else 0):
                result.broken.append(f"I1c: {machine.id} slot {slot}: physically {physical}, in the books {book}")


def report(results: Sequence[Result]) -> str:
    """Say what was found, and how to play it again."""
    lines = [line for result in results if result.broken for line in (result.replay(), *result.broken[:20])]
    return "\n".join(lines)
