"""A worker that joins a cluster by hand, from this machine or another."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket

from dvrt.cluster.launch import CONTROLLER, tcp_address
from dvrt.errors import ConnectFailed, StageFailed
from dvrt.processes.worker_process import LEASE_ENDED, WorkerBoot
from dvrt.stages.assembly import run_stage_worker

PAUSE_S = 0.2


async def join_cluster(
    host: str,
    port: int,
    *,
    secret: str,
    wait_s: float = 30.0,
    heartbeat_s: float = 0.2,
    lease_s: float = 5.0,
) -> None:
    """Join the cluster whose control port is ``host:port`` and work until it ends.

    Waits ``wait_s`` for the port to be there. Returns when the cluster closes. Raises ConnectFailed
    when nobody answers or the secret is another one, and StageFailed when this worker failed or
    lost its controller.
    """
    await _wait_listening(host, port, wait_s)
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
    boot = WorkerBoot(
        name=name,
        controller=f"{tcp_address(host, port)}/{CONTROLLER}",
        secret=secret.encode(),
        heartbeat_s=heartbeat_s,
        lease_s=lease_s,
    )
    code = await run_stage_worker(boot)
    if code:
        why = "its lease of the controller ended" if code == LEASE_ENDED else "see its log"
        raise StageFailed(name, why)


async def _wait_listening(host: str, port: int, wait_s: float) -> None:
    try:
        async with asyncio.timeout(wait_s):
            while not await _is_listening(host, port):  # noqa: ASYNC110 - nothing here could tell
                await asyncio.sleep(PAUSE_S)
    except TimeoutError:
        raise ConnectFailed(f"nobody listens at {host}:{port} after {wait_s:g} s") from None


async def _is_listening(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
