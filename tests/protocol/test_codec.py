"""Messages survive the way through bytes; what is no message is refused in words; released versions stay readable."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import codec, messages, topics, versions
from tests.protocol import samples

GOLDEN = Path(__file__).parent / "golden"
VECTORS = Path(__file__).parents[2] / "docs" / "protocol-vectors.json"
DECODERS: dict[str, Any] = {
    "facts": codec.decode_fact,
    "acks": codec.decode_ack,
    "orders": codec.decode_order,
    "status": codec.decode_status,
    "vitals": codec.decode_vitals,
    "desired": codec.decode_desired,
    "books": codec.decode_books,
}
SAMPLES: dict[str, list[Any]] = {
    "facts": samples.FACTS,
    "acks": samples.ACKS,
    "orders": samples.ORDERS,
    "status": [samples.STATUS],
    "vitals": [samples.VITALS],
    "desired": [samples.DESIRED],
    "books": [samples.BOOKS],
}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_golden_files_hold_every_kind_and_are_read_as_what_they_were(name: str) -> None:
    """A released version's bytes never change: this file is only ever added to."""
    lines = (GOLDEN / f"v{versions.PROTOCOL_VERSION}" / f"{name}.jsonl").read_bytes().splitlines()
    assert [DECODERS[name](line) for line in lines] == SAMPLES[name]
    encode: Any = codec.encode_fact if name == "facts" else codec.encode
    assert [encode(message) for message in SAMPLES[name]] == lines


def test_every_kind_of_the_unions_has_a_sample() -> None:
    for union, there in (
        (messages.Fact, samples.FACTS),
        (messages.AckMessage, samples.ACKS),
        (messages.Order, samples.ORDERS),
    ):
        assert {type(item) for item in there} == set(get_args(union))


def test_the_published_digests_are_those_that_the_codec_computes() -> None:
    vectors = json.loads(VECTORS.read_text())
    digest = codec.first_digest(vectors["dispenser_id"], vectors["stream_id"])
    assert digest.hex() == vectors["first_digest"]
    for step in vectors["facts"]:
        digest = codec.next_digest(digest, step["line"].encode())
        assert digest.hex() == step["digest"]
    lines = [step["line"].encode() for step in vectors["facts"]]
    batch = codec.decode_batch(vectors["batch"].encode())
    assert list(batch.lines) == lines
    assert batch.header.prev_digest == vectors["first_digest"]


def test_fields_of_a_newer_agent_are_kept_in_the_bytes_and_ignored() -> None:
    line = codec.encode_fact(samples.FACTS[1])
    newer = line[:-1] + b',"shelf":{"row":2}}'
    assert codec.decode_fact(newer) == samples.FACTS[1]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("slot", 0, "slot = 0"),
        ("slot", "3", "slot = '3'"),
        ("outcome", "sold", "outcome = 'sold'"),
        ("at_ms", -1, "at_ms = -1"),
        ("lot", "x" * 21, "lot = 'xxxxx"),
        ("boot_id", "zz", "boot_id = 'zz'"),
        ("v", 2, "v = 2"),
        ("kind", "wend", "kind"),
    ],
)
def test_a_wrong_field_is_named_with_its_value(field: str, value: object, words: str) -> None:
    fact = json.loads(codec.encode_fact(samples.FACTS[1])) | {field: value}
    with pytest.raises(codec.SchemaError, match=field) as refused:
        codec.decode_fact(json.dumps(fact).encode())
    assert words in str(refused.value)


def test_a_refusal_needs_its_reason_and_nothing_else_may_have_one() -> None:
    for outcome, reason in (("refused", None), ("delivered", "limit")):
        fact = json.loads(codec.encode_fact(samples.FACTS[2])) | {"outcome": outcome, "reason": reason}
        with pytest.raises(codec.SchemaError, match="reason"):
            codec.decode_fact(json.dumps(fact).encode())


def test_a_fact_that_is_too_long_is_refused_before_it_is_kept() -> None:
    claims = [messages.SlotClaim(slot=n, queue=samples.QUEUE * 2) for n in range(1, 61)]
    with pytest.raises(codec.SchemaError, match="expected at most 4096"):
        codec.encode_fact(messages.StockLevel(**samples.WHEN, slots=claims))


@given(st.binary(max_size=400))
@settings(max_examples=500)
def test_no_bytes_whatever_raise_anything_but_a_clear_refusal(payload: bytes) -> None:
    for decode in (*DECODERS.values(), codec.decode_batch):
        with suppress(codec.CodecError):
            decode(payload)


@given(
    st.sampled_from([line for name in SAMPLES for line in (GOLDEN / "v1" / f"{name}.jsonl").read_bytes().splitlines()]),
    st.data(),
)
@settings(max_examples=500)
def test_a_message_with_one_byte_changed_is_read_or_refused_and_nothing_else(line: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(line) - 1))
    spoilt = line[:place] + bytes([data.draw(st.integers(0, 255))]) + line[place + 1 :]
    for decode in DECODERS.values():
        with suppress(codec.CodecError):
            decode(spoilt)


@given(st.lists(st.binary(min_size=1, max_size=300).filter(lambda line: b"\n" not in line), min_size=1, max_size=100))
def test_a_batch_gives_back_its_lines_byte_for_byte(lines: list[bytes]) -> None:
    batch = codec.decode_batch(codec.encode_batch(samples.HEADER, lines))
    assert (batch.header, list(batch.lines)) == (samples.HEADER, lines)


@given(st.lists(st.integers(1, 4096), min_size=1, max_size=150), st.integers(1, 200))
def test_a_cut_keeps_the_limits_and_always_takes_something(sizes: list[int], facts_max: int) -> None:
    lines = [b"x" * size for size in sizes]
    taken = codec.cut(lines, facts_max)
    assert taken == lines[: len(taken)]
    assert 1 <= len(taken) <= min(facts_max, versions.BATCH_FACTS_MAX)
    assert len(taken) == 1 or sum(len(line) + 1 for line in taken) <= versions.BATCH_BYTES_MAX


@given(st.text(max_size=60))
def test_a_topic_is_one_of_ours_or_refused(name: str) -> None:
    with suppress(topics.TopicError):
        assert str(topics.parse(name)) == name


@pytest.mark.parametrize("wrong", ["", "hd-001", "HD/001", "HD+", "#", "HD 001", "A" * 33, "-HD"])
def test_an_id_that_could_carry_a_wildcard_or_a_level_names_no_topic(wrong: str) -> None:
    with pytest.raises(topics.TopicError):
        topics.topic(wrong, topics.Channel.FACTS)


def test_a_text_that_only_spells_a_nul_is_read_and_one_that_names_it_is_not() -> None:
    """Error texts of libraries spell it, and stand in the detail of a fault."""
    about: dict[str, Any] = {
        "at_ms": 1,
        "mono_ms": 1,
        "boot_id": "00000001",
        "clock_trusted": True,
        "code": "STORAGE_DAMAGED",
    }
    spelt = messages.FaultRaised(**about, detail=r"control character (\u0000-\u001F)")
    assert codec.decode_fact(codec.encode_fact(spelt)) == spelt
    for detail in ("a \0", "a \\\0"):
        with pytest.raises(codec.SchemaError, match="NUL"):
            codec.decode_fact(codec.encode_fact(messages.FaultRaised(**about, detail=detail)))
