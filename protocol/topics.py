"""MQTT topics: ``fleet/v1/{dispenser_id}/{channel}``."""

import re
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple

PREFIX: Final = "fleet/v1"
DISPENSER_ID_PATTERN: Final = r"^[A-Z0-9][A-Z0-9-]{0,31}$"
_NAMES_MAX: Final = 65_536
_DISPENSER_ID: Final = re.compile(DISPENSER_ID_PATTERN)


class Channel(StrEnum):
    """The last level of a topic; the comment says who publishes."""

    FACTS = "facts"  # dispenser, QoS 1
    VITALS = "vitals"  # dispenser, QoS 0
    STATUS = "status"  # dispenser and its last will, QoS 1, retained
    ACK = "ack"  # server, QoS 1
    ORDERS = "orders"  # server, QoS 1, never retained
    DESIRED = "desired"  # server, QoS 1, retained
    BOOKS = "books"  # server, QoS 1, never retained


FROM_DISPENSER: Final = (Channel.FACTS, Channel.VITALS, Channel.STATUS)
FROM_SERVER: Final = (Channel.ACK, Channel.ORDERS, Channel.DESIRED, Channel.BOOKS)


class TopicError(ValueError):
    """A topic that is not one of ours."""


class Topic(NamedTuple):
    """One dispenser's channel."""

    dispenser_id: str
    channel: Channel

    def __str__(self) -> str:
        """Return the MQTT topic name."""
        return f"{PREFIX}/{self.dispenser_id}/{self.channel}"


@lru_cache(maxsize=_NAMES_MAX)
def topic(dispenser_id: str, channel: Channel) -> str:
    """Name the topic of one dispenser's channel; raises TopicError on an id that could carry a wildcard or a level."""
    if not _DISPENSER_ID.match(dispenser_id):
        msg = f"dispenser_id {dispenser_id!r}: expected 1 to 32 of A-Z, 0-9 and '-', starting with a letter or digit"
        raise TopicError(msg)
    return f"{PREFIX}/{dispenser_id}/{channel}"


def every(channel: Channel) -> str:
    """Name the subscription that hears this channel of the whole fleet."""
    return f"{PREFIX}/+/{channel}"


@lru_cache(maxsize=_NAMES_MAX)
def parse(name: str) -> Topic:
    """Read a topic name; raises TopicError naming the part that is wrong."""
    levels = name.split("/")
    if len(levels) != 4 or "/".join(levels[:2]) != PREFIX:  # noqa: PLR2004 - prefix (2), dispenser, channel
        msg = f"topic {name!r}: expected {PREFIX}/DISPENSER/CHANNEL"
        raise TopicError(msg)
    dispenser_id, channel = levels[2], levels[3]
    if not _DISPENSER_ID.match(dispenser_id):
        msg = f"dispenser_id {dispenser_id!r} in topic: expected 1 to 32 of A-Z, 0-9 and '-'"
        raise TopicError(msg)
    try:
        return Topic(dispenser_id, Channel(channel))
    except ValueError:
        msg = f"channel {channel!r} in topic: expected one of {', '.join(Channel)}"
        raise TopicError(msg) from None
