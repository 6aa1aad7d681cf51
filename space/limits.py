"""Requests whose body is too large are refused before it is kept."""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse


class BodyLimit:
    """
    ASGI middleware: a request with a larger body gets status 413 and a sentence.

    Args:
        app: what answers the other requests. most_bytes: of a body.
    """

    def __init__(self, app, most_bytes: int):
        self.app, self.most_bytes = app, most_bytes
        self.said = f"The request is larger than {most_bytes / 1e6:.0f} MB; send less, or use the command line."

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        stated = Headers(scope=scope).get("content-length", "")
        if stated.isdecimal() and int(stated) > self.most_bytes:
            return await JSONResponse({"detail": self.said}, 413)(scope, receive, send)
        received = 0

        async def counted():  # a body may come in pieces, without a stated length
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.most_bytes:
                raise HTTPException(413, self.said)
            return message

        await self.app(scope, counted, send)
