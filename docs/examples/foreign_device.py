"""A dispenser in one file, with nothing but the standard library: docs/protocol.md as firmware would write it.

One loop, one socket (small_mqtt.py), one append-only file. The board is make-believe: its motor always turns, its life counter is a file.
`ask SLOT` and `door open` are lines that somebody appends to STORE/input. `--defect` breaks one rule, so that
the checklist of docs/conformance.md can be seen to find it.
"""

import argparse
import hashlib
import json
import os
import secrets
import sys
import time
from pathlib import Path

from small_mqtt import PUBACK, PUBLISH, Wire, read_publish

POLL_S, RECONNECT_S = 0.02, 1
WINDOW, FACTS_MAX, BATCH_BYTES_MAX, HEADER_BYTES_MAX, TIMEOUT_S_MAX = 4, 100, 16 * 1024, 288, 300
SLOT_MAX, DAY_OFFSET_S = 999, 8 * 3600
GIVES_A_PACK = ("delivered", "unverified", "in_doubt")
DEFECTS = (
    "forgets-on-puback", "restarts-numbering", "runs-orders-twice", "announces-first", "turns-first",
    "obeys-any-stream", "serves-expired", "answers-every-gap", "never-repeats",
)  # fmt: skip


# ---------------------------------------------------------------- the file


class Journal:
    """Every line is one step: facts, and what is to be remembered with them. A torn last line never happened."""

    def __init__(self, path, dispenser_id):
        self.dispenser_id, self.memo, self.stream, self.lines, self.digests = dispenser_id, {}, None, [], []
        good = 0
        for raw in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
            try:
                step = json.loads(raw)
            except ValueError:
                break
            if not raw.endswith(b"\n"):
                break
            self._apply(step)
            good += len(raw)
        self.file = path.open("ab")
        self.file.truncate(good)

    def keep(self, facts=(), stream=None, **memo):
        """Make one step durable, and only then believe it."""
        step = {"facts": list(facts), "stream": stream, "memo": memo}
        self.file.write(json.dumps(step).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        self._apply(step)

    def _apply(self, step):
        if step["stream"]:
            self.stream, self.lines = step["stream"], []
            self.digests = [hashlib.sha256(f"{self.dispenser_id}/{self.stream}".encode()).digest()]
        for line in step["facts"]:
            self.lines.append(line.encode())
            self.digests.append(hashlib.sha256(self.digests[-1] + line.encode()).digest())
        self.memo.update(step["memo"])

    def get(self, name, default=0):
        value = self.memo.get(name)
        return default if value is None else value


# ---------------------------------------------------------------- the machine


class Device:
    """Decides, remembers, vends and sends."""

    def __init__(self, options):
        self.options, self.defect = options, options.defect
        store = Path(options.store)
        self.journal = Journal(store / "journal", options.dispenser)
        self.board, self.input_path = store / "board", store / "input"
        self.input_path.touch()
        self.input = self.input_path.open()
        self.input.seek(0, os.SEEK_END)
        self.boot_id, self.boot_s = secrets.token_hex(4), time.monotonic()
        self.wire, self.wire_due_s, self.began_s, self.vend_due_s = None, 0.0, 0.0, None
        self.in_flight, self.next, self.facts_max, self.timeout_s = [], 1, FACTS_MAX, options.timeout
        self.silent_since_s = self.hold_until_s = self.resent_from = None
        self.forked = self.unlocked = False
        self.pubacks, self.intent = {}, None

    # ------------------------------------------------ facts

    def fact(self, kind, **fields):
        mono_ms = int((time.monotonic() - self.boot_s) * 1000)
        value = {"v": 1, "at_ms": int(time.time() * 1000), "mono_ms": mono_ms, "boot_id": self.boot_id}
        value |= {"clock_trusted": True, "kind": kind}
        return json.dumps(value | {name: field for name, field in fields.items() if field is not None})

    def started(self, reason):
        board = {"model": "MAKE-BELIEVE", "runs_sequence_once": False, "counts_life": True}
        desired = self.journal.get("desired", {}).get("version")
        life = self.life_count()
        return self.fact(
            "started", reason=reason, agent_version="foreign-1", board=board, life_count=life, desired_version=desired
        )

    def life_count(self):
        return int(self.board.read_text()) if self.board.exists() else 0

    def start(self):
        """Say that we started, and settle what was cut off."""
        journal = self.journal
        if self.defect == "restarts-numbering" and journal.stream:
            journal.keep(stream=journal.stream, acked=0)
        if journal.stream is None:
            journal.keep([self.started("new_stream")], stream=secrets.token_hex(16))
        else:
            journal.keep([self.started("start")])
        self.intent = journal.get("intent", None)
        if self.intent:
            self.vend_ended("in_doubt")
        for name, kind in self.open_orders():
            self.answer(name.removeprefix("order:"), kind, "done" if kind == "reboot" else "failed", "after a restart")
        if journal.get("door", None):
            self.door_closed()

    def open_orders(self):
        orders = [(name, value) for name, value in self.journal.memo.items() if name.startswith("order:")]
        return [(name, kind) for name, (kind, outcome) in orders if outcome is None]

    # ------------------------------------------------ vends and doors

    def refusal(self, slot, *, test):
        desired = self.journal.get("desired", {})
        plan = next((plan for plan in desired.get("planogram", []) if plan["slot"] == slot), None)
        queue = self.journal.get(f"book:{slot}", [])
        if plan is None:
            return "unknown_slot"
        if self.vend_due_s is not None:
            return "busy"
        if self.journal.get("door", None) and not test:
            return "door_open"
        if not plan.get("enabled", True):
            return "disabled"
        if not queue:
            return "empty"
        known = [lot for lot in desired["lots"] if (lot["lot"], lot["product"]) == (queue[0][0], plan["product"])]
        if not known or known[0].get("blocked"):
            return "blocked_lot"
        today = time.strftime("%Y-%m-%d", time.gmtime(time.time() + DAY_OFFSET_S))
        expired = known[0]["expires_on"] <= today and self.defect != "serves-expired"
        return "expired" if expired else None

    def vend(self, slot, order_id=None):
        """Make the intent durable, and only then turn the motor."""
        reason = self.refusal(slot, test=order_id is not None)
        queue = self.journal.get(f"book:{slot}", [])
        self.intent = {"slot": slot, "order_id": order_id, "lot": queue[0][0] if queue else None}
        if reason:
            self.vend_ended("refused", reason)
            return
        if self.defect != "turns-first":
            self.journal.keep(intent=self.intent)
        self.board.write_text(str(self.life_count() + 1))  # the motor turns
        self.vend_due_s = time.monotonic() + self.options.vend

    def vend_ended(self, outcome, reason=None):
        """One step: the fact, the pack that is gone, the answer to the order, the end of the intent."""
        slot, order_id = self.intent["slot"], self.intent["order_id"]
        memo = {"intent": None}
        if outcome in GIVES_A_PACK:
            memo[f"book:{slot}"] = less_one(self.journal.get(f"book:{slot}", []))
        facts = [self.fact(
            "vend", slot=slot, outcome=outcome, reason=reason, lot=self.intent["lot"], order_id=order_id,
            test=order_id is not None, life_count=self.life_count(),
        )]  # fmt: skip
        if order_id:
            result = "done" if outcome == "delivered" else "failed"
            facts.append(self.fact("order_result", order_id=order_id, outcome=result, detail=reason or outcome))
            memo[f"order:{order_id}"] = ["test_vend", result]
        self.journal.keep(facts, **memo)
        self.intent = self.vend_due_s = None

    def door_opened(self):
        code = f"{secrets.randbelow(1_000_000):06d}"
        print(f"door session {code}", flush=True)  # noqa: T201 - this machine's screen
        facts = [self.fact("door_opened", session=code, authorised=self.unlocked, life_count=self.life_count())]
        self.journal.keep(facts, door=code)

    def door_closed(self):
        facts = [self.fact("door_closed", session=self.journal.get("door"), open_ms=0, life_count=self.life_count())]
        self.journal.keep(facts, door=None)
        self.unlocked = False

    def touched(self, line):
        """Somebody stands at the machine."""
        word, _, value = line.strip().partition(" ")
        if word == "ask":
            self.vend(int(value))
        elif word == "door" and (value == "open") != bool(self.journal.get("door", None)):
            self.door_opened() if value == "open" else self.door_closed()

    # ------------------------------------------------ what the server says

    def heard(self, head, body):
        topic, payload = read_publish(self.wire, head, body)
        arms = {"ack": self.answered, "orders": self.ordered, "desired": self.desired, "books": self.books}
        try:
            arms[topic.rsplit("/", 1)[1]](json.loads(payload))
        except (ValueError, KeyError, TypeError, AttributeError):
            pass  # it cannot be read, so it changes nothing; the server sends it again

    def answered(self, said):
        journal, through, epoch = self.journal, said["through_seq"], said["server_epoch"]
        if said["stream_id"] != journal.stream:
            if self.defect == "obeys-any-stream":
                journal.keep(acked=through)
            return
        self.silent_since_s = None
        if through > len(journal.lines) or epoch < journal.get("epoch"):
            return
        if through > journal.get("acked") and said["digest"] != journal.digests[through].hex():
            pass  # of another card that used the same numbers: the server finds the fork in what is sent on
        elif epoch > journal.get("epoch") or through > journal.get("acked"):
            back = through < journal.get("acked")
            journal.keep(acked=through, epoch=epoch)
            self.in_flight = [] if back else [sent for sent in self.in_flight if sent[1] > through]
            self.next = through + 1 if back else max(self.next, through + 1)
            self.facts_max, self.timeout_s = min(FACTS_MAX, self.facts_max * 2), self.options.timeout
            self.resent_from = None
        if said["kind"] == "gap" and (self.resent_from != through or self.defect == "answers-every-gap"):
            self.rewind()
            self.resent_from = through
        elif said["kind"] == "nack":
            self.smaller()
            self.hold_until_s = time.monotonic() + self.jittered(self.timeout_s)
        elif said["kind"] == "fork":
            self.forked, self.in_flight = True, []

    def ordered(self, order):
        journal, order_id, kind = self.journal, order["order_id"], order["kind"]
        if f"order:{order_id}" in journal.memo and self.defect != "runs-orders-twice":
            return
        age_ms = (time.monotonic() - self.began_s) * 1000
        # The way out of a fork is bound to the stream alone.
        session = order["session"] if kind != "new_stream" else journal.get("session")
        if (order["stream_id"], session) != (journal.stream, journal.get("session")):
            self.answer(order_id, kind, "refused", "another stream or session")
        elif age_ms > order["expires_after_ms"]:
            self.answer(order_id, kind, "expired", f"{age_ms:.0f} ms into the session")
        else:
            journal.keep(**{f"order:{order_id}": [kind, None]})
            self.act(order, order_id, kind)

    def act(self, order, order_id, kind):
        if kind == "test_vend":
            self.vend(order["slot"], order_id)
        elif kind == "reboot":
            os.execv(sys.executable, [sys.executable, *sys.argv])  # noqa: S606 - itself; answered after the start
        elif kind == "new_stream":
            self.journal.keep(stream=secrets.token_hex(16), acked=0, puback=0, books_version=0)
            self.journal.keep([self.started("new_stream")])
            self.forked, self.resent_from = False, None
            self.rewind()
            self.answer(order_id, kind, "done", "")
            raise OSError("a new stream: a fresh connection announces it")
        elif kind in {"unlock", "clear_jam", "self_test"}:
            self.unlocked = self.unlocked or kind == "unlock"
            self.answer(order_id, kind, "done", "")
        else:
            self.answer(order_id, kind, "refused", "not known here")

    def answer(self, order_id, kind, outcome, detail):
        fact = self.fact("order_result", order_id=order_id, outcome=outcome, detail=detail)
        self.journal.keep([fact], **{f"order:{order_id}": [kind, outcome]})

    def desired(self, said):
        """Whole or not at all: every slot and lot is looked at before anything is kept."""
        if said["version"] <= self.journal.get("desired", {}).get("version", 0):
            return
        slots = all(1 <= p["slot"] <= SLOT_MAX and p["capacity"] >= 1 and p["product"] for p in said["planogram"])
        lots = all(
            time.strptime(lot["expires_on"], "%Y-%m-%d") and lot["product"] and lot["lot"] for lot in said["lots"]
        )
        if slots and lots:
            fact = self.fact("config_applied", what="desired", version=said["version"], applied=True)
            self.journal.keep([fact], desired=said)

    def books(self, said):
        journal, version, as_of = self.journal, said["version"], said["as_of_seq"]
        if version <= journal.get("books_version"):
            return
        if said["stream_id"] != journal.stream or not 0 <= as_of <= len(journal.lines):
            journal.keep([self.fact("config_applied", what="books", version=version, applied=False, detail="not mine")])
            return
        book = {f"book:{s['slot']}": [[run["lot"], run["packs"]] for run in s["queue"]] for s in said["slots"]}
        for line in journal.lines[as_of:]:
            fact = json.loads(line)
            if fact["kind"] == "vend" and fact["outcome"] in GIVES_A_PACK:
                name = f"book:{fact['slot']}"
                book[name] = less_one(book.get(name, []))
        fact = self.fact("config_applied", what="books", version=version, applied=True)
        journal.keep([fact], books_version=version, **book)

    # ------------------------------------------------ sending

    def topic(self, channel):
        return f"fleet/v1/{self.options.dispenser}/{channel}"

    def status(self, *, online):
        value = {"v": 1, "stream_id": self.journal.stream, "session": self.journal.get("session"), "online": online}
        return json.dumps(value | {"at_ms": int(time.time() * 1000)}).encode()

    def connect(self):
        """A session: its number is durable, its will is with the broker, we hear, and only then say that we are here."""
        self.journal.keep(session=self.journal.get("session") + 1)
        self.wire = Wire(self.options.broker, self.options.dispenser, self.topic("status"), self.status(online=False))
        topics = [self.topic(channel) for channel in ("ack", "orders", "desired", "books")]
        if self.defect == "announces-first":
            self.wire.publish(self.topic("status"), self.status(online=True), retain=True)
            time.sleep(0.5)
        self.wire.subscribe(topics)
        self.began_s, self.silent_since_s, self.hold_until_s, self.resent_from = time.monotonic(), None, None, None
        self.rewind(max(self.journal.get("acked"), self.journal.get("puback")))
        if self.defect != "announces-first":
            self.wire.publish(self.topic("status"), self.status(online=True), retain=True)

    def rewind(self, through=None):
        self.in_flight, self.next = [], (self.journal.get("acked") if through is None else through) + 1

    def smaller(self):
        sent = max((last - first + 1 for first, last, _ in self.in_flight), default=self.facts_max)
        self.facts_max = max(1, min(sent, self.facts_max) // 2)
        self.rewind()

    def jittered(self, seconds):
        return seconds * (0.75 + secrets.randbelow(500) / 1000)

    def pump(self):
        """Send what the window has room for, and again what nobody answered."""
        now = time.monotonic()
        if self.silent_since_s is not None and now - self.silent_since_s > self.options.silence:
            raise OSError("sending without an answer")
        if self.in_flight and now - self.in_flight[0][2] > self.timeout_s and self.defect != "never-repeats":
            self.smaller()
            self.timeout_s = min(self.jittered(2 * self.timeout_s), TIMEOUT_S_MAX)
        if self.forked or (self.hold_until_s is not None and now < self.hold_until_s):
            return
        self.hold_until_s = None
        while len(self.in_flight) < WINDOW and self.next <= len(self.journal.lines):
            self.send_batch(now)

    def send_batch(self, now):
        journal, lines, size = self.journal, [], HEADER_BYTES_MAX
        for line in journal.lines[self.next - 1 : self.next - 1 + self.facts_max]:
            size += len(line) + 1
            if lines and size > BATCH_BYTES_MAX:
                break
            lines.append(line)
        header = {
            "v": 1, "dispenser_id": self.options.dispenser, "stream_id": journal.stream, "first_seq": self.next,
            "prev_digest": journal.digests[self.next - 1].hex(), "sent_at_ms": int(time.time() * 1000),
        }  # fmt: skip
        last = self.next + len(lines) - 1
        packet_id = self.wire.publish(self.topic("facts"), b"\n".join([json.dumps(header).encode(), *lines]))
        self.pubacks[packet_id] = last
        self.in_flight.append((self.next, last, now))
        self.next = last + 1
        self.silent_since_s = self.silent_since_s or now

    # ------------------------------------------------ the loop

    def run(self):
        self.start()
        while True:
            try:
                if self.wire is None and time.monotonic() >= self.wire_due_s:
                    self.connect()
                self.turn()
            except OSError as error:
                print(f"connection: {error}", flush=True)  # noqa: T201 - this machine's log
                if self.wire:
                    self.wire.close()
                self.wire, self.wire_due_s = None, time.monotonic() + self.jittered(RECONNECT_S)

    def turn(self):
        for line in self.input:
            self.touched(line)
        if self.vend_due_s is not None and time.monotonic() >= self.vend_due_s:
            self.vend_ended("delivered")
        if self.wire is None:
            time.sleep(POLL_S)
            return
        packet = self.wire.poll()
        if packet and packet[0] >> 4 == PUBLISH:
            self.heard(*packet)
        elif packet and packet[0] >> 4 == PUBACK:
            last = self.pubacks.pop(packet[1], 0)
            if self.defect == "forgets-on-puback" and last > self.journal.get("puback"):
                self.journal.keep(puback=last)
        self.pump()


def less_one(queue):
    """Return the queue without its front pack."""
    if not queue:
        return queue
    (lot, packs), *rest = queue
    return ([[lot, packs - 1]] if packs > 1 else []) + rest


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--broker", required=True, help="mqtt://USER:PASSWORD@HOST:PORT, or mqtts://")
    parser.add_argument("--dispenser", required=True, metavar="ID")
    parser.add_argument("--store", required=True, metavar="DIRECTORY")
    parser.add_argument("--timeout", type=float, default=20, metavar="SECONDS", help="send again after this")
    parser.add_argument("--silence", type=float, default=60, metavar="SECONDS", help="connect anew after this")
    parser.add_argument("--vend", type=float, default=0.6, metavar="SECONDS", help="a motor turns for this long")
    parser.add_argument("--defect", choices=DEFECTS, help="break one rule")
    Device(parser.parse_args()).run()


if __name__ == "__main__":
    main()
