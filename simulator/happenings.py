"""What happens to one simulated machine, done to it: wires, weather, thieves and hands. The agent finds out for itself.

What is going on is kept by kind with its end; what has no end lasts until somebody with the right to be there has been there.
"""

from collections.abc import Callable
from typing import Any, Final, assert_never

from device_agent import effects as ef
from device_agent import events as ev
from simulator.boards.virtual_board import ANY_SLOT, Fault, Turn, VirtualBoard
from simulator.card import Card
from simulator.faults import FORMS, Injection, InjectionError, Kind
from simulator.link import Link
from simulator.truth import Truth
from simulator.world import DAY_MS, HOUR_MS, LOCAL_MS, Site, Visitor, World, local_hour

NEVER_MS: Final = 1 << 52
SECOND_MS: Final = 1_000
MINUTE_MS: Final = 60 * SECOND_MS
OFFLINE_AFTER_MS: Final = 3 * SECOND_MS
"""A driver takes a controller for lost after so long without a poll."""
SHOCK_MS: Final = MINUTE_MS
EMPTY_MV, FULL_MV, CHARGING_MV, FLOATING_MV = 10_500, 12_700, 12_500, 12_900
SUPPLY_MV: Final = 24_100
WEAK_DBM, HOT_C, DAMP_PCT, FULL_PCT, DRAINED_MV = -105.0, 45.0, 92.0, 90.0, 10_800.0
LEFT_OPEN_MS: Final = HOUR_MS
REGISTERED, DENIED = 1, 3
READER_OK: Final = 0x90
PLANTED: Final = {
    Kind.MOTOR_JAMS: Fault.JAM,
    Kind.DROP_UNSEEN: Fault.FELL_UNSEEN,
    Kind.DROP_FAILS: Fault.DID_NOT_FALL,
    Kind.DROP_DOUBLE: Fault.DOUBLE_DROP,
}


class HappeningsMixin:
    """The part of a simulated machine to which things happen."""

    site: Site
    world: World
    id: str
    now_ms: int
    board: VirtualBoard
    _powered: bool
    _door_open: bool
    _lock_pulsed: bool
    link: Link
    _outbox: Card
    truth: Truth

    def _begin_happenings(self) -> None:
        self.active: dict[Kind, Injection] = {}
        self.stolen = False
        self.cards = 0
        self._kept_card: bytes | None = None
        self.clock_off_ms = 0
        self._helix: int | None = None
        self._battery = 1.0
        self._battery_at_ms = self.now_ms
        self._air = self.world.air(self.site, self.now_ms)
        self._air_until_ms = 0

    # ------------------------------------------------------------ what the machine lends

    def plan(self, at_ms: int, what: Callable[[], None]) -> None:
        """Let something happen at a virtual moment."""
        raise NotImplementedError

    def tell(self, event: ev.Event) -> None:
        """Let the agent handle an event now."""
        raise NotImplementedError

    def _visit(self, visitor: Visitor) -> None:
        raise NotImplementedError

    def _network_fails(self, until_ms: int) -> None:
        raise NotImplementedError

    def _network_returns(self) -> None:
        raise NotImplementedError

    def _cut_power(self, until_ms: int) -> None:
        raise NotImplementedError

    def _open_card(self, image: bytes | None = None) -> None:
        raise NotImplementedError

    def _lost_to(self) -> str | None:
        raise NotImplementedError

    # ------------------------------------------------------------ keeping

    def happenings_to_json(self) -> dict[str, Any]:
        """Return what is going on as plain values."""
        going_on = [[i.at_ms, str(i.kind), i.until_ms, i.slot, i.value] for i in self.active.values()]
        return {
            "active": going_on,
            "stolen": self.stolen,
            "clock_off_ms": self.clock_off_ms,
            "helix": self._helix,
            "cards": self.cards,
        }

    def restore_happenings(self, value: dict[str, Any]) -> None:
        """Take it back, with the ends that were planned."""
        self.stolen, self.clock_off_ms = value["stolen"], value["clock_off_ms"]
        self._helix, self.cards = value["helix"], value["cards"]
        for at_ms, kind, *rest in value["active"]:
            self._goes_on(Injection(at_ms, Kind(kind), *rest))

    # ------------------------------------------------------------ beginnings

    def inject(self, injection: Injection) -> None:
        """Let something happen now."""
        if self.stolen:
            return
        kind = injection.kind
        if injection.until_ms is not None or FORMS[kind].until != "no":
            if kind in self.active:
                return  # it goes on already
            self._goes_on(injection)
        self._begins(injection)
        self._note_access()

    def _note_access(self) -> None:
        self.truth.access.note(self._lost_to(), self.now_ms)

    def _kept_away(self) -> str | None:
        """What of all this keeps visitors from a pack; None where nothing does."""
        if self.is_closed:
            return "site_closed"
        if Kind.CONTROLLER_SILENT in self.active:
            return "controller"
        return None if self.board.curtain_clear else "drop_sensor"

    def _goes_on(self, injection: Injection) -> None:
        self.active[injection.kind] = injection
        if injection.until_ms is not None:
            self.plan(injection.until_ms, lambda: self._over(injection))

    def _begins(self, injection: Injection) -> None:  # noqa: C901, PLR0912 - one arm a kind
        match injection.kind:
            case Kind.VISITOR_COMES:
                self._ask(injection)
            case Kind.NETWORK_FAILS:
                self._network_fails(injection.until_ms or NEVER_MS)
            case Kind.ACKS_LOST:
                self.link.unheard_until_ms = max(self.link.unheard_until_ms, injection.until_ms or 0)
            case Kind.SERVER_SILENT:
                self.link.unserved_until_ms = max(self.link.unserved_until_ms, injection.until_ms or 0)
            case Kind.NETWORK_BAD:
                self.link.bad_until_ms = injection.until_ms or 0
                self.link.bad_share = float(injection.value or 0) / 100
            case Kind.SIM_DENIED:
                self._read_sensors()
                self._network_fails(injection.until_ms or NEVER_MS)
            case Kind.MAINS_FAILS:
                self._mains_fail(injection)
            case Kind.MOTOR_JAMS | Kind.DROP_UNSEEN | Kind.DROP_FAILS | Kind.DROP_DOUBLE:
                self.board.plant(injection.slot or ANY_SLOT, PLANTED[injection.kind])
            case Kind.MOTOR_MISSING:
                self.board.absent.add(self._slot(injection))
            case Kind.HELIX_UNSEATED:
                self._helix = self._slot(injection)
            case Kind.DROP_SENSOR_BLOCKED:
                self.board.curtain_clear = False
                self._tell_inputs()
            case Kind.CONTROLLER_SILENT:
                self.plan(self.now_ms + OFFLINE_AFTER_MS, lambda: self._controller_lost(injection))
            case Kind.DOOR_FORCED:
                self._door_moves(is_open=True)
            case Kind.READER_FAILS:
                for number in range(3):
                    self.plan(self.now_ms + number * MINUTE_MS, lambda: self._reader_asked(injection))
            case Kind.TEMPERATURE_SENSOR_FAILS:
                self._read_often(5)
            case Kind.CLOCK_WRONG:
                self.clock_off_ms += int(float(injection.value or 0))
            case Kind.TAMPERED | Kind.MACHINE_STOLEN:
                self._shaken(injection)
            case Kind.PACKS_STOLEN:
                self._steal(injection)
            case Kind.AGENT_RESTARTS:
                self._cut_power(self.now_ms)
            case Kind.CARD_REPLACED | Kind.CARD_KEPT | Kind.CARD_RESTORED:
                self._card_changes(injection.kind)
            case Kind.SIGNAL_WEAK | Kind.BATTERY_DRAINED | Kind.HEAT | Kind.HUMIDITY | Kind.STORAGE_NEAR_FULL:
                self._read_sensors()
            case Kind.DOOR_LEFT_OPEN | Kind.DOOR_SWITCH_STUCK | Kind.LOCK_STUCK | Kind.SITE_CLOSED:
                pass  # it shows when somebody comes
            case _:
                assert_never(injection.kind)

    # ------------------------------------------------------------ ends

    def _over(self, injection: Injection) -> None:  # noqa: C901 - one arm a kind
        """End what goes on, unless it has ended or begun anew since."""
        if self.active.get(injection.kind) is not injection:
            return
        self._charge()
        del self.active[injection.kind]
        match injection.kind:
            case Kind.MAINS_FAILS:
                self._tell_inputs()
            case Kind.DROP_SENSOR_BLOCKED:
                self.board.curtain_clear = True
                self._tell_inputs()
            case Kind.TAMPERED:
                self._tell_inputs()
            case Kind.CONTROLLER_SILENT:
                self.tell(ev.BoardFaultEnded("VMC_OFFLINE"))
            case Kind.READER_FAILS:
                self.tell(ev.ReaderAnswered(READER_OK))
            case Kind.TEMPERATURE_SENSOR_FAILS:
                self._read_often(3)
            case Kind.CLOCK_WRONG:
                self.clock_off_ms -= int(float(injection.value or 0))
            case Kind.DOOR_FORCED:
                self._door_moves(is_open=False)
            case Kind.MOTOR_MISSING:
                self.board.absent.clear()
            case Kind.SIM_DENIED:
                self._read_sensors()
                self._network_returns()
            case _:
                self._read_sensors()
        self._note_access()

    def _booted(self) -> None:
        """The drivers of a new process say how things stand."""
        self._tell_inputs()
        silent = self.active.get(Kind.CONTROLLER_SILENT)
        if silent is not None:
            self.plan(self.now_ms + OFFLINE_AFTER_MS, lambda: self._controller_lost(silent))

    def _healed(self) -> None:
        """End what keeps the machine from telling."""
        for kind in (Kind.MAINS_FAILS, Kind.NETWORK_FAILS, Kind.SIM_DENIED):
            if kind in self.active:
                self._over(self.active[kind])

    def _repaired(self) -> None:
        """Somebody with spare parts has been there; a coil that they put back badly shows at the next vend."""
        self.board.jammed.clear()
        for injection in [i for i in self.active.values() if i.until_ms is None and i.kind is not Kind.DOOR_LEFT_OPEN]:
            self._over(injection)
        if self._helix is not None:
            self.board.jammed.add(self._helix)
            self._helix = None

    # ------------------------------------------------------------ one by one

    def _slot(self, injection: Injection) -> int:
        stocked = sorted(slot for slot, coil in self.board.coils.items() if coil) or [1]
        return injection.slot or stocked[self.world.noise("slot", self.id, injection.at_ms) % len(stocked)]

    def _ask(self, injection: Injection) -> None:
        if injection.slot is not None:
            self.tell(ev.SlotChosen(injection.slot))
        else:
            self._visit(Visitor(self.now_ms, str(injection.value or "CONDOM-M"), patient=False))

    def _controller_lost(self, injection: Injection) -> None:
        if self.active.get(Kind.CONTROLLER_SILENT) is injection:
            self.tell(ev.BoardFault("VMC_OFFLINE", None, "no poll for 3 s"))

    def _reader_asked(self, injection: Injection) -> None:
        if self.active.get(Kind.READER_FAILS) is injection:
            self.tell(ev.ReaderAnswered(None))

    def _shaken(self, injection: Injection) -> None:
        if injection.kind is Kind.TAMPERED and injection.until_ms is None:
            self.plan(self.now_ms + SHOCK_MS, lambda: self._over(injection))
        self._tell_inputs(tampered=True)
        if injection.kind is Kind.MACHINE_STOLEN:
            self.plan(self.now_ms + MINUTE_MS, lambda: self._tell_inputs(tampered=True, mains=False))
            self.plan(self.now_ms + 2 * MINUTE_MS, self._carried_off)

    def _card_changes(self, kind: Kind) -> None:
        """A card is copied, swapped for a new one, or for the copy: the agent starts anew with what it finds there."""
        if kind is Kind.CARD_KEPT:
            self._kept_card = self._outbox.image()
            return
        image = self._kept_card if kind is Kind.CARD_RESTORED else None
        if kind is Kind.CARD_RESTORED and image is None:
            raise InjectionError(f"{kind} at {self.now_ms}: expected {Kind.CARD_KEPT} before it")
        self._cut_power(self.now_ms)
        self._outbox.close()
        self.cards += 1
        self._open_card(image or b"")
        if image is not None:
            self.truth.begin(self._outbox)

    def _carried_off(self) -> None:
        self._network_fails(NEVER_MS)
        self._cut_power(NEVER_MS)
        self.stolen = True
        self._note_access()
        self.truth.card_lost()
        for slot, coil in sorted(self.board.coils.items()):
            if coil:
                self.truth.note(slot, "theft", -len(coil))
                coil.clear()

    def _steal(self, injection: Injection) -> None:
        """Packs leave by none of the ways that a machine can see."""
        slot = self._slot(injection)
        packs = min(int(float(injection.value or 1)), len(self.board.coils.get(slot, [])))
        if packs:
            del self.board.coils[slot][-packs:]
            self.truth.note(slot, "theft", -packs)

    # ------------------------------------------------------------ mains and battery

    def _charge(self) -> None:
        """Bring the battery's level to now."""
        hours = (self.now_ms - self._battery_at_ms) / HOUR_MS
        drains = Kind.MAINS_FAILS in self.active
        span_h = self.world.parameters.number("power.battery_h" if drains else "power.recharge_h")
        self._battery = min(1.0, max(0.0, self._battery + (-1 if drains else 1) * hours / max(span_h, 1e-6)))
        self._battery_at_ms = self.now_ms

    def _mains_fail(self, injection: Injection) -> None:
        until_ms = injection.until_ms or NEVER_MS
        if not self.world.has_battery(self.site):
            self._cut_power(until_ms)
            return
        del self.active[Kind.MAINS_FAILS]
        self._charge()
        self.active[Kind.MAINS_FAILS] = injection
        self._tell_inputs()
        empty_ms = self.now_ms + int(self._battery * self.world.parameters.number("power.battery_h") * HOUR_MS)

        def goes_dark() -> None:
            if self.active.get(Kind.MAINS_FAILS) is injection:
                self._cut_power(until_ms)

        if empty_ms < until_ms:
            self.plan(empty_ms, goes_dark)

    def _battery_mv(self) -> int:
        self._charge()
        if Kind.MAINS_FAILS in self.active:
            return int(EMPTY_MV + (FULL_MV - EMPTY_MV) * self._battery)
        return int(CHARGING_MV + (FLOATING_MV - CHARGING_MV) * self._battery)

    # ------------------------------------------------------------ inputs and readings

    def _tell_inputs(self, *, tampered: bool = False, mains: bool = True) -> None:
        shaken = tampered or Kind.TAMPERED in self.active
        mains = mains and Kind.MAINS_FAILS not in self.active
        self.tell(ev.InputsRead(mains, shaken, self.board.curtain_clear))

    def _read_sensors(self) -> None:
        """Read everything that has a value, as the drivers do."""
        if self.now_ms >= self._air_until_ms:
            self._air = self.world.air(self.site, self.now_ms)
            self._air_until_ms = self.now_ms - (self.now_ms + LOCAL_MS) % DAY_MS + DAY_MS
        air, hour = self._air, local_hour(self.now_ms)
        if not self.active and self._battery >= 1:
            # Most hours of most years.
            degrees = air.temperature_at(hour)
            self.truth.tally.felt(degrees)
            read = degrees, air.humidity_at(hour), air.signal_at(hour), SUPPLY_MV, FLOATING_MV, REGISTERED, 0
            self.tell(ev.SensorRead(*read))
            return
        broken = Kind.TEMPERATURE_SENSOR_FAILS in self.active
        degrees = self._instead(Kind.HEAT, HOT_C, air.temperature_at(hour))
        damp = self._instead(Kind.HUMIDITY, DAMP_PCT, air.humidity_at(hour))
        self.truth.tally.felt(degrees)
        storage = self._instead(Kind.STORAGE_NEAR_FULL, FULL_PCT, 0)
        self.tell(
            ev.SensorRead(
                temperature_c=None if broken else degrees,
                humidity_pct=None if broken else damp,
                signal_dbm=int(self._instead(Kind.SIGNAL_WEAK, WEAK_DBM, air.signal_at(hour))),
                supply_mv=0 if Kind.MAINS_FAILS in self.active else SUPPLY_MV,
                battery_mv=int(self._instead(Kind.BATTERY_DRAINED, DRAINED_MV, self._battery_mv())),
                registration=DENIED if Kind.SIM_DENIED in self.active else REGISTERED,
                storage_pct=int(storage),
                climate_failed=broken,
            )
        )

    def _instead(self, kind: Kind, usual: float, else_: float) -> float:
        injection = self.active.get(kind)
        return else_ if injection is None else float(usual if injection.value is None else injection.value)

    def _read_often(self, times: int) -> None:
        for number in range(times):
            self.plan(self.now_ms + number * 10 * SECOND_MS, self._read_sensors)

    # ------------------------------------------------------------ board, door and lock

    @property
    def is_closed(self) -> bool:
        """Whether the site is closed although it should be open: nobody gets to the machine."""
        return Kind.SITE_CLOSED in self.active

    @property
    def lock_is_stuck(self) -> bool:
        """Whether an unlock order opens nothing."""
        return Kind.LOCK_STUCK in self.active

    def _run_motor(self, effect: ef.RunMotor) -> None:
        if Kind.CONTROLLER_SILENT in self.active:
            turn = Turn(effect.board_sequence, effect.slot, ev.BoardResult.NOT_RUN, 0, 0)
        elif effect.drop_sensor and not self.board.curtain_clear:
            turn = Turn(effect.board_sequence, effect.slot, ev.BoardResult.CURTAIN_BLOCKED, 0, 0)
        else:
            turn = self.board.run(effect.slot, effect.board_sequence)
        self._turn(turn)

    def _turn(self, turn: Turn) -> None:
        raise NotImplementedError

    def _ask_board(self, sequence: int) -> None:
        """A silent controller gives no answer."""
        if Kind.CONTROLLER_SILENT not in self.active:
            answer = ev.BoardAnswered(sequence, self.board.stored(sequence), self.board.life_count)
            self.plan(self.now_ms + 100, lambda: self.tell(answer))

    def _board_does(self, effect: ef.ClearJam | ef.SelfTest) -> None:
        """Clear a jam or test itself, and answer in three seconds."""
        works = Kind.CONTROLLER_SILENT not in self.active
        if works and isinstance(effect, ef.ClearJam):
            self.board.jammed.discard(effect.slot)
        self.plan(self.now_ms + 3 * SECOND_MS, lambda: self.tell(ev.OrderDone(effect.order_id, ok=works)))

    def _pulse_lock(self) -> None:
        self._lock_pulsed = not self.lock_is_stuck

    def _door_moves(self, *, is_open: bool) -> None:
        """The door moves; a switch that is stuck does not say so."""
        self._door_open = is_open
        if Kind.DOOR_SWITCH_STUCK not in self.active:
            self.tell(ev.DoorChanged(open=is_open, life_count=self.board.life_count))

    def _stays_open(self) -> bool:
        """Tell whether whoever leaves now leaves the door open; it is closed later."""
        left = self.active.pop(Kind.DOOR_LEFT_OPEN, None)
        if left is None:
            return False
        closes_ms = left.until_ms or self.now_ms + LEFT_OPEN_MS
        self.plan(max(closes_ms, self.now_ms + MINUTE_MS), lambda: self._door_moves(is_open=False))
        return True
