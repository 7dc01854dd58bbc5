"""An agent on a bench: its outbox in a file, its board a list of what it was asked, its clock in the test's hand."""

import random
from datetime import date
from pathlib import Path
from typing import Any

from device_agent import effects as ef
from device_agent import events as ev
from device_agent.agent import Agent
from device_agent.moment import Moment
from device_agent.outbox import Outbox
from device_agent.settings import AgentSettings
from protocol.codec import decode_fact, encode
from protocol.messages import Board, Books, Desired, Fact, LotInfo, LotPacks, SlotClaim, SlotPlan
from protocol.topics import Channel

NOON_MS = 1_790_049_600_000  # 2026-09-22 12:00 in Qingdao
BOARD = Board(model="BENCH", runs_sequence_once=True, counts_life=True)


class Bench:
    """One machine; `power_cut` forgets everything that is not on disk. `stream_ids` draws those; without it they are unique."""

    def __init__(
        self,
        path: Path,
        board: Board = BOARD,
        seed: int = 1,
        dispenser_id: str = "HD-001",
        stream_ids: random.Random | None = None,
    ) -> None:
        self.path, self.board, self._seed, self.id = path, board, seed, dispenser_id
        self._stream_ids = stream_ids
        self.now_ms, self.mono_ms, self.trusted = NOON_MS, 0, True
        self.asked: list[ef.Effect] = []
        self.boots = 0
        self._boot()

    def _boot(self) -> None:
        self.boots += 1
        self.mono_ms = 0
        self.outbox = Outbox(self.path, self.id, randomness=self._stream_ids)
        self.agent = Agent(
            AgentSettings(dispenser_id=self.id),
            self.outbox,
            self.board,
            random.Random(self._seed + self.boots - 1),
            f"{self.boots:08x}",
        )

    def at(self) -> Moment:
        return Moment(self.now_ms, self.mono_ms, self.trusted)

    def passes(self, seconds: float) -> "Bench":
        self.now_ms += int(seconds * 1000)
        self.mono_ms += int(seconds * 1000)
        return self

    def start(self, **more: Any) -> list[ef.Effect]:
        return self._keep(self.agent.start(self.at(), **more))

    def tell(self, *events: ev.Event) -> list[ef.Effect]:
        effects: list[ef.Effect] = []
        for event in events:
            effects += self._keep(self.agent.handle(event, self.at()))
        return effects

    def tick(self) -> list[ef.Effect]:
        return self._keep(self.agent.tick(self.at()))

    def _keep(self, effects: list[ef.Effect]) -> list[ef.Effect]:
        self.asked += effects
        return effects

    def power_cut(self) -> "Bench":
        self.outbox.close()
        self._boot()
        return self

    def facts(self) -> list[Fact]:
        return [decode_fact(line) for line in self.outbox.lines_after(0)]

    def loaded(self, *queue: tuple[str, int], limits: dict[str, int] | None = None, **more: Any) -> "Bench":
        """Started, with slot 1 planned for CONDOM-M and this queue in its book."""
        self.start()
        version = int(self.outbox.meta.get("desired_version") or 0) + 1
        desired: dict[str, Any] = {
            "version": version,
            "planogram": [SlotPlan(slot=1, product="CONDOM-M", capacity=20)],
            "lots": [
                LotInfo(lot="GOOD", product="CONDOM-M", expires_on=date(2029, 1, 1)),
                LotInfo(lot="LATER", product="CONDOM-M", expires_on=date(2030, 1, 1)),
                LotInfo(lot="OLD", product="CONDOM-M", expires_on=date(2026, 9, 22)),
                LotInfo(lot="HEATED", product="CONDOM-M", expires_on=date(2029, 1, 1), blocked=True),
            ],
            "limits": {"cooldown_s": 0, "daily_packs_max": 40} | (limits or {}),
        } | more
        self.tell(ev.MessageArrived(Channel.DESIRED, encode(Desired.model_validate(desired))))
        self.books(*queue)
        return self

    def books(self, *queue: tuple[str, int], as_of: int | None = None) -> None:
        books = Books(
            version=int(self.outbox.meta.get("books_version") or 0) + 1,
            stream_id=self.outbox.stream_id,
            as_of_seq=self.outbox.last_seq if as_of is None else as_of,
            slots=[SlotClaim(slot=1, queue=[LotPacks(lot=lot, packs=packs) for lot, packs in queue])],
        )
        self.tell(ev.MessageArrived(Channel.BOOKS, encode(books)))

    def vend(self, result: ev.BoardResult = ev.BoardResult.DROPPED) -> list[ef.Effect]:
        """Ask for slot 1 and let the board answer."""
        effects = self.tell(ev.SlotChosen(1))
        for effect in effects:
            if isinstance(effect, ef.RunMotor):
                effects += self.tell(ev.VendEnded(effect.board_sequence, result, 1500, 1))
        return effects
