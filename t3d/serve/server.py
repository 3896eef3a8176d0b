"""From a socket to the end: uvicorn with our patience and our way to stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import math
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from t3d.errors import RequestError, WorkError
from t3d.serve.app import make_app
from t3d.serve.service import Service
from t3d.serve.settings import Settings
from t3d.serve.slow_clients import protocol_with

BACKLOG = 2048
LAST_SECONDS = 5
"""For errors to be told after the time for running requests is up."""
START_SECONDS = 30
MANY_FILES = 2**16
KEEP_ALIVE_SECONDS = 5


class Server(uvicorn.Server):
    """Serves a service until it is told to stop.

    Running requests get the settings' time to finish; those that have not are answered by an error. A second signal
    ends at once.

    Args:
        service: warmed up.
        settings: limits.
        on_ready: called when requests are let in.
    """

    def __init__(self, service: Service, settings: Settings, on_ready: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                make_app(service, settings),
                http=protocol_with(settings.read_timeout),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=math.ceil(settings.shutdown_seconds) + LAST_SECONDS,
            )
        )
        self._service = service
        self._shutdown_seconds = settings.shutdown_seconds
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let nothing more in, and wait for what runs."""
        self._service.begin_shutdown(self._shutdown_seconds)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop by signals; uvicorn's own raises them again at the end, and the exit code would tell of a failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; at once if it was told before."""
        self.force_exit = self.should_exit
        self.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address; port 0 takes a free one.

    Raises:
        RequestError: the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError, OverflowError) as error:
        raise RequestError(f"--host {host}: is not an address of this machine") from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(BACKLOG)  # now, so that a second server finds the port taken at once
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise RequestError(f"--port {port}: is taken at {host}; choose another, or 0 for a free one") from error
        raise RequestError(f"--host {host} --port {port}: cannot be had: {error.strerror}") from error
    return listener


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address_of(listener: socket.socket) -> str:
    """Where a browser finds a socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"


def allow_many_connections() -> None:
    """Raise this process's limit on open files, which many systems set to a thousand, as far as it may."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_FILES if hard == resource.RLIM_INFINITY else min(MANY_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def serve(service: Service, settings: Settings, listener: socket.socket, on_ready: Callable[[], None]) -> bool:
    """Serve until SIGTERM or SIGINT; closes the engines. Returns False if a second signal has cut the end short."""
    allow_many_connections()
    server = Server(service, settings, on_ready)
    try:
        asyncio.run(server.serve(sockets=[listener]))
    finally:
        service.close()
    return not server.force_exit


@contextlib.contextmanager
def serving(service: Service, settings: Settings, listener: socket.socket | None = None) -> Iterator[str]:
    """Serve from a thread of this process, at a free port unless a socket is given; yields the address."""
    listener = listener or bind("127.0.0.1", 0)
    is_ready = threading.Event()
    server = Server(service, settings, is_ready.set)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), name="t3d-serve")
    thread.start()
    try:
        if not is_ready.wait(START_SECONDS):
            raise WorkError("the server did not start")
        yield address_of(listener)
    finally:
        server.should_exit = True
        thread.join()
        service.close()
