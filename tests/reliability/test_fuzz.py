"""X5: what no well-meaning client sends, to every route of the API and to every decoder of the protocol."""

import contextlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky, Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from sqlalchemy import text

from fleet_server.database import Database
from fleet_server.ingest.apply import Received, apply
from fleet_server.ledger.audit import audit
from protocol import codec
from protocol.codec import CodecError
from tests.fleet_server.fixtures import NOW
from tests.fleet_server.machine import Machine as Chain
from tests.installation import PASSWORD
from tests.reliability.conftest import Scale
from tests.reliability.fleet import Fleet
from tests.reliability.test_abuse import attempts

__all__ = ["attempts"]
pytestmark = pytest.mark.slow
LEFT_OUT = {
    "/api/v1/sign-out": "ends the session of all cases that follow",
    "/api/v1/clock/advance": "moves the fleet's clock, which never goes back",
    "/api/v1/clock/live": "the same",
    "/api/v1/sign-in": "closes after eight attempts; X4 tries it",
}
SEARCHES_MAX = 5
REQUEST_S_MAX = 60
"""Only catches a hang."""


def fuzzed(seeded: int, cases: int, strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Try `cases` values; the same seed gives the same values."""

    @seed(seeded)
    @settings(
        max_examples=cases, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def each(value: Any) -> None:
        check(value)

    each()


def test_x5_no_request_makes_the_api_fail_or_hang(fleet: Fleet, scale: Scale, attempts: None) -> None:
    url = fleet.installation.url
    login = {"user": "administrator", "password": PASSWORD}
    token = httpx2.post(f"{url}/api/v1/sign-in", json=login, timeout=60).json()["token"]
    with urlopen(f"{url}/openapi.json", timeout=20) as answer:
        schema = schemathesis.openapi.from_dict(json.load(answer))
    operations: list[Any] = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    chosen = [operation for operation in operations if operation.path not in LEFT_OUT]
    assert len(chosen) > 20
    chosen = scale.of(scale.throw().sample(chosen, 15), chosen)
    cases = scale.of(3, 50_000 // (len(chosen) * 2))
    outcomes: Counter[int] = Counter()
    failures: list[str] = []

    def try_it(case: Any) -> None:
        response = case.call(
            base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=REQUEST_S_MAX, allow_redirects=False
        )
        outcomes[response.status_code] += 1
        if response.status_code >= 500:
            failures.append(f"{case.as_curl_command()}\n{response.text[:500]}")

    for operation in chosen:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            # What schemathesis generates may depend on what it generated before: a search that ends early for that goes on with
            # another seed. Nothing that is found is lost by it, because nothing is raised in a search.
            due = outcomes.total() + cases
            for search in range(SEARCHES_MAX):
                # Where a route takes nothing, nothing can be wrong about it.
                with contextlib.suppress(Unsatisfiable, Flaky):
                    left = max(1, due - outcomes.total())
                    fuzzed(scale.seed + 1_000 * search, left, operation.as_strategy(generation_mode=mode), try_it)
                    break
    assert not failures, f"{scale.note}: {len(failures)} failures, the first: {failures[0]}"
    assert outcomes.total() > cases * len(chosen)
    assert outcomes[401] == 0, "the session ended in the middle"
    fleet.settle(scale.note)


def spoilt(payload: bytes) -> st.SearchStrategy[bytes]:
    """Payloads that began as this one: cut, flipped, repeated, with values of other kinds in their place."""
    values = [
        b"null",
        b"-1",
        b"1e999",
        b'"\\u0000"',
        b"[]",
        b"{}",
        b"true",
        b'"' + b"x" * 300 + b'"',
        b"99999999999999999999",
    ]

    def spoil(of: random.Random) -> bytes:
        found = bytearray(payload)
        for _ in range(of.randint(1, 4)):
            place = of.randrange(len(found) + 1)
            match of.randrange(6):
                case 0:
                    del found[place:]
                case 1 if place < len(found):
                    found[place] ^= 1 << of.randrange(8)
                case 2:
                    found[place:place] = of.randbytes(of.randint(1, 20))
                case 3:
                    found[place:place] = found[of.randrange(len(found) + 1) :]
                case 4 if b":" in found[place:]:
                    at = found.index(b":", place) + 1
                    ends = [end for end in (found.find(b",", at), found.find(b"}", at)) if end > 0]
                    found[at : min(ends, default=len(found))] = of.choice(values)
                case _:
                    found[place:place] = of.choice([b"\n", b"\x00", b"\xff", b'"', b"[" * 2_000, b"{" * 2_000])
        return bytes(found[:65_000])

    return st.integers(0, 2**63).map(lambda number: spoil(random.Random(number)))


def test_x5_no_envelope_stops_ingest_or_books_what_was_not_sent(database: Database, scale: Scale) -> None:
    good = Chain("HD-001").vend().vend().door("123456").vend()
    applied = 0

    def try_it(payload: bytes) -> None:
        nonlocal applied
        with database.begin() as connection:
            received = [Received("fleet/v1/HD-001/facts", "HD-001", payload)]
            replies, tally = apply(connection, received, NOW, 1)
        applied += tally.facts
        assert len(replies) <= 1

    fuzzed(scale.seed, scale.of(150, 50_000), spoilt(good.batch()) | st.binary(max_size=300), try_it)
    with database.begin() as connection:
        assert audit(connection).differences == [], scale.note
        assert connection.execute(text("SELECT count(*) FROM facts")).scalar_one() == applied, scale.note
    later = Chain("HD-002").vend()
    with database.begin() as connection:
        (reply,), _ = apply(connection, [Received("fleet/v1/HD-002/facts", "HD-002", later.batch())], NOW, 1)
    assert reply.message.through_seq == 1


DECODERS: list[Callable[[bytes], Any]] = [
    codec.decode_batch, codec.decode_fact, codec.decode_ack, codec.decode_order, codec.decode_desired,
    codec.decode_books, codec.decode_status, codec.decode_vitals,
]  # fmt: skip


def golden() -> Iterator[bytes]:
    for path in sorted((Path(__file__).parents[1] / "protocol" / "golden").rglob("*.jsonl")):
        yield from path.read_bytes().splitlines()


def test_x5_every_decoder_refuses_with_its_own_error_and_no_other(scale: Scale) -> None:
    spoils = st.one_of(*(spoilt(line) for line in golden()), st.binary(max_size=200))

    def try_it(payload: bytes) -> None:
        for decode in DECODERS:
            try:
                decode(payload)
            except CodecError:
                continue

    fuzzed(scale.seed, scale.of(400, 50_000), spoils, try_it)
