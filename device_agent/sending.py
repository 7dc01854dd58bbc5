"""Go-back-N on the server's acknowledgement: a fact stops being pending only when the server says so. No I/O."""

import random
from collections import deque
from typing import Final, NamedTuple

from device_agent.effects import Effect, Publish, Reconnect
from device_agent.moment import Moment
from device_agent.outbox import Outbox
from protocol.codec import encode_batch
from protocol.messages import Ack, AckMessage, BatchHeader, Fork, Gap, Nack
from protocol.topics import Channel
from protocol.versions import BATCH_FACTS_MAX

WINDOW_BATCHES_MAX: Final = 4
ACK_TIMEOUT_MS_MAX: Final = 300_000
FORKED_MS_MAX: Final = 3_600_000
"""So long a forked stream waits for the order that ends it before a fresh connection asks again."""


class InFlight(NamedTuple):
    """A batch that waits for its acknowledgement."""

    first_seq: int
    last_seq: int
    sent_ms: int


class Sender:
    """Sends the outbox in order, a small window ahead of the acknowledgements."""

    def __init__(self, outbox: Outbox, randomness: random.Random, ack_timeout_s: int, silence_s_max: int) -> None:
        self._outbox, self._randomness = outbox, randomness
        self._first_timeout_ms, self._silence_ms_max = ack_timeout_s * 1000, silence_s_max * 1000
        self._in_flight: deque[InFlight] = deque()
        self._up = False
        self._next_seq = 1
        # The first fact that is still kept, where the server asks for an older one.
        self._oldest_seq: int | None = None
        self._facts_max = BATCH_FACTS_MAX
        self._timeout_ms = self._first_timeout_ms
        self._heard_ms = 0
        # When the first batch went out that nothing has been heard of since.
        self._silent_since_ms: int | None = None
        self._resent_from: int | None = None
        self._hold_until_ms: int | None = None
        self.forked = False

    def link_up(self) -> None:
        """Begin anew from the last acknowledged fact, and with the first timeout: this may be the link that works.

        A forked stream is tried again too: the server's answer makes sure that the order which ends it is on its way.
        """
        self._up = True
        self.forked = False
        self._timeout_ms = self._first_timeout_ms
        self._silent_since_ms = None
        self._hold_until_ms = None
        self._rewind()

    def link_down(self) -> None:
        """Wait for the next connection."""
        self._up = False
        self._in_flight.clear()

    def stream_began(self) -> None:
        """Send the new stream from its beginning."""
        self.forked = False
        self._rewind()

    def _rewind(self) -> None:
        self._in_flight.clear()
        self._resent_from = None
        asked, kept = self._outbox.acked_through + 1, self._outbox.oldest_kept()
        self._next_seq, self._oldest_seq = max(asked, kept), kept if kept > asked else None

    def pump(self, at: Moment) -> list[Effect]:
        """Send what the window has room for."""
        effects: list[Effect] = []
        outbox = self._outbox
        if not self._up or self.forked or (self._hold_until_ms is not None and at.mono_ms < self._hold_until_ms):
            return effects
        self._hold_until_ms = None
        while self._next_seq <= outbox.last_seq and len(self._in_flight) < WINDOW_BATCHES_MAX:
            digest, lines = outbox.batch(self._next_seq, self._facts_max)
            if not lines:
                break
            if self._silent_since_ms is None:
                self._silent_since_ms = at.mono_ms
            header = BatchHeader(
                dispenser_id=outbox.dispenser_id,
                stream_id=outbox.stream_id,
                first_seq=self._next_seq,
                prev_digest=digest.hex(),
                sent_at_ms=at.wall_ms,
                oldest=True if self._next_seq == self._oldest_seq else None,
            )
            last = self._next_seq + len(lines) - 1
            self._in_flight.append(InFlight(self._next_seq, last, at.mono_ms))
            self._next_seq = last + 1
            effects.append(Publish(Channel.FACTS, encode_batch(header, lines)))
        return effects

    def answered(self, message: AckMessage, at: Moment) -> list[Effect]:
        """Take an answer of the server; returns what is sent because of it."""
        outbox = self._outbox
        if isinstance(message, Fork) and message.stream_id == outbox.stream_id:
            return self._fork(message, at)
        if message.stream_id != outbox.stream_id:
            return []
        if message.through_seq > outbox.last_seq:
            return self._show(outbox.last_seq, at)
        self._silent_since_ms = None
        self._heard_ms = at.mono_ms
        if message.server_epoch < int(outbox.meta.get("epoch", 0)):
            return []
        if not self._acknowledge(message):
            return self._show(message.through_seq, at)
        match message:
            case Ack():
                pass
            case Gap():
                self._resend_once(message.through_seq)
            case Nack() if self._hold_until_ms is not None or not self._in_flight:
                pass  # one wait for many answers, and none for what we did not send: somebody may send rubbish in our name
            case Nack():
                self._smaller()
                self._rewind()
                self._hold_until_ms = at.mono_ms + self._jittered(self._timeout_ms)
                self._timeout_ms = min(self._timeout_ms * 2, ACK_TIMEOUT_MS_MAX)
        return self.pump(at)

    def _acknowledge(self, message: AckMessage) -> bool:
        """Note where the server stands; False where it speaks of facts that another card sent under our numbers.

        The server finds the fork in what we send. A lower cursor acknowledges nothing, whatever its digest.
        """
        through, outbox = message.through_seq, self._outbox
        acked = outbox.acked_through
        if through > acked and bytes.fromhex(message.digest) != outbox.digest(through):
            return False
        if message.server_epoch > int(outbox.meta.get("epoch", 0)) or through > acked:
            outbox.acknowledge(through, message.server_epoch, message.server_at_ms)
            if through < acked:
                # The server was restored from a backup: only then may its cursor be lower than we remember.
                self._rewind()
            self._progress()
        return True

    def _show(self, seq: int, at: Moment) -> list[Effect]:
        """Send from this fact on, if it was not sent yet: a server that knows it, or another one, is told by it which card we are.

        In small batches, each answered with where the server stands, we would not come so far.
        """
        if self._next_seq < seq:
            self._in_flight.clear()
            self._next_seq = seq
        return self.pump(at)

    def _fork(self, message: Fork, at: Moment) -> list[Effect]:
        """Stop: the server knows other facts under our numbers, often more of them. None of it acknowledges ours."""
        if message.server_epoch >= int(self._outbox.meta.get("epoch", 0)):
            self._silent_since_ms = None
            if not self.forked:
                self._heard_ms = at.mono_ms
            self.forked = True
            self._in_flight.clear()
        return []

    def _progress(self) -> None:
        through = self._outbox.acked_through
        while self._in_flight and self._in_flight[0].last_seq <= through:
            self._in_flight.popleft()
        self._next_seq = max(self._next_seq, through + 1)
        self._timeout_ms = self._first_timeout_ms
        self._facts_max = min(BATCH_FACTS_MAX, self._facts_max * 2)
        self._resent_from = None

    def _resend_once(self, through_seq: int) -> None:
        """However many gap answers arrive for one gap, it is sent again once; the timeout does the rest."""
        if self._resent_from != through_seq:
            self._rewind()
            self._resent_from = through_seq

    def tick(self, at: Moment) -> list[Effect]:
        """Send again what was not acknowledged in time; ask for a fresh connection when nothing was for long."""
        if not self._up:
            return []
        if self.forked and at.mono_ms - self._heard_ms >= FORKED_MS_MAX:
            self._heard_ms = at.mono_ms
            return [Reconnect("no order to begin a new stream")]
        if self._silent_since_ms is not None and at.mono_ms - self._silent_since_ms >= self._silence_ms_max:
            self._silent_since_ms = None
            self._slow_down()
            return [Reconnect(f"no acknowledgement for {self._silence_ms_max // 1000} s")]
        if self._in_flight and at.mono_ms >= self._due_ms():
            self._slow_down()
        return self.pump(at)

    def _smaller(self) -> None:
        """Halve what was really sent: half of a limit that no batch reached would send the same batch again."""
        sent = max((batch.last_seq - batch.first_seq + 1 for batch in self._in_flight), default=self._facts_max)
        self._facts_max = max(1, min(self._facts_max, sent) // 2)

    def _slow_down(self) -> None:
        self._smaller()
        self._rewind()
        self._timeout_ms = min(self._jittered(self._timeout_ms * 2), ACK_TIMEOUT_MS_MAX)

    def _due_ms(self) -> int:
        """On a slow link the second batch waits for the first: its time begins with the answer to that."""
        return max(self._in_flight[0].sent_ms, self._heard_ms) + self._timeout_ms

    def _jittered(self, delay_ms: int) -> int:
        return int(delay_ms * self._randomness.uniform(0.75, 1.25))

    def wakes_at_ms(self) -> int | None:
        """The next moment at which `tick` has something to do."""
        if not self._up:
            return None
        if self.forked:
            return self._heard_ms + FORKED_MS_MAX
        if self._hold_until_ms is not None:
            return self._hold_until_ms
        if self._in_flight:
            silent = self._silent_since_ms
            return self._due_ms() if silent is None else min(self._due_ms(), silent + self._silence_ms_max)
        return None
