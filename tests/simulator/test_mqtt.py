"""The simulator's door to the broker, against brokers that do not let everybody hear everything."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_server.embedded import FROM_DISPENSERS, BrokerAddress, BrokerUser, EmbeddedBroker
from protocol.topics import Channel
from simulator.mqtt import BridgeError, Listener, MqttBridge
from tests.conftest import scratch_directory
from tests.reliability.brokers import MosquittoBroker, mosquitto_binary

PATIENCE_S = 60
DYNAMIC_SECURITY = Path("/usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so")
HEARS_NOTHING = {"fleet": BrokerUser(publish=FROM_DISPENSERS, subscribe=("nothing",))}


@pytest.fixture(params=["nats", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
def deaf(request: pytest.FixtureRequest) -> Iterator[str]:
    """A broker that lets anybody in and refuses every subscription."""
    with scratch_directory() as directory:
        if request.param == "nats":
            with EmbeddedBroker(directory / "broker", users=HEARS_NOTHING) as address:
                yield url(address)
            return
        if mosquitto_binary() is None or not DYNAMIC_SECURITY.exists():
            pytest.skip("mosquitto, or its plugin for dynamic security, is not installed")
        rights = directory / "rights.json"
        rights.write_text(json.dumps({"defaultACLAccess": {"publishClientSend": True, "subscribe": False}}))
        rights.chmod(0o644)
        directory.chmod(0o755)
        broker = MosquittoBroker(
            directory / "broker", "127.0.0.1", f"plugin {DYNAMIC_SECURITY}\nplugin_opt_config_file {rights}\n"
        )
        yield url(broker.start())
        broker.stop()


def url(address: BrokerAddress) -> str:
    user = f"fleet:{address.users['fleet']}@" if address.users else ""
    return f"mqtt://{user}{address.host}:{address.port}"


def test_a_refused_subscription_is_no_connection_and_the_reason_is_told(deaf: str) -> None:
    bridge = MqttBridge(deaf)
    with pytest.raises(BridgeError, match=r"refused a subscription of fleet/v1/\+/ack, "):
        bridge.start(patience_s=5)
    assert not bridge.connected


def test_a_broker_that_refuses_for_a_while_is_tried_until_it_takes_us() -> None:
    with scratch_directory() as directory:
        with EmbeddedBroker(directory / "broker") as address:
            bridge = MqttBridge(url(address))
            bridge.start(PATIENCE_S)
        until(bridge, connected=False)
        with EmbeddedBroker(directory / "broker", address.port, users=HEARS_NOTHING):
            # Long enough for an attempt or two.
            assert not bridge._up.wait(4)
        with EmbeddedBroker(directory / "broker", address.port):
            until(bridge, connected=True)
            server = Listener(f"mqtt://server:{address.users['server']}@{address.host}:{address.port}", "HD-001")
            server.start(PATIENCE_S)
            server.publish("HD-001", Channel.ACK, b"heard", 1, retain=False)
            assert bridge.take(PATIENCE_S) == ("HD-001", Channel.ACK, b"heard")
            server.stop()
            bridge.stop()


def until(bridge: MqttBridge, *, connected: bool) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while bridge.connected is not connected:
        assert time.monotonic() < deadline, "the bridge has not noticed"
        time.sleep(0.05)
