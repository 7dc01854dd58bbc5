"""A restocker's phone: it keeps what it sends for 30 days, and offers it again to a server that was restored."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from simulator.server_api import ServerApi, ServerError
from simulator.world import DAY_MS, HOUR_MS

KEPT_DAYS: Final = 30
OFFERED_AT_ONCE: Final = 20
"""Things kept in one request: far below the server's limits."""
NOT_FOUND: Final = 404
TAKEN: Final = frozenset({"booked", "waiting", "repeated"})


class Phone:
    """What was entered is kept before it is sent, in a file where there is one."""

    def __init__(self, server: ServerApi, now_ms: Callable[[], int], path: Path | None = None) -> None:
        self._server, self._now_ms, self._path = server, now_ms, path
        self._kept: list[dict[str, Any]] = []
        self._epoch: int | None = None
        self._again_ms = 0
        if path is not None and path.exists():
            state = json.loads(path.read_text())
            self._kept, self._epoch = state["kept"], state["epoch"]

    def enter(self, visit: dict[str, Any], operations: list[dict[str, Any]]) -> list[str]:
        """Send a visit's entries; returns what the server refused, in words. `visit` names visit, work order and machine."""
        kept = {**visit, "operations": operations}
        answer = self._send(f"/visits/{visit['visit_id']}/operations", {"operations": operations}, "visits", kept)
        return _refusals(answer)

    def pick(self, work_order_id: str, body: dict[str, Any]) -> None:
        """Send what was picked."""
        self._move("pick", work_order_id, body)

    def give_back(self, work_order_id: str, body: dict[str, Any]) -> None:
        """Send what is given back to the depot."""
        self._move("return", work_order_id, body)

    def _move(self, kind: str, work_order_id: str, body: dict[str, Any]) -> None:
        entered_at = datetime.fromtimestamp(self._now_ms() / 1000, UTC).isoformat()
        kept = {"kind": kind, "work_order_id": work_order_id, "entered_at": entered_at, **body}
        self._send(f"/work-orders/{work_order_id}/{kind}", body, "depot", kept)

    def _send(self, path: str, body: dict[str, Any], kind: str, kept: dict[str, Any]) -> Any:
        self._keep(kind, kept)
        try:
            answer = self._server.post(path, body)
        except ServerError as error:
            if error.status != NOT_FOUND:
                raise
            # Work of before a restore, which the server knows no more.
            answer = self._server.post("/recovery/operations", {kind: [kept]})
        if self._epoch is None:
            self._met(self._server.epoch)
        return answer

    def _keep(self, kind: str, body: dict[str, Any]) -> None:
        oldest_ms = self._now_ms() - KEPT_DAYS * DAY_MS
        self._kept = [entry for entry in self._kept if entry["at_ms"] >= oldest_ms]
        self._kept.append({"at_ms": self._now_ms(), "kind": kind, "body": body})
        self._save()

    def _save(self) -> None:
        if self._path is not None:
            temporary = self._path.with_suffix(".new")
            temporary.write_text(json.dumps({"kept": self._kept, "epoch": self._epoch}))
            temporary.replace(self._path)

    def offer_again(self) -> list[str]:
        """Offer everything kept to a server of a later epoch; returns what it refused, which is offered again an hour later."""
        if not self._kept or self._now_ms() < self._again_ms:
            return []
        if self._server.epoch is None:
            self._server.sign_in()
        if self._server.epoch == self._epoch:
            return []
        self._again_ms = self._now_ms() + HOUR_MS
        problems = [
            told for body in self._portions() for told in _refusals(self._server.post("/recovery/operations", body))
        ]
        if not problems:
            self._met(self._server.epoch)
        return problems

    def _met(self, epoch: int | None) -> None:
        self._epoch = epoch
        self._save()

    def _portions(self) -> Iterator[dict[str, Any]]:
        for kind in ("depot", "visits"):
            bodies = [entry["body"] for entry in self._kept if entry["kind"] == kind]
            for first in range(0, len(bodies), OFFERED_AT_ONCE):
                yield {kind: bodies[first : first + OFFERED_AT_ONCE]}


def _refusals(answer: dict[str, Any]) -> list[str]:
    return [
        f"{r['operation_id']}: {r['verdict']} {r['detail']}" for r in answer["results"] if r["verdict"] not in TAKEN
    ]
