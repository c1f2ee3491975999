"""A TCP proxy on loopback whose lines a test cuts, holds still or resets."""

import asyncio
import contextlib
import socket
import struct
import threading

CUT, STALL = "cut", "stall"

_CHUNK = 1 << 16
_RST = struct.pack("ii", 1, 0)


class Network:
    """Any number of proxied lines, served by one thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)
        self._thread.start()

    def line(self, port: int) -> "Line":
        """A line to `port` of loopback, with a port of its own."""
        return asyncio.run_coroutine_threadsafe(_opened(port), self._loop).result(10)

    def tell(self, line: "Line", what: str) -> None:
        """Put a line in a state: `cut`, `stall`, or empty for a sound one."""
        asyncio.run_coroutine_threadsafe(line.become(what), self._loop).result(10)

    def reset(self, line: "Line") -> None:
        """End every connection of a line by RST, once."""
        asyncio.run_coroutine_threadsafe(line.reset(), self._loop).result(10)

    def close(self) -> None:
        """End all lines and their thread."""
        asyncio.run_coroutine_threadsafe(_ended(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class Line:
    """One port here for one port there."""

    def __init__(self, port: int) -> None:
        self.port, self._there, self._state = 0, port, ""
        self._sound = asyncio.Event()
        self._sound.set()
        self._open: set[asyncio.StreamWriter] = set()

    async def become(self, what: str) -> None:
        self._state = what
        if what == STALL:
            self._sound.clear()
        else:
            self._sound.set()
        if what == CUT:
            await self.reset()

    async def reset(self) -> None:
        for writer in list(self._open):
            _slam(writer)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._state == CUT:
            _slam(writer)
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._there)
        except OSError:
            _slam(writer)
            return
        ends = {writer, far_writer}
        self._open |= ends
        try:
            pumps = (self._pump(reader, far_writer), self._pump(far_reader, writer))
            await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            self._open -= ends
            for end in ends:
                end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(_CHUNK):
                await self._sound.wait()
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
        except OSError:
            _slam(writer)


async def _opened(port: int) -> Line:
    line = Line(port)
    server = await asyncio.start_server(line.serve, "127.0.0.1", 0)
    line.port = server.sockets[0].getsockname()[1]
    line.server = server  # which ends when nobody holds it
    return line


async def _ended() -> None:
    """Nothing of this loop is left but its caller."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _slam(writer: asyncio.StreamWriter) -> None:
    """End a connection by RST."""
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
    writer.transport.abort()
