"""A TCP proxy between machines and broker that knows just enough MQTT to do harm: resets, cuts, black holes, lost acks."""

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

PUBLISH, PUBACK = 0x30, 0x40
NO_LINGER = struct.pack("ii", 1, 0)


class FaultProxy:
    """Listens at `host`, passes on to the broker; one event loop in a thread of its own."""

    def __init__(self, host: str, upstream: tuple[str, int], seed: int) -> None:
        self._upstream = upstream
        self._throw = random.Random(seed)
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._tasks: set[asyncio.Task[None]] = set()
        self.black_hole = False
        """Accept, read and answer nothing."""
        self.loses_ack: Callable[[], bool] = lambda: False
        """Asked for each of the server's answers to facts."""
        self.accepted = 0
        self.acks_lost = 0
        self._server = self._call(asyncio.start_server(self._accept, host, 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.black_hole:
            link = _Link(self, reader, writer, None)
        else:
            try:
                link = _Link(self, reader, writer, await asyncio.open_connection(*self._upstream))
            except OSError:
                writer.close()
                return
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)

    # ------------------------------------------------------------ faults

    def cut(self, *, reset: bool) -> int:
        """End each connection somewhere within its next packet, with a reset or a plain end; returns how many."""

        async def arm() -> int:
            for link in self._links:
                link.cut_after = (self._throw.randint(1, 200), reset)
            return len(self._links)

        return int(self._call(arm()))

    def cut_now(self) -> None:
        """Reset every connection."""

        async def end() -> None:
            for link in list(self._links):
                link.end(reset=True)

        self._call(end())

    @contextlib.contextmanager
    def swallowing(self) -> Iterator[None]:
        """Be a black hole, for connections that stand as well as for new ones; those of that time are reset afterwards."""
        self.black_hole = True
        try:
            yield
        finally:
            self.black_hole = False
            self.cut_now()

    def close(self) -> None:
        async def listen_no_more() -> None:
            self._server.close()

        # Within the loop: two threads that close a server at once wake its waiters twice.
        self._call(listen_no_more())
        self.cut_now()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)


class _Link:
    """One machine's connection and its other half."""

    def __init__(
        self,
        proxy: FaultProxy,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None,
    ) -> None:
        self._proxy, self._reader, self._writer, self._upstream = proxy, reader, writer, upstream
        self.cut_after: tuple[int, bool] | None = None
        for end in filter(None, (writer, upstream and upstream[1])):
            end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def run(self) -> None:
        if self._upstream is None:
            with contextlib.suppress(OSError):
                while await self._reader.read(65_536):
                    pass
            self._writer.close()
            return
        ways = [
            asyncio.create_task(self._up(self._upstream[1])),
            asyncio.create_task(self._down(self._upstream[0], self._upstream[1])),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        self.end(reset=False)

    def end(self, *, reset: bool) -> None:
        ends = [self._writer, *([self._upstream[1]] if self._upstream else [])]
        for end in ends:
            if reset:
                with contextlib.suppress(OSError):
                    end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
                end.transport.abort()
            else:
                end.close()

    async def _pass(self, data: bytes, to: asyncio.StreamWriter) -> None:
        """Pass bytes on, or only some of them and then the end."""
        if self._proxy.black_hole:
            return
        if self.cut_after is not None:
            after, reset = self.cut_after
            to.write(data[:after])
            with contextlib.suppress(OSError):
                await to.drain()
            self.cut_after = None if len(data) >= after else (after - len(data), reset)
            if self.cut_after is None:
                self.end(reset=reset)
            return
        to.write(data)
        await to.drain()

    async def _up(self, broker: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await self._reader.read(65_536):
                await self._pass(data, broker)

    async def _down(self, broker: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head, body, raw = await _packet(broker)
                if head & 0xF0 == PUBLISH and _topic(body).endswith(b"/ack") and self._proxy.loses_ack():
                    self._proxy.acks_lost += 1
                    # The broker is told that it arrived, or it would hold back everything that comes after.
                    if head & 0x06:
                        size = int.from_bytes(body[:2])
                        back.write(bytes([PUBACK, 2]) + body[2 + size : 4 + size])
                    continue
                await self._pass(raw, self._writer)


async def _packet(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    """Read one whole MQTT packet: its first byte, its body, and all of its bytes."""
    raw = bytearray(await reader.readexactly(1))
    size, shift = 0, 0
    while True:
        raw += await reader.readexactly(1)
        size |= (raw[-1] & 0x7F) << shift
        shift += 7
        if not raw[-1] & 0x80:
            break
    body = await reader.readexactly(size)
    return raw[0], body, bytes(raw) + body


def _topic(body: bytes) -> bytes:
    return body[2 : 2 + int.from_bytes(body[:2])]
