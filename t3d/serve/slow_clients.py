"""HTTP for clients that may send or read as slowly as they like, for a while."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from t3d.serve.errors import ApiError
from t3d.serve.sending import to_json

BODY_GRACE_SECONDS = 5.0
"""After the time for a body is up: for the app to say so."""
LEAST_BYTES = 2**14
"""That a client has to take in each stretch of its time while there is more for it."""


class PatientProtocol(H11Protocol):
    """uvicorn's, with an end to its patience, which it does not have itself.

    A connection is cut when a header is not complete in time, when a body still comes in after its time, or when the
    client does not read what it is sent.

    Attributes:
        read_timeout: seconds; `protocol_with` sets it.
    """

    read_timeout = 15.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._expected: str | None = None
        self._receiving: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there; its header should follow."""
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        """A part of a header or a body."""
        super().data_received(data)
        self._expect()

    def on_response_complete(self) -> None:
        """The next header may follow."""
        super().on_response_complete()
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone, or was cut off."""
        for timer in (self._receiving, self._writing):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read as fast as it is sent to."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        self._expected = None
        self._expect()

    def send_400_response(self, msg: str) -> None:
        """What came is not HTTP."""
        body = to_json(ApiError(400, "this is not a valid HTTP request", code="invalid_http").body())
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
        events = (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
        for event in events:
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _expect(self) -> None:
        """Start the clock of whatever the client has to send now, if it did not run."""
        expected = {h11.IDLE: "header", h11.SEND_BODY: "body"}.get(self.conn.their_state)
        if self.transport.is_closing():  # what is still unread must not keep it open for ever
            expected = None
            self._watch_reader()
        if expected == self._expected:
            return
        if self._receiving is not None:
            self._receiving.cancel()
            self._receiving = None
        self._expected = expected
        if expected is not None:
            seconds = self.read_timeout + BODY_GRACE_SECONDS * (expected == "body")
            self._receiving = self.loop.call_later(seconds, self._on_nothing_sent)

    def _on_nothing_sent(self) -> None:
        """Nothing came in time: the client is cut off, unless it is still reading what it asked for before."""
        if self.transport.get_write_buffer_size() > 0:
            self._watch_reader()
        else:
            self.transport.abort()

    def _watch_reader(self) -> None:
        """Start the clock of what the client has to read, if it does not run."""
        if self._writing is None:
            self._writing = self.loop.call_later(
                self.read_timeout, self._check_reader, self.transport.get_write_buffer_size()
            )

    def _check_reader(self, before: int) -> None:
        """Cut the client off unless it has taken some of what waited for it, bytes; if it has, go on."""
        self._writing = None
        waiting = self.transport.get_write_buffer_size()
        if waiting == 0:
            self._expected = None
            self._expect()
        elif waiting > before - LEAST_BYTES:
            self.transport.abort()
        else:
            self._watch_reader()


def protocol_with(read_timeout: float) -> type[PatientProtocol]:
    """The protocol with a patience of so many seconds."""
    return type("Protocol", (PatientProtocol,), {"read_timeout": read_timeout})
