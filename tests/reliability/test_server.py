"""P4 to P6: the database is killed under load, poison arrives from all sides, and history comes again and again."""

import itertools
import random
import time
from collections.abc import Callable, Iterator

import pytest

from fleet_server.database import Database
from fleet_server.devices import fleet as devices
from fleet_server.ledger.audit_store import balances
from protocol.codec import encode_batch, first_digest, next_digest
from protocol.messages import BatchHeader
from tests.benchmarks.bare_mqtt import BareClient
from tests.fleet_server.machine import Machine as Chain
from tests.reliability.conftest import Scale
from tests.reliability.fleet import Fleet, register
from tests.reliability.invariants import lines_of
from tests.reliability.test_network import count

pytestmark = pytest.mark.slow


def test_p4_a_database_killed_under_load_keeps_what_was_acknowledged(fleet: Fleet, scale: Scale) -> None:
    throw = scale.throw()
    for _ in range(scale.of(2, 20)):
        fleet.work(throw, scale.facts // 4)
        fleet.installation.kill("postgres")
        fleet.work(throw, 1)
        fleet.installation.restart("postgres")
    fleet.settle(scale.note)


def poison(throw: random.Random, dispenser_ids: list[str], number: int) -> list[tuple[str, bytes]]:
    """Messages that nobody can read, to every channel that the server listens on."""
    # In nobody's name: cut at the end of a line it would be a good batch, and one vend of that machine.
    good = Chain("NOBODY").vend().vend().batch()
    spoils: list[Callable[[], bytes]] = [
        lambda: throw.randbytes(throw.randint(0, 400)),
        lambda: good[: throw.randrange(len(good))],
        lambda: bytes(b ^ (throw.random() < 0.02) for b in good),
        lambda: b"x" * throw.choice([4_097, 16_385, 65_000]),
        lambda: b"[" * 5_000,
        lambda: b'{"v":1,"dispenser_id":null}\n{}',
        lambda: b'{"v":1e999}',
        lambda: b"\xff\xfe\x00",
    ]
    return [
        (
            f"fleet/v1/{throw.choice([*dispenser_ids, 'NOBODY'])}/{throw.choice(['facts', 'facts', 'vitals', 'status'])}",
            throw.choice(spoils)(),
        )
        for _ in range(number)
    ]


def test_p5_poison_is_quarantined_and_the_streams_go_on(fleet: Fleet, scale: Scale) -> None:
    throw = scale.throw()
    number = scale.of(200, 1_000)
    quarantined = count(fleet, "fleet_ingest_quarantined_total")
    stranger = f"POISON-{scale.seed}"
    register(fleet.url, [stranger])
    chain = Chain(stranger).tell_line(b'{"kind":"of a kind that no version knows"}').tell_line(b"no JSON at all").vend()
    address = fleet.installation.address
    sender = BareClient(address, "fleet", "poison-sender")
    ids = [machine.id for machine in fleet.machines]
    sender.publish_all(poison(throw, ids, number // 2))
    fleet.work(throw, scale.facts // 2)
    sender.publish_all([(f"fleet/v1/{stranger}/facts", chain.batch())])
    sender.publish_all(poison(throw, ids, number // 2))
    sender.close()
    # And the other way: a machine lives through whatever its own channels bring.
    server = BareClient(address, "server", "poison-server")
    channels = ["ack", "orders", "desired", "books"]
    server.publish_all([
        (f"fleet/v1/{throw.choice(ids)}/{throw.choice(channels)}", payload)
        for _, payload in poison(throw, ids, number)
    ])  # fmt: skip
    server.close()
    fleet.work(throw, scale.facts // 2)
    fleet.settle(scale.note)
    fleet.until(lambda: count(fleet, "fleet_ingest_quarantined_total") == quarantined + 2, "two lines are quarantined")
    database = Database(fleet.url)
    with database.begin() as connection:
        facts = devices.facts_page(connection, stranger)
    database.close()
    assert [fact.kind for fact in facts] == ["vend", None, None]


def test_p6_the_whole_history_replayed_three_times_shuffled_changes_no_balance(fleet: Fleet, scale: Scale) -> None:
    throw = scale.throw()
    fleet.work(throw, scale.facts)
    fleet.settle(scale.note)
    batches = [batch for machine in fleet.machines for batch in recut(fleet, machine.id, throw)]
    database = Database(fleet.url)
    with database.begin() as connection:
        before = balances(connection)
    duplicates = count(fleet, "fleet_ingest_duplicates_total")
    last = f"LAST-{scale.seed}-{time.monotonic_ns()}"
    register(fleet.url, [last])
    replayed = [batch for batch in batches for _ in range(3)]
    throw.shuffle(replayed)
    sender = BareClient(fleet.installation.address, "fleet", "replayer")
    for first in range(0, len(replayed), 20):
        # Not all at once: of a machine that floods, ingest hears no more than its share.
        sender.publish_all(replayed[first : first + 20])
        time.sleep(0.05)
    sender.publish_all([(f"fleet/v1/{last}/facts", Chain(last).vend().batch())])
    fleet.until(lambda: list(lines_of(fleet.url, last)), "the last message is there, and so are those before it")
    sender.close()
    assert count(fleet, "fleet_ingest_duplicates_total") > duplicates
    with database.begin() as connection:
        after = {key: units for key, units in balances(connection).items() if last not in key[0]}
    database.close()
    assert after == before, scale.note
    fleet.settle(scale.note)


def recut(fleet: Fleet, dispenser_id: str, throw: random.Random) -> Iterator[tuple[str, bytes]]:
    """Cut everything that the server holds of a machine into batches anew: (topic, payload)."""
    for stream_id, rows in itertools.groupby(lines_of(fleet.url, dispenser_id), key=lambda row: row[0]):
        lines = [line for _, _, line in rows]
        digests = [first_digest(dispenser_id, stream_id)]
        for line in lines:
            digests.append(next_digest(digests[-1], line))
        first = 0
        while first < len(lines):
            size = throw.randint(1, 20)
            cut = lines[first : first + size]
            header = BatchHeader(
                dispenser_id=dispenser_id, stream_id=stream_id, first_seq=first + 1,
                prev_digest=digests[first].hex(), sent_at_ms=int(time.time() * 1000),
            )  # fmt: skip
            yield f"fleet/v1/{dispenser_id}/facts", encode_batch(header, cut)
            first += size
