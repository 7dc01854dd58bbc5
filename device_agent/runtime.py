"""The thin runtime on the kiosk: gives the agent a real clock, a board, its outbox and an uplink."""

import contextlib
import importlib
import queue
import random
import secrets
import signal
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from device_agent import effects as ef
from device_agent import events as ev
from device_agent.agent import Agent
from device_agent.hal.ports import BoardDriver, BoardError
from device_agent.machine import State
from device_agent.moment import Moment
from device_agent.outbox import OutboxError, open_or_set_aside
from device_agent.reconnecting import BackOff
from device_agent.settings import AgentSettings
from device_agent.uplink import BrokerSettings, Uplink
from protocol.topics import Channel as Ch
from protocol.topics import TopicError, topic

EVENTS_MAX: Final = 1_000
POLL_S: Final = 0.05
CONNECT_PATIENCE_S: Final = 15.0
GOODBYE_S: Final = 3.0
SECONDS: Final = ("vitals_every_s", "ack_timeout_s", "silence_s_max")
"""Settings of the agent that the file may name."""
CLOCK_IS_SET_AFTER: Final = 1_735_689_600
"""2025-01-01: a machine without a battery-backed clock starts in 1970, and is not trusted until it has been set."""


class ConfigError(ValueError):
    """The configuration file is wrong; the text names field, value and expectation."""


@dataclass(frozen=True, slots=True)
class Config:
    """The configuration file of one machine."""

    agent: AgentSettings
    outbox: Path
    broker: BrokerSettings
    driver: str
    board: dict[str, Any]


def read_config(path: Path) -> Config:
    """Read a TOML file; raises ConfigError."""
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config = {str(path)!r}: expected a readable file ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config = {str(path)!r}: expected TOML ({error})") from None
    _only(value, "", {"dispenser_id", "outbox", *SECONDS, "broker", "board"})
    dispenser_id = _need(value, "dispenser_id", str)
    try:
        topic(dispenser_id, Ch.FACTS)
    except TopicError as error:
        raise ConfigError(str(error)) from None
    board = dict(_need(value, "board", dict))
    driver = _need(board, "driver", str, "board.")
    del board["driver"]
    _seconds(value, SECONDS)
    return Config(
        AgentSettings(dispenser_id=dispenser_id, **{name: value[name] for name in SECONDS if name in value}),
        Path(_need(value, "outbox", str)),
        _broker(dict(_need(value, "broker", dict))),
        driver,
        board,
    )


def _broker(broker: dict[str, Any]) -> BrokerSettings:
    password_file = broker.pop("password_file", None)
    seconds = ("keepalive_s", "reconnect_s_max")
    _only(broker, "broker.", {"host", "port", "username", "tls", "ca_file", "certificate_file", "key_file", *seconds})
    _seconds(broker, seconds, "broker.")
    _need(broker, "host", str, "broker.")
    for name in ("username", "ca_file", "certificate_file", "key_file"):
        if name in broker:
            _need(broker, name, str, "broker.")
    if not isinstance(broker.get("tls", True), bool):
        raise ConfigError(f"broker.tls = {broker['tls']!r}: expected true or false")
    port = broker.get("port", 8883)
    if not isinstance(port, int) or not 1 <= port <= 65_535:  # noqa: PLR2004 - the range of ports
        raise ConfigError(f"broker.port = {port!r}: expected a port from 1 to 65535")
    password = None
    if password_file is not None:
        try:
            password = Path(password_file).read_text().strip()
        except OSError as error:
            raise ConfigError(
                f"broker.password_file = {password_file!r}: expected a readable file ({error.strerror})"
            ) from None
    return BrokerSettings(**broker, password=password)


def _need(value: dict[str, Any], name: str, kind: type, within: str = "") -> Any:
    found = value.get(name)
    if not isinstance(found, kind):
        words = "a section" if kind is dict else "a text"
        raise ConfigError(f"{within}{name} = {found!r}: expected {words}")
    return found


def _seconds(value: dict[str, Any], names: tuple[str, ...], within: str = "") -> None:
    for name in names:
        found = value.get(name, 1)
        if not isinstance(found, int) or found < 1:
            raise ConfigError(f"{within}{name} = {found!r}: expected a whole number of seconds, 1 or more")


def _only(value: dict[str, Any], within: str, names: set[str]) -> None:
    for name, found in value.items():
        if name not in names:
            raise ConfigError(f"{within}{name} = {found!r}: expected one of {', '.join(sorted(names))}")


def open_board(config: Config) -> BoardDriver:
    """Make the driver that the configuration names as `module:factory`; raises ConfigError or BoardError."""
    module_name, _, factory_name = config.driver.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"board.driver = {config.driver!r}: expected module:factory ({error})") from None
    board: BoardDriver = factory(config.board)
    return board


class Runtime:
    """One thread: events come through a bounded queue, the board is polled, the agent ticks when it is due."""

    def __init__(self, config: Config, board: BoardDriver) -> None:
        self._board = board
        self._events: queue.Queue[ev.Event] = queue.Queue(EVENTS_MAX)
        self._uplink = Uplink(config.agent.dispenser_id, config.broker, self._events)
        try:
            self._outbox, self.damage = open_or_set_aside(config.outbox, config.agent.dispenser_id)
        except OutboxError:
            board.show([State.OUT_OF_SERVICE, "", ""])  # until a later start finds the disk well again
            raise
        self._boot_s = time.monotonic()
        boot_id = secrets.token_hex(4)
        randomness = random.Random(secrets.randbits(64))  # noqa: S311 - jitter and door codes
        self._agent = Agent(config.agent, self._outbox, board.identity(), randomness, boot_id)
        self._stopping = False
        self._linked = False
        self._connect_at_s = 0.0
        self._back_off = BackOff(config.broker.reconnect_s_max, randomness)

    def at(self) -> Moment:
        """Now."""
        wall_s = time.time()
        mono_ms = int((time.monotonic() - self._boot_s) * 1000)
        return Moment(int(wall_s * 1000), mono_ms, trusted=wall_s > CLOCK_IS_SET_AFTER)

    def stop(self, *_: object) -> None:
        """End the loop after what is being done."""
        self._stopping = True

    def run(self) -> None:
        """Work until stopped."""
        board = self._board
        self._do(self._agent.start(self.at(), board.life_count(), board.last_sequence(), board.door_is_open()))
        if self.damage is not None:
            self._handle(ev.BoardFault("STORAGE_DAMAGED", None, self.damage[:200]))
        while not self._stopping:
            self._keep_connected()
            for event in board.poll():
                self._handle(event)
            with contextlib.suppress(queue.Empty):
                self._handle(self._events.get(timeout=POLL_S))
            if self.at().mono_ms >= self._agent.wakes_at_ms():
                self._do(self._agent.tick(self.at()))
        self._uplink.close(GOODBYE_S)
        self._outbox.close()
        board.close()

    def _handle(self, event: ev.Event) -> None:
        if isinstance(event, ev.LinkUp):
            self._linked = True
            self._back_off.connected()
        elif isinstance(event, ev.LinkDown):
            self._lost()
        self._do(self._agent.handle(event, self.at()))

    def _lost(self) -> None:
        self._linked = False
        self._connect_at_s = time.monotonic() + self._back_off.next_delay_s()

    def _keep_connected(self) -> None:
        if not self._linked and time.monotonic() >= self._connect_at_s:
            self._connect_at_s = time.monotonic() + CONNECT_PATIENCE_S
            self._uplink.connect(self._agent.will(self.at(), went_nowhere=not self._uplink.opened))

    def _do(self, effects: list[ef.Effect]) -> None:
        for effect in effects:
            try:
                self._do_one(effect)
            except BoardError as error:
                self._handle(ev.BoardFault("VMC_OFFLINE", None, str(error)[:200]))

    def _do_one(self, effect: ef.Effect) -> None:
        board = self._board
        match effect:
            case ef.Publish(channel, payload, qos, retain):
                self._uplink.publish(channel, payload, qos, retain=retain)
            case ef.RunMotor(slot, board_sequence, drop_sensor):
                board.start_vend(slot, board_sequence, drop_sensor=drop_sensor)
            case ef.AskBoard(board_sequence):
                answer = ev.BoardAnswered(board_sequence, board.stored_result(board_sequence), board.life_count())
                self._handle(answer)
            case ef.PulseLock():
                board.pulse_lock()
            case ef.ClearJam(order_id, slot):
                self._handle(ev.OrderDone(order_id, board.clear_jam(slot)))
            case ef.SelfTest(order_id):
                self._handle(ev.OrderDone(order_id, *board.self_test()))
            case ef.Restart():
                self.stop()
            case ef.Reconnect():
                self._lost()
                self._connect_at_s = 0.0
                self._do(self._agent.handle(ev.LinkDown(), self.at()))
            case ef.Show(display):
                board.show([display.state, display.session or "", display.message or ""])


def run(path: Path) -> None:
    """Run one machine until SIGTERM or SIGINT; raises ConfigError, BoardError or OutboxError where it cannot start."""
    config = read_config(path)
    runtime = Runtime(config, open_board(config))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, runtime.stop)
    runtime.run()


__all__ = ["BoardError", "ConfigError", "OutboxError", "read_config", "run"]
