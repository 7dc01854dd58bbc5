"""The publisher's process: what comes on standard input goes out, in order, at full speed or at a steady rate."""

import sys
import time

from fleet_server.embedded import BrokerAddress
from tests.benchmarks.bare_mqtt import BareClient

TICK_S = 0.005


def main() -> None:
    host, port, password, rate = sys.argv[1:]
    messages: list[tuple[str, bytes]] = []
    while head := sys.stdin.buffer.readline():
        topic_size, size = map(int, head.split())
        topic = sys.stdin.buffer.read(topic_size).decode()
        messages.append((topic, sys.stdin.buffer.read(size)))
    client = BareClient(
        BrokerAddress(host, int(port), {"fleet": password} if password else {}), "fleet", "bench-machines"
    )
    began = time.monotonic()
    print(began, flush=True)
    if not float(rate):
        client.publish_all(messages)
    sent = 0
    while float(rate) and sent < len(messages):
        due = min(len(messages), int((time.monotonic() - began) * float(rate)) + 1)
        client.publish_all(messages[sent:due])
        sent = due
        time.sleep(TICK_S)
    client.close()


if __name__ == "__main__":
    main()
