"""Both sides of a test over HTTP: a server on a free port, OpenAI's client, bare sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import openai

from dvrt.serve.served import Served
from dvrt.serve.server import Server

MODEL = "fake/model"


@contextlib.asynccontextmanager
async def served(
    engine: Served, **options: Any
) -> AsyncIterator[tuple[Server, openai.AsyncOpenAI]]:
    async with Server(engine, port=0, **options) as server:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=20
        ) as client:
            yield server, client


class Wire:
    """One bare connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        """Status, headers and parsed JSON body of one answer that is not a stream."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)
        status, *lines = head.decode().rstrip().split("\r\n")
        headers = {key.lower(): value for key, _, value in (one.partition(": ") for one in lines)}
        body = await self.reader.readexactly(int(headers["content-length"]))
        is_json = headers["content-type"] == "application/json"
        return int(status.split()[1]), headers, json.loads(body) if is_json else body

    async def end(self) -> bytes:
        """All that comes until the server closes; b"" also where it resets."""
        try:
            return await asyncio.wait_for(self.reader.read(), 10)
        except ConnectionError:
            return b""

    def hang_up(self) -> None:
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def wire(server: Server) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def post(path: str, body: Any, *, headers: str = "") -> bytes:
    """A request as bytes; ``body`` is JSON unless it is bytes already."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n{headers}\r\n"
    return head.encode() + data


def get(path: str, *, headers: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n".encode()


async def ask(server: Server, request: bytes) -> tuple[int, dict[str, str], Any]:
    async with wire(server) as connection:
        await connection.send(request)
        return await connection.answer()
