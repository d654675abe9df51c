"""The HTTP server of one engine: listens, drains, closes. Installs no signal handlers."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable

from uvicorn import Config

from dvrt.errors import ConfigError
from dvrt.serve.app import create_app
from dvrt.serve.calls import Calls
from dvrt.serve.connection import Connection, Connections
from dvrt.serve.limits import HttpLimits
from dvrt.serve.served import Served

DEFAULT_DRAIN_LIMIT_S = 30.0


class Server:
    """Serves ``engine`` on ``host`` and ``port`` (0: any free one) within the running loop.

    ``async with`` starts and closes it. It neither owns nor closes the engine.
    """

    def __init__(
        self,
        engine: Served,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        api_key: str | None = None,
        limits: HttpLimits | None = None,
    ) -> None:
        if not 0 <= port < 1 << 16:
            raise ConfigError(f"port is {port}; it must be between 0 and 65535")
        if api_key is not None and not api_key.strip():
            raise ConfigError("api_key is empty; leave it out to serve without a key")
        self._engine = engine
        self._host = host
        self._port = port
        self._limits = limits if limits is not None else HttpLimits()
        self._calls = Calls()
        app = create_app(engine, api_key=api_key, limits=self._limits, calls=self._calls)
        self._connections = Connections(config=_config(app, self._limits), limits=self._limits)
        self._listener: asyncio.Server | None = None
        self._stopping = asyncio.Event()
        self._hurrying = asyncio.Event()

    def __repr__(self) -> str:
        state = "listening" if self._listener is not None else "closed"
        return (
            f"<Server {self.url} {state}, {len(self._connections)} connections, "
            f"{len(self._calls)} calls>"
        )

    @property
    def host(self) -> str:
        return self._host

    @property
    def port(self) -> int:
        """The port in use; known once started, also where 0 was asked for."""
        return self._port

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    async def start(self) -> None:
        """Listen. Raises ConfigError naming host and port where that is impossible."""
        where = f"{self._host}:{self._port}"
        try:
            self._listener = await self._listen()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(f"{where} is in use; choose another port") from error
            raise ConfigError(f"cannot listen on {where}: {error.strerror or error}") from error
        self._port = self._listener.sockets[0].getsockname()[1]

    async def __aenter__(self) -> Server:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def stop(self) -> None:
        """Ask ``serve`` to drain and return; the second time, to return without draining further.

        Fit for a signal handler of the loop.
        """
        if self._stopping.is_set():
            self._hurrying.set()
        self._stopping.set()

    async def wait_stopped(self) -> None:
        """Return once ``stop`` was called."""
        await self._stopping.wait()

    async def drain(self, limit_s: float) -> None:
        """Let running calls end, for ``limit_s`` at most; new ones are answered with 503.

        Returns early when ``stop`` is called for the second time.
        """
        draining = asyncio.create_task(self._drained(limit_s))
        hurrying = asyncio.create_task(self._hurrying.wait())
        try:
            await asyncio.wait((draining, hurrying), return_when=asyncio.FIRST_COMPLETED)
        finally:
            draining.cancel()
            hurrying.cancel()
            await asyncio.gather(draining, hurrying, return_exceptions=True)
        if not draining.cancelled():
            draining.result()

    async def aclose(self) -> None:
        """Stop listening and end all calls, their clients told so; harmless when called again.

        Answers have ``limits.close_grace_s`` to be written. Whoever has not read its own by then is
        cut off, which takes twice as long again at most.
        """
        if self._listener is None:
            return
        listener, self._listener = self._listener, None
        listener.close()
        self._calls.close()
        try:
            await self._wait_answers(self._limits.close_grace_s)
        finally:
            await self._cut_off()

    async def _listen(self) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        host = self._host
        if self._port == 0:  # every address of a name would get a port of its own
            host = str((await loop.getaddrinfo(host, 0))[0][4][0])
        return await loop.create_server(lambda: Connection(self._connections), host, self._port)

    async def _drained(self, limit_s: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + limit_s
        await self._engine.drain(limit_s)
        await self._wait_answers(max(0.0, deadline - loop.time()))

    async def _wait_answers(self, limit_s: float) -> None:
        tasks = self._connections.state.tasks
        if tasks:
            await asyncio.wait(list(tasks), timeout=limit_s)

    async def _cut_off(self) -> None:
        state = self._connections.state
        for connection in list(state.connections):
            connection.shutdown()
        await _wait(self._connections.none_left, self._limits.close_grace_s)
        for connection in list(state.connections):
            connection.transport.abort()
        tasks = list(state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await _wait(self._connections.none_left, self._limits.close_grace_s)


async def serve(
    engine: Served,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    drain_limit_s: float = DEFAULT_DRAIN_LIMIT_S,
    limits: HttpLimits | None = None,
    ready: Callable[[Server], None] | None = None,
) -> None:
    """Serve until the server that ``ready`` is given is told to ``stop``, then drain and close.

    Cancelled, it closes without draining. Raises ConfigError where it cannot listen.
    """
    server = Server(engine, host=host, port=port, api_key=api_key, limits=limits)
    async with server:
        if ready is not None:
            ready(server)
        await server.wait_stopped()
        await server.drain(drain_limit_s)


async def _wait(event: asyncio.Event, limit_s: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), limit_s)
    except TimeoutError:
        pass


def _config(app: object, limits: HttpLimits) -> Config:
    config = Config(
        app,  # type: ignore[arg-type]
        http="h11",
        ws="none",
        loop="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=limits.keep_alive_s,
        h11_max_incomplete_event_size=limits.max_header_bytes,
    )
    config.load()
    return config
