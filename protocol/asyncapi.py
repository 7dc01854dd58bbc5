"""The AsyncAPI 3 document of the protocol, generated from the models: what is written there is what the code reads."""

import json
from typing import Any

from pydantic import BaseModel, TypeAdapter

from protocol import messages as m
from protocol.topics import DISPENSER_ID_PATTERN, PREFIX, Channel
from protocol.versions import BATCH_BYTES_MAX, BATCH_FACTS_MAX, FACT_BYTES_MAX, PROTOCOL_VERSION

# channel: (title, messages, sent by the dispenser, QoS, retained)
CHANNELS: dict[Channel, tuple[str, tuple[type[BaseModel], ...], bool, int, bool]] = {
    Channel.FACTS: ("Facts, in batches", (m.BatchHeader,), True, 1, False),
    Channel.VITALS: ("Lossy readings", (m.Vitals,), True, 0, False),
    Channel.STATUS: ("Presence, and its last will", (m.Status,), True, 1, True),
    Channel.ACK: ("Where the server's cursor stands", (m.Ack, m.Gap, m.Nack, m.Fork), False, 1, False),
    Channel.ORDERS: (
        "Orders",
        (m.Unlock, m.TestVend, m.ClearJam, m.Reboot, m.SelfTest, m.NewStream),
        False,
        1,
        False,
    ),
    Channel.DESIRED: ("Desired state", (m.Desired,), False, 1, True),
    Channel.BOOKS: ("The server's book of the slots", (m.Books,), False, 1, False),
}

BATCH = f"""JSON Lines: one BatchHeader, then 1 to {BATCH_FACTS_MAX} facts of at most {FACT_BYTES_MAX} bytes, one a line;
about {BATCH_BYTES_MAX} bytes together. A fact's number follows from its place: the first has `first_seq`."""


def document() -> dict[str, Any]:
    """Return the document as plain values."""
    schemas: dict[str, Any] = {}
    channels, operations, named = {}, {}, {}
    for channel, (title, models, by_dispenser, qos, retain) in CHANNELS.items():
        for model in models:
            named[model.__name__] = _message(model, channel)
            _collect(model, schemas)
        channels[str(channel)] = {
            "address": f"{PREFIX}/{{dispenser_id}}/{channel}",
            "title": title,
            "parameters": {"dispenser_id": {"description": f"matches {DISPENSER_ID_PATTERN}"}},
            "messages": {model.__name__: {"$ref": f"#/components/messages/{model.__name__}"} for model in models},
        }
        operations[f"{'send' if by_dispenser else 'receive'}_{channel}"] = {
            "action": "send" if by_dispenser else "receive",
            "channel": {"$ref": f"#/channels/{channel}"},
            "bindings": {"mqtt": {"qos": qos, "retain": retain, "bindingVersion": "0.2.0"}},
        }
    facts = TypeAdapter(m.Fact).json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(facts.pop("$defs"))
    schemas["Fact"] = facts
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Dispenser fleet protocol",
            "version": str(PROTOCOL_VERSION),
            "description": "From the dispenser's point of view. The duties of both sides are in docs/protocol.md.",
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": named, "schemas": dict(sorted(schemas.items()))},
    }


def _message(model: type[BaseModel], channel: Channel) -> dict[str, Any]:
    message: dict[str, Any] = {
        "name": model.__name__,
        "summary": (model.__doc__ or "").strip().splitlines()[0],
        "payload": {"$ref": f"#/components/schemas/{model.__name__}"},
    }
    if channel is Channel.FACTS:
        message |= {"contentType": "application/jsonl", "description": BATCH}
    return message


def _collect(model: type[BaseModel], schemas: dict[str, Any]) -> None:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(schema.pop("$defs", {}))
    schemas[model.__name__] = schema


def render() -> str:
    """Return the document as text, the same for the same models."""
    return json.dumps(document(), indent=2, ensure_ascii=False, sort_keys=False) + "\n"
