"""The agent's door to the broker, against the embedded broker."""

import queue

import pytest

from device_agent.events import Event, LinkDown, LinkUp
from device_agent.uplink import BrokerSettings, Uplink
from fleet_server.embedded import BrokerUser, EmbeddedBroker
from tests.conftest import scratch_directory

PATIENCE_S = 60


@pytest.mark.parametrize(
    ("allowed", "told"), [(("ack", "orders", "desired", "books"), LinkUp), (("ack", "orders", "desired"), LinkDown)]
)
def test_a_link_stands_only_where_the_broker_takes_all_four_subscriptions(
    allowed: tuple[str, ...], told: type[Event]
) -> None:
    user = BrokerUser(
        publish=("fleet.v1.HD-001.status",), subscribe=tuple(f"fleet.v1.HD-001.{leaf}" for leaf in allowed)
    )
    events: queue.Queue[Event] = queue.Queue(4)
    with scratch_directory() as directory, EmbeddedBroker(directory / "broker", users={"HD-001": user}) as address:
        settings = BrokerSettings(address.host, address.port, password=address.users["HD-001"], tls=False)
        uplink = Uplink("HD-001", settings, events)
        uplink.connect(b"{}")
        assert isinstance(events.get(timeout=PATIENCE_S), told)
        uplink.close(PATIENCE_S)
