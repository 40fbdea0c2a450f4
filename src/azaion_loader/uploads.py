"""The upload route's other half: a request's body into a publication."""

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import anyio
from starlette.requests import Request

from azaion_loader.errors import LoaderError
from azaion_loader.names import check_filename

if TYPE_CHECKING:
    from azaion_loader.resources import Resources

# The form as OpenAPI shows it: the framework does not see it, since it must not parse it.
FORM_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {
                        "data": {"type": "string", "format": "binary"},
                        "folder": {"type": "string", "default": "models"},
                    },
                }
            }
        },
    }
}


class Uploads:
    """Receives uploads, at most `threads` pieces being encrypted or published at a time."""

    def __init__(self, resources: "Callable[[], Resources]", max_bytes: int, threads: int) -> None:
        self._resources = resources
        self._max_bytes = max_bytes
        self._limit = anyio.CapacityLimiter(threads)

    async def receive(self, filename: str, request: Request) -> None:
        """Publish the file in the request's form as `filename`.

        Raises InvalidRequest, InvalidName, TooLarge, DiskFull, starlette's ClientDisconnect, and what
        Publication.commit does.
        """
        from azaion_loader.upload_form import drain, receive_upload  # noqa: PLC0415 - on first use

        body = _Body(request)
        length = request.headers.get("content-length")
        try:
            check_filename(filename)
            await receive_upload(
                body,
                content_type=request.headers.get("content-type", ""),
                content_length=None if length is None else int(length),
                filename=filename,
                max_bytes=self._max_bytes,
                # Called in a thread: the first use imports the object store's client.
                open_sink=lambda *, folder, expected_bytes: self._resources().publish(
                    filename, folder=folder, expected_bytes=expected_bytes
                ),
                limit=self._limit,
            )
        except LoaderError:
            # A client that waits for our word before it sends needs no draining.
            if body.begun or "expect" not in request.headers:
                await drain(body)
            raise


class _Body:
    """The request's body as one iterator, that can be gone on with after a fault."""

    def __init__(self, request: Request) -> None:
        self._chunks = request.stream()
        self.begun = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        self.begun = True
        return await anext(self._chunks)
