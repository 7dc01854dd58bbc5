"""Bytes to messages and back. A fact is encoded once; its bytes are what is stored, sent, digested and kept."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Final, NamedTuple, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from protocol.messages import AckMessage, BatchHeader, Books, Desired, Fact, Order, Status, Vitals
from protocol.versions import (
    BATCH_BYTES_MAX,
    BATCH_FACTS_MAX,
    FACT_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    STREAM_SEQ_MAX,
)

HEADER_BYTES_MAX: Final = 304
"""Above the longest header of version 1: every id and number at its longest."""

NUL: Final = b"\\u0000"
"""JSON may name this character, and no database keeps it in a text. Behind an escaped backslash it is a text like any other."""
_NAMES_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")

M = TypeVar("M", bound=BaseModel)
U = TypeVar("U")

_FACT: Final[TypeAdapter[Fact]] = TypeAdapter(Annotated[Fact, Field(discriminator="kind")])
_ACK: Final[TypeAdapter[AckMessage]] = TypeAdapter(Annotated[AckMessage, Field(discriminator="kind")])
_ORDER: Final[TypeAdapter[Order]] = TypeAdapter(Annotated[Order, Field(discriminator="kind")])


class CodecError(ValueError):
    """Bytes that are not the message they should be; the text names field, value and expectation."""


class FramingError(CodecError):
    """The envelope of a batch cannot be read: nothing of it is applied."""


class SchemaError(CodecError):
    """One fact cannot be read by any version: it is stored as its bytes and quarantined."""


class Batch(NamedTuple):
    """A framed batch: its header and the raw lines of its facts, the first of which has `header.first_seq`."""

    header: BatchHeader
    lines: tuple[bytes, ...]


def explain(error: ValidationError) -> str:
    """Say in one line what was wrong: field, value, expectation."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "message"
    value = repr(first.get("input"))
    if len(value) > 60:  # noqa: PLR2004 - long enough to recognise, short enough for a log line
        value = value[:57] + "..."
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{field} = {value}: {first['msg']}{more}"


def _encode(message: BaseModel) -> bytes:
    # What `model_dump_json` does, without its way through text.
    return message.__pydantic_serializer__.to_json(message, exclude_none=True)


# ---------------------------------------------------------------- facts and their chain


def encode_fact(fact: Fact) -> bytes:
    """Encode a fact, once; raises SchemaError past FACT_BYTES_MAX."""
    line = _encode(fact)
    if len(line) > FACT_BYTES_MAX:
        msg = f"fact {fact.kind!r} of {len(line)} bytes: expected at most {FACT_BYTES_MAX}"
        raise SchemaError(msg)
    return line


def decode_fact(line: bytes) -> Fact:
    """Read one fact; raises SchemaError."""
    if NUL in line and _NAMES_NUL.search(line):
        raise SchemaError("fact with a NUL character: expected text that can be stored")
    try:
        return _FACT.validate_json(line)
    except ValidationError as error:
        raise SchemaError(explain(error)) from None


def first_digest(dispenser_id: str, stream_id: str) -> bytes:
    """Digest before the first fact of a stream: it binds the chain to the machine and the stream."""
    return hashlib.sha256(f"{dispenser_id}/{stream_id}".encode()).digest()


def next_digest(previous: bytes, line: bytes) -> bytes:
    """Chain one fact: SHA-256(digest(n-1) + bytes(n))."""
    return hashlib.sha256(previous + line).digest()


def encode_batch(header: BatchHeader, lines: Sequence[bytes]) -> bytes:
    """Join a header and the lines of its facts as JSON Lines."""
    return b"\n".join((_encode(header), *lines))


def cut(lines: Iterable[bytes], facts_max: int) -> list[bytes]:
    """Take as many lines from the front as one batch may carry: facts_max, BATCH_FACTS_MAX and BATCH_BYTES_MAX, header included."""
    taken: list[bytes] = []
    size = HEADER_BYTES_MAX
    for line in lines:
        size += len(line) + 1
        if taken and (len(taken) >= min(facts_max, BATCH_FACTS_MAX) or size > BATCH_BYTES_MAX):
            break
        taken.append(line)
    return taken


def decode_batch(payload: bytes) -> Batch:
    """Frame a batch without reading its facts; raises FramingError."""
    if len(payload) > MESSAGE_BYTES_MAX:
        msg = f"batch of {len(payload)} bytes: expected at most {MESSAGE_BYTES_MAX}"
        raise FramingError(msg)
    head, *lines = payload.split(b"\n")
    try:
        header = BatchHeader.model_validate_json(head)
    except ValidationError as error:
        msg = f"batch header: {explain(error)}"
        raise FramingError(msg) from None
    if not 1 <= len(lines) <= BATCH_FACTS_MAX:
        msg = f"batch of {len(lines)} facts: expected 1 to {BATCH_FACTS_MAX}"
        raise FramingError(msg)
    if len(lines) > STREAM_SEQ_MAX - header.first_seq + 1:
        msg = f"batch of {len(lines)} facts from {header.first_seq}: expected none above {STREAM_SEQ_MAX}"
        raise FramingError(msg)
    for place, line in enumerate(lines):
        if not 1 <= len(line) <= FACT_BYTES_MAX:
            msg = f"fact {header.first_seq + place} of {len(line)} bytes: expected 1 to {FACT_BYTES_MAX}"
            raise FramingError(msg)
    return Batch(header, tuple(lines))


# ---------------------------------------------------------------- everything else


def _no_nul(name: str, payload: bytes) -> None:
    if NUL in payload and _NAMES_NUL.search(payload):
        msg = f"{name} with a NUL character: expected text that can be stored"
        raise CodecError(msg)


def _decode(model: type[M], payload: bytes) -> M:
    if len(payload) > MESSAGE_BYTES_MAX:
        msg = f"{model.__name__.lower()} of {len(payload)} bytes: expected at most {MESSAGE_BYTES_MAX}"
        raise CodecError(msg)
    _no_nul(model.__name__.lower(), payload)
    try:
        return model.model_validate_json(payload)
    except ValidationError as error:
        msg = f"{model.__name__.lower()}: {explain(error)}"
        raise CodecError(msg) from None


def _decode_union(adapter: TypeAdapter[U], name: str, payload: bytes) -> U:
    if len(payload) > MESSAGE_BYTES_MAX:
        msg = f"{name} of {len(payload)} bytes: expected at most {MESSAGE_BYTES_MAX}"
        raise CodecError(msg)
    try:
        return adapter.validate_json(payload)
    except ValidationError as error:
        msg = f"{name}: {explain(error)}"
        raise CodecError(msg) from None


def encode(message: AckMessage | Order | Desired | Books | Status | Vitals) -> bytes:
    """Encode any message that is not a fact."""
    return _encode(message)


def decode_ack(payload: bytes) -> AckMessage:
    """Read a message of the `ack` channel; raises CodecError."""
    return _decode_union(_ACK, "ack", payload)


def decode_order(payload: bytes) -> Order:
    """Read a message of the `orders` channel; raises CodecError."""
    return _decode_union(_ORDER, "order", payload)


def decode_desired(payload: bytes) -> Desired:
    """Read a message of the `desired` channel; raises CodecError."""
    return _decode(Desired, payload)


def decode_books(payload: bytes) -> Books:
    """Read a message of the `books` channel; raises CodecError."""
    return _decode(Books, payload)


def decode_status(payload: bytes) -> Status:
    """Read a message of the `status` channel; raises CodecError."""
    return _decode(Status, payload)


def decode_vitals(payload: bytes) -> Vitals:
    """Read a message of the `vitals` channel; raises CodecError."""
    return _decode(Vitals, payload)
