"""Desired state and books from the server: applied whole or refused whole, and answered by a fact."""

from typing import Any

from device_agent.books import folded, refold
from device_agent.effects import Effect, Show
from device_agent.moment import Moment
from device_agent.ports import AgentParts
from device_agent.vending import Plan
from protocol.codec import decode_books, decode_desired, decode_fact
from protocol.messages import Books, ConfigApplied, Count, Refill


class ConfigMixin(AgentParts):
    """The part of the agent that takes configuration."""

    def desired_arrived(self, payload: bytes, at: Moment) -> list[Effect]:
        """Take a desired state that is newer than the one in force; it is retained, so old ones come again."""
        desired = decode_desired(payload)
        if desired.version <= int(self.outbox.meta.get("desired_version") or 0):
            return []
        meta: dict[str, Any] = {"desired": desired.model_dump(mode="json"), "desired_version": desired.version}
        answer = ConfigApplied(**self._when(at), what="desired", version=desired.version, applied=True)
        self._keep(answer, meta=meta)
        self.plan = Plan.of(desired)
        return [Show(self.display())]

    def books_arrived(self, payload: bytes, at: Moment) -> list[Effect]:
        """Take the server's books, and fold the facts on top that the server had not seen."""
        books = decode_books(payload)
        if books.version <= int(self.outbox.meta.get("books_version") or 0):
            return []
        problem = self._problem(books)
        answer = ConfigApplied(
            **self._when(at), what="books", version=books.version, applied=problem is None, detail=problem or ""
        )
        if problem is not None:
            self._keep(answer)
            return []
        later = (decode_fact(line) for line in self.outbox.lines_after(books.as_of_seq))
        slots = refold(books, self.outbox.slots, later)
        self._keep(answer, slots=slots, meta={"books_version": books.version})
        return [Show(self.display())]

    def _problem(self, books: Books) -> str | None:
        outbox = self.outbox
        if books.stream_id != outbox.stream_id:
            return f"stream_id {books.stream_id[:8]}: expected the current one, {outbox.stream_id[:8]}"
        if not outbox.oldest_kept() - 1 <= books.as_of_seq <= outbox.last_seq:
            return f"as_of_seq {books.as_of_seq}: expected {outbox.oldest_kept() - 1} to {outbox.last_seq}"
        return None

    def entered(self, fact: Count | Refill) -> None:
        """Keep a count or refill that was entered at the machine itself, with its change of the book."""
        self._keep(fact, slots={fact.slot: folded(self.book(fact.slot), fact)})
