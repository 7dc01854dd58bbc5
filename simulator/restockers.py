"""Simulated people: a dispatcher who releases the day's plan and restockers who carry it out, through the phone's API.

Each is a generator that yields how long it takes (ms) until its next step; the fleet brings virtual time there.
"""

import random
import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from simulator.faults import Injection, Kind
from simulator.machine import SimulatedMachine
from simulator.phone import Phone
from simulator.server_api import ServerApi, ServerError
from simulator.world import World, local

MINUTE_MS: Final = 60_000
AT_THE_LOCK_MS: Final = 5_000
STUCK_LOCK_MS: Final = 3 * MINUTE_MS
"""How long somebody tries before they take the key."""
CLOSING_PAUSE_MS: Final = 20_000
CLOSING_TRIES_MAX: Final = 10
"""Whoever waits before a door that is shut for the machine's word of it drives on after so many."""
CONFLICT: Final = 409
NOT_HERE: Final = "this machine is not part of the simulation"

Steps = Generator[int, None, None]


@dataclass
class Work:
    """What the people did, and what their phones have not sent yet: (due at, visit, its operations)."""

    visits: int = 0
    packs_loaded: int = 0
    late_visits: int = 0
    kept: list[tuple[int, dict[str, Any], list[dict[str, Any]]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Crew:
    """The people of one depot. `collect` waits for what the server has sent, given how many messages that were."""

    def __init__(
        self,
        world: World,
        machines: Mapping[str, SimulatedMachine],
        dispatcher: ServerApi,
        restocker: ServerApi,
        now_ms: Callable[[], int],
        collect: Callable[[int], object],
        work: Work,
        phone: Phone | None = None,
    ) -> None:
        self._world, self._machines, self._now_ms, self.work = world, machines, now_ms, work
        self._dispatcher, self._restocker, self._collect = dispatcher, restocker, collect
        self._miscount_sd = world.parameters.number("stock_drift.miscount_per_refill_sd_boxes")
        self._finished_offline = world.parameters.number("visits.finished_offline_share")
        self._near_expiry = timedelta(days=world.parameters.number("visits.near_expiry_days"))
        self._phone = phone or Phone(restocker, now_ms)
        self._mistakes: dict[tuple[str, int], list[tuple[int, int]]] = {}
        self.at_work: set[str] = set()
        """Machines at which somebody is."""
        self.stays_home = False
        """Nobody releases a plan, and nobody drives."""

    def miscount_next(self, dispenser_id: str, slot: int, off_by: int, from_ms: int) -> None:
        """Whoever counts this slot next, from a moment on, enters so many packs too many."""
        self._mistakes.setdefault((dispenser_id, slot), []).append((from_ms, off_by))

    def release(self) -> None:
        """Release the newest plan if nobody has; the work begins with it."""
        if self.stays_home:
            return
        plans = self._dispatcher.get("/plans")["items"]
        if plans and plans[0]["state"] == "proposed":
            self._dispatcher.post(f"/plans/{plans[0]['id']}/release")

    def begin_work(self) -> list[Steps]:
        """Return a tour for every released work order."""
        if self.stays_home:
            return []
        orders = self._restocker.get("/work-orders?state=released")["items"]
        orders += self._restocker.get("/work-orders?state=picked")["items"]
        return [self._tour(order["id"]) for order in orders]

    def send_due(self, *, all_of_it: bool = False) -> None:
        """Send what phones have kept and is due now: some visits end without a signal. A restored server is offered all again."""
        self.work.problems += self._phone.offer_again()
        due = [entry for entry in self.work.kept if all_of_it or entry[0] <= self._now_ms()]
        for entry in due:
            self._post_operations(entry[1], entry[2])
            self.work.kept.remove(entry)

    def _tour(self, work_order_id: str) -> Steps:
        order = self._restocker.get(f"/work-orders/{work_order_id}")
        draw = self._world.stream("tour", work_order_id)
        van: dict[tuple[str, str], int] = {}
        if order["state"] == "released":
            self._pick(order, van)
        for stop in order["stops"]:
            if stop["state"] in {"closed", "skipped"} or stop["dispenser_id"] not in self._machines:
                continue
            yield draw.randrange(8, 20) * MINUTE_MS
            yield from self._visit(work_order_id, stop, van)
        yield 20 * MINUTE_MS
        lines = [{"product": p, "lot": lot, "packs": packs} for (p, lot), packs in sorted(van.items()) if packs > 0]
        body = {"operation_id": self._operation_id("return", work_order_id), "lines": lines}
        self._try(lambda: self._phone.give_back(work_order_id, body))

    def _pick(self, order: dict[str, Any], van: dict[tuple[str, str], int]) -> None:
        lines = []
        for stop in order["stops"]:
            for pick in stop["picks"]:
                key = (pick["product"], pick["lot"])
                van[key] = van.get(key, 0) + pick["planned"]
                fields = {name: pick[name] for name in ("slot", "product", "lot")}
                lines.append({"dispenser_id": stop["dispenser_id"], "packs": pick["planned"], **fields})
        body = {"operation_id": self._operation_id("pick", order["id"]), "lines": lines}
        self._phone.pick(order["id"], body)

    def _visit(self, work_order_id: str, stop: dict[str, Any], van: dict[tuple[str, str], int]) -> Steps:
        """Arrive and unlock; then everything happens in the machine's own lane, and is told when the door is closed."""
        machine, visit_id = self._machines.get(stop["dispenser_id"]), stop["visit_id"]
        if machine is None:
            self._try(lambda: self._restocker.post(f"/visits/{visit_id}/skip", {"reason": NOT_HERE}))
            return
        draw = machine.randomness("visit")
        mishaps = self._world.mishaps(visit_id, len(stop["picks"]))
        obstacle = _obstacle(machine, blocked=mishaps.blocked)
        if obstacle is not None:
            self._try(lambda: self._restocker.post(f"/visits/{visit_id}/skip", obstacle))
            return
        self.at_work.add(machine.id)
        self._try(lambda: self._restocker.post(f"/visits/{visit_id}/arrive"))
        if machine.online:
            self._try(lambda: self._collect(self._restocker.post(f"/visits/{visit_id}/unlock")["messages_sent"]))
        opens_ms = self._now_ms() + (STUCK_LOCK_MS if machine.lock_is_stuck else AT_THE_LOCK_MS)
        closes_ms = opens_ms + MINUTE_MS + draw.randrange(4, 9) * MINUTE_MS
        tells_ms = closes_ms + mishaps.door_open_ms + AT_THE_LOCK_MS
        is_late = draw.random() < self._finished_offline
        due_ms = tells_ms + draw.randrange(2, 9) * 60 * MINUTE_MS * is_late
        sessions: list[str | None] = []
        visit = {"visit_id": visit_id, "work_order_id": work_order_id, "dispenser_id": stop["dispenser_id"]}

        def serve() -> None:
            if sessions[0] is None:
                return  # a dark machine, or one that does not notice its door: nothing would have a place in its stream
            operations = self._work_on_slots(machine, stop, van, sessions[0], draw)
            for kind, happens in (
                (Kind.HELIX_UNSEATED, mishaps.helix_unseated),
                (Kind.DOOR_LEFT_OPEN, mishaps.door_open_ms),
            ):
                if happens:
                    until_ms = closes_ms + mishaps.door_open_ms if kind is Kind.DOOR_LEFT_OPEN else None
                    machine.inject(Injection(machine.now_ms, kind, until_ms))
            self.work.kept.append((due_ms, visit, operations))

        machine.plan(opens_ms, lambda: sessions.append(machine.open_door(by_key=not machine.unlocked)))
        machine.plan(opens_ms + MINUTE_MS, serve)
        machine.plan(closes_ms, machine.close_door)
        yield tells_ms - self._now_ms()
        self.work.visits += 1
        self.work.late_visits += is_late
        machine.truth.tally.visits["offline" if is_late else "online"] += 1
        self.send_due()
        for _ in range(CLOSING_TRIES_MAX):
            if self._closed(visit_id):
                break
            yield CLOSING_PAUSE_MS
        self.at_work.discard(machine.id)

    def _work_on_slots(
        self,
        machine: SimulatedMachine,
        stop: dict[str, Any],
        van: dict[tuple[str, str], int],
        session: str | None,
        draw: random.Random,
    ) -> list[dict[str, Any]]:
        """Count every slot, take out packs that are expired or soon will be, and load what was picked, as far as the coil has room."""
        today = local(machine.now_ms).date()
        entered_at = datetime.fromtimestamp(machine.now_ms / 1000, UTC).isoformat()
        operations: list[dict[str, Any]] = []

        def enter(slot: int, kind: str, **fields: Any) -> None:
            index = len(operations)
            name = self._operation_id(stop["visit_id"], index)
            common = {"operation_id": name, "index": index, "session": session, "entered_at": entered_at}
            operations.append({**common, "kind": kind, "slot": slot, **fields})
            machine.truth.books.entered(kind, slot, fields)

        lots = machine.agent.plan.lots
        for slot, plan in sorted(machine.agent.plan.slots.items()):
            coil = machine.board.coils.setdefault(slot, [])
            error = self._error(machine, slot, draw)
            enter(slot, "count", counted=len(coil) + error)
            machine.truth.counted(slot, error)
            for lot in dict.fromkeys(coil):
                if reason := self._due_out(lots, plan.product, lot, today):
                    packs = machine.board.take_out(slot, lot)
                    enter(slot, "remove", product=plan.product, lot=lot, packs=packs, reason=reason)
            for pick in (pick for pick in stop["picks"] if pick["slot"] == slot):
                packs = min(pick["planned"], plan.capacity - len(machine.board.coils[slot]))
                if packs <= 0:
                    continue
                machine.board.load(slot, pick["lot"], packs)
                van[pick["product"], pick["lot"]] = van.get((pick["product"], pick["lot"]), 0) - packs
                self.work.packs_loaded += packs
                wrong = self._off_by(draw, packs)
                if packs + wrong > 0:
                    enter(slot, "refill", product=pick["product"], lot=pick["lot"], packs=packs + wrong)
                if wrong:
                    machine.truth.note(slot, "refill_misentered", -wrong)
        return operations

    def _due_out(self, lots: Mapping[tuple[str, str], Any], product: str, lot: str, today: date) -> str | None:
        """Why a lot must not stay in a slot; None where it may."""
        known = lots.get((product, lot))
        if known is None or known.expires_on > today + self._near_expiry:
            return None
        return "expired" if known.expires_on <= today else "near_expiry"

    def _post_operations(self, visit: dict[str, Any], operations: list[dict[str, Any]]) -> None:
        if operations:
            refusals = self._phone.enter(visit, operations)
            self.work.problems += [f"{visit['visit_id']} {refusal}" for refusal in refusals]

    def _closed(self, visit_id: str) -> bool:
        """Whether a visit could be closed, or will never be: its door's closing may still be on its way to the server."""
        try:
            self._restocker.post(f"/visits/{visit_id}/close")
        except ServerError as error:
            if error.status == CONFLICT:
                return False
            self.work.problems.append(str(error))
        return True

    def _operation_id(self, *name: object) -> str:
        """The same operation has the same id, however often it is sent."""
        return uuid.UUID(int=self._world.stream("operation", *name).getrandbits(128)).hex

    def _try(self, call: Callable[[], Any]) -> None:
        """What the server refuses is noted; the work goes on."""
        try:
            call()
        except ServerError as error:
            self.work.problems.append(str(error))

    def _error(self, machine: SimulatedMachine, slot: int, draw: random.Random) -> int:
        """How much a count is off by: as a scenario says, or as people are."""
        there, mistakes = len(machine.board.coils[slot]), self._mistakes.get((machine.id, slot), [])
        usual = self._off_by(draw, there)
        if mistakes and mistakes[0][0] <= machine.now_ms:
            return max(-there, mistakes.pop(0)[1])
        return usual

    def _off_by(self, draw: random.Random, there: int) -> int:
        """How much a person is off by: usually nothing, and never below an empty slot."""
        return max(-there, round(draw.gauss(0, self._miscount_sd)))


def _obstacle(machine: SimulatedMachine, *, blocked: bool) -> dict[str, str] | None:
    """What a phone says of a machine at which nobody can work today; None where somebody can."""
    if machine.stolen:
        return {"cause": "missing", "reason": "no machine there"}
    return {"cause": "blocked", "reason": "closed, or no way in"} if blocked or machine.is_closed else None
