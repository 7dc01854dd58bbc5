"""The form of a scenario file: docs/scenarios.md in types. Its JSON Schema is made from these models."""

import csv
import re
from datetime import datetime
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from protocol.topics import DISPENSER_ID_PATTERN
from simulator.faults import Kind
from simulator.parameters import data_text
from simulator.scenarios import expectations, quantities
from simulator.scenarios.codes import MACHINE_CODES
from simulator.scenarios.quantities import Moment, Rate
from simulator.scenarios.words import unknown
from simulator.world import DAY_MS, LOCAL, Site, sites

DAYS_MAX: Final = 3_660
GENERATED_MAX: Final = 50_000
NAME_MAX: Final = 60
A_CHOICE: Final = "all, a number of machines, or a list of ids such as [HD-001, HD-002]"

Loc = tuple[str | int, ...]


def _text_schema(description: str, *examples: str, pattern: str | None = None) -> WithJsonSchema:
    schema: dict[str, Any] = {"type": "string", "description": description, "examples": list(examples)}
    return WithJsonSchema(schema | ({"pattern": pattern} if pattern else {}))


Duration = Annotated[
    int,
    BeforeValidator(quantities.duration_ms),
    _text_schema(quantities.A_DURATION, "90 min", "4 d", pattern=r"^\d+(\.\d+)? ?(s|min|h|d)$"),
]
SignedDuration = Annotated[
    int,
    BeforeValidator(quantities.signed_duration_ms),
    _text_schema("how far a clock jumps, back with -", "-2 h", pattern=r"^[-+]? ?\d+(\.\d+)? ?(s|min|h|d)$"),
]
At = Annotated[
    Moment,
    BeforeValidator(quantities.moment),
    _text_schema(quantities.A_MOMENT, "day 3 04:00", "2026-06-03 04:00"),
]
PerSomething = Annotated[
    Rate, BeforeValidator(quantities.rate), _text_schema(quantities.A_RATE, "5 per 1000 vends", "3 per machine-month")
]


def _choice(value: object) -> tuple[str, ...] | int | None:
    """Read which machines are meant: None for all of them, a number of them, or those that are named."""
    match value:
        case "all":
            return None
        case bool():
            raise ValueError(A_CHOICE)
        case int() if 1 <= value <= GENERATED_MAX:
            return value
        case str() if _is_id(value):
            return (value,)
        case list() if value and all(isinstance(one, str) and _is_id(one) for one in value):
            return tuple(dict.fromkeys(value))
    raise ValueError(A_CHOICE)


def _is_id(value: str) -> bool:
    return re.fullmatch(DISPENSER_ID_PATTERN, value) is not None


Choice = Annotated[
    tuple[str, ...] | int | None,
    BeforeValidator(_choice),
    WithJsonSchema(
        {
            "description": A_CHOICE,
            "anyOf": [
                {"const": "all"},
                {"type": "integer", "minimum": 1},
                {"type": "string", "pattern": DISPENSER_ID_PATTERN},
                {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": DISPENSER_ID_PATTERN}},
            ],
        }
    ),
]


def _start(value: object) -> datetime:
    if isinstance(value, str):
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            pass
        else:
            return found.replace(tzinfo=LOCAL) if found.tzinfo is None else found
    raise ValueError("a local date such as 2026-06-01, or 2026-06-01 06:00")


def _fault_code(value: object) -> str:
    if isinstance(value, str) and value in MACHINE_CODES:
        return value
    raise ValueError(unknown(str(value), MACHINE_CODES))


def _product(value: object) -> str:
    known = sorted(row["code"] for row in csv.DictReader(data_text("products.csv").splitlines()))
    if isinstance(value, str) and value in known:
        return value
    raise ValueError(unknown(str(value), known))


def _name(value: object) -> str:
    if isinstance(value, str) and len(value) <= NAME_MAX and re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", value):
        return value
    raise ValueError("words with hyphens, such as four-day-outage")


Name = Annotated[str, BeforeValidator(_name), _text_schema("words-with-hyphens", pattern="^[a-z0-9]+(-[a-z0-9]+)*$")]
Product = Annotated[str, BeforeValidator(_product), _text_schema("a code of products.csv", "CONDOM-M")]


def _kind(value: object) -> Kind:
    try:
        return Kind(str(value))
    except ValueError:
        raise ValueError(unknown(str(value), list(Kind))) from None


KindName = Annotated[
    Kind, BeforeValidator(_kind), WithJsonSchema({"enum": list(Kind), "description": "what happens, with at:"})
]
Code = Annotated[str, BeforeValidator(_fault_code), WithJsonSchema({"enum": list(MACHINE_CODES)})]

Start = Annotated[datetime, BeforeValidator(_start), _text_schema("local day or moment", "2026-06-01")]
Expect = Annotated[
    expectations.Expectation,
    BeforeValidator(expectations.read),
    _text_schema(expectations.AN_EXPECTATION, "audit clean", "availability >= 0.99", "lost_access.jam <= 40 h"),
]
Slot = Annotated[int, Field(ge=1, le=999)]
Packs = Annotated[int, Field(ge=1, le=1_000)]


class Form(BaseModel):
    """What every part of a scenario shares: frozen, strict, and nobody's typing mistake is taken for a key."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, title=None)


# ---------------------------------------------------------------- what goes wrong


class Fault(Form):
    """Something that happens to machines: a kind at a moment, or a code of faults.csv as often as a rate says."""

    kind: KindName | None = None
    at: At | None = None
    lasts: Annotated[Duration | None, Field(alias="for")] = None
    dispensers: Choice = None
    slot: Slot | None = None
    value: Annotated[float | str | None, Field(description="what it means depends on the kind")] = None
    code: Annotated[Code | None, Field(description="a code of faults.csv, with rate:")] = None
    rate: PerSomething | None = None


class _Event(Form):
    at: At


class BrokerOutage(_Event):
    """Nobody reaches the broker for a while; connections break."""

    event: Literal["broker_outage"]
    lasts: Annotated[Duration, Field(alias="for")]


class ServerOutage(_Event):
    """The broker is there, the server is not: machines send, and nobody answers."""

    event: Literal["server_outage"]
    lasts: Annotated[Duration, Field(alias="for")]


class Miscount(_Event):
    """Whoever counts this slot next enters so many packs too many, or too few."""

    event: Literal["miscount"]
    dispensers: Choice = None
    slot: Slot
    off_by: Annotated[int, Field(ge=-100, le=100)]


class LotRecall(_Event):
    """The dispatcher blocks a lot: the one that is named, or the one of which most packs are in machines."""

    event: Literal["lot_recall"]
    product: Product
    lot: Annotated[str, Field(min_length=1, max_length=20)] | None = None


Event = BrokerOutage | ServerOutage | Miscount | LotRecall


# ---------------------------------------------------------------- the whole


class Fleet(Form):
    """Which machines take part."""

    sites: Choice = None


class Restock(Form):
    """How packs get into machines."""

    policy: Annotated[
        Literal["plan", "rounds", "none"],
        Field(description="the server's plan, every machine in turn, or nobody comes"),
    ] = "plan"
    every: Annotated[Duration | None, Field(description="of rounds")] = None
    miscount_sd: Annotated[float | None, Field(ge=0, le=10, description="packs")] = None
    offline_share: Annotated[
        float | None, Field(ge=0, le=1, description="visits whose entries are sent hours later")
    ] = None

    @model_validator(mode="after")
    def _every_goes_with_rounds(self) -> "Restock":
        if (self.policy == "rounds") != (self.every is not None):
            raise ValueError("every: exactly with policy: rounds")
        return self


class Scenario(Form):
    """One scenario: a world, a fleet, what goes wrong, and what must hold."""

    name: Name
    description: Annotated[str, Field(min_length=1, max_length=2_000)]
    seed: Annotated[int, Field(ge=0, le=2**31)] = 1
    start: Start
    days: Annotated[float, Field(gt=0, le=DAYS_MAX)]
    world: Annotated[dict[str, Any], Field(description="overrides of parameters: python -m simulator parameters")] = {}
    fleet: Fleet = Fleet()
    restock: Restock = Restock()
    faults: Annotated[list[Fault], Field(max_length=1_000)] = []
    events: Annotated[list[Annotated[Event, Field(discriminator="event")]], Field(max_length=1_000)] = []
    expect: Annotated[list[Expect], Field(min_length=1, max_length=200)]

    @property
    def start_ms(self) -> int:
        """When it begins, in ms since 1970 UTC."""
        return int(self.start.timestamp() * 1000)

    @property
    def end_ms(self) -> int:
        """When it ends."""
        return self.start_ms + round(self.days * DAY_MS)

    def sites(self) -> list[Site]:
        """Return the sites that take part: some of the 42, or more that are made from them."""
        chosen, known = self.fleet.sites, sites()
        if isinstance(chosen, tuple):
            return [site for site in known if site.dispenser_id in chosen]
        return known[:chosen] if chosen is None or chosen <= len(known) else sites(chosen)

    def dispensers(self) -> list[str]:
        """Return the ids of the machines that take part."""
        return [site.dispenser_id for site in self.sites()]


def keys_at(loc: Loc) -> list[str]:
    """Return the keys that are known at a place that pydantic names; events are told apart by their tag."""
    match loc:
        case ():
            model: type[Form] = Scenario
        case ("fleet",):
            model = Fleet
        case ("restock",):
            model = Restock
        case ("faults", _):
            model = Fault
        case _:
            tags = {get_args(it.model_fields["event"].annotation)[0]: it for it in get_args(Event)}
            model = tags[str(loc[-1])]
    return [field.alias or name for name, field in model.model_fields.items()]
