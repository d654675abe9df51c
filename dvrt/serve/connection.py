"""One HTTP connection: uvicorn's, with a limit for everything that a client could keep waiting."""

from __future__ import annotations

import asyncio
import logging
import resource
from dataclasses import dataclass, field

import h11
from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from dvrt.errors import Unavailable
from dvrt.serve.limits import HttpLimits
from dvrt.serve.refusal import Refusal, error_body
from dvrt.serve.reply import Reply, to_json

_WRITE_BUFFER_BYTES = 16 << 10


@dataclass(slots=True, kw_only=True)
class Connections:
    """What all connections of one server share; ``none_left`` is set while there is none."""

    config: Config
    limits: HttpLimits
    state: ServerState = field(default_factory=ServerState)
    none_left: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.none_left.set()

    def __len__(self) -> int:
        return len(self.state.connections)

    @property
    def max_connections(self) -> int:
        """The limit, but never more than half of the files that this process may open."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = self.limits.max_connections
        return limit if soft == resource.RLIM_INFINITY else min(limit, soft // 2)


class Connection(H11Protocol):
    """Beyond uvicorn's own: a request's head must arrive in time, a client must take what it is
    sent, rubbish is answered in OpenAI's shape, connections are counted, and a client that sends
    its next request early is still seen to hang up.
    """

    def __init__(self, shared: Connections) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(shared.config, shared.state, {}, _loop=loop)
        self.logger = logging.getLogger("dvrt.serve")
        self.access_log = False
        self._shared = shared
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        self._shared.none_left.clear()
        self._watch_head()
        if len(self._shared) > self._shared.max_connections:
            self.app = _refuse_connection

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_timer("head")
        self._stop_timer("stall")
        self._unset_keepalive_if_required()
        if not self._shared.state.connections:
            self._shared.none_left.set()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()
        self._read_on()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.trailing_data[0]:
            self._watch_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_timer("stall", self._shared.limits.write_stall_s)

    def resume_writing(self) -> None:
        self._stop_timer("stall")
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Called for bytes that are no HTTP; ``msg`` tells no more than that."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.abort()
            return
        refusal = Refusal(400, msg, code="invalid_http")
        body = to_json(error_body(refusal, request_id=""))
        headers = [("content-type", "application/json"), ("connection", "close")]
        head = h11.Response(status_code=400, headers=[*headers, ("content-length", str(len(body)))])
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def abort(self) -> None:
        """End the connection now; what was not sent is lost."""
        self.transport.abort()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _watch_head(self) -> None:
        """A head that has begun to arrive has a deadline; more bytes do not move it."""
        if self._is_answering or self.transport.is_closing():
            self._stop_timer("head")
        elif "head" not in self._timers:
            self._start_timer("head", self._shared.limits.header_limit_s)

    def _start_timer(self, name: str, limit_s: float) -> None:
        self._timers[name] = self.loop.call_later(limit_s, self.abort)

    def _stop_timer(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _read_on(self) -> None:
        """uvicorn stops reading at a pipelined request, and would not see the client leave."""
        is_early = self._is_answering and self.conn.their_state is h11.DONE
        if not self.flow.read_paused or not is_early:
            return
        if len(self.conn.trailing_data[0]) <= self._shared.limits.max_header_bytes:
            self.flow.resume_reading()


async def _refuse_connection(scope: Scope, receive: Receive, send: Send) -> None:
    error = Unavailable("too many connections; try again later")
    body = to_json(error_body(error, request_id=""))
    await Reply(send, request_id="").whole(body, status=503, headers={"connection": "close"})
