"""Sends a proved resource: exact length, constant memory, and everything let go when the client goes."""

from typing import TYPE_CHECKING

import anyio
from anyio import to_thread
from anyio.streams.memory import MemoryObjectSendStream
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from azaion_loader import metrics

if TYPE_CHECKING:
    from azaion_loader.loaded_resource import LoadedResource


class ResourceResponse(Response):
    """The plaintext of `loaded`, which is closed at the end. `limit` bounds the threads that read and decrypt.

    A fault in the middle ends the connection short of its Content-Length, so no client takes the part for the whole.
    """

    media_type = "application/octet-stream"

    def __init__(self, loaded: "LoadedResource", limit: anyio.CapacityLimiter) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self.init_headers({"content-length": str(loaded.length)})
        self._loaded = loaded
        self._limit = limit

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer; the next chunk is decrypted while one is under way."""
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(_cancel_when_gone, receive, group.cancel_scope)
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                ahead, chunks = anyio.create_memory_object_stream[bytes](1)
                group.start_soon(self._read, ahead)
                async with chunks:
                    async for chunk in chunks:
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
                        metrics.count("resource_bytes", len(chunk), direction="sent")
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                group.cancel_scope.cancel()
        finally:
            # The group has ended, so no thread reads any more.
            self._loaded.close()

    async def _read(self, ahead: MemoryObjectSendStream[bytes]) -> None:
        chunks = iter(self._loaded.chunks())
        async with ahead:
            while chunk := await to_thread.run_sync(next, chunks, b"", limiter=self._limit):
                await ahead.send(chunk)


async def _cancel_when_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
