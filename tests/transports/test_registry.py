"""Schemes are found by name and imported only when chosen."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import dvrt.transport
from dvrt.errors import ConfigError
from dvrt.transport import connect, get_transport, known_schemes, listen


async def test_addresses_without_a_known_scheme_are_refused():
    with pytest.raises(ConfigError, match=r"'carrier-pigeon' is unknown; known: local, tcp"):
        await connect("carrier-pigeon://x", deadline_s=1)
    with pytest.raises(ConfigError, match="expected scheme://rest"):
        await listen("localhost:80", None)


@pytest.mark.parametrize(
    "address", ["tcp://host", "tcp://host:", "tcp://host:x", "tcp://:99999", "tcp://h:-1"]
)
async def test_bad_ports_are_refused(address):
    with pytest.raises(ConfigError, match="expected tcp://host:port"):
        await connect(address, deadline_s=1)


def test_every_scheme_has_its_transport():
    for scheme in known_schemes():
        if scheme != "ucx":
            assert get_transport(scheme).scheme == scheme


def late_exports() -> dict[str, str]:
    """Public name to module, of the imports that only type checkers see."""
    tree = ast.parse(Path(dvrt.transport.__file__).read_text())
    late = next(node for node in tree.body if isinstance(node, ast.If))
    return {alias.asname: node.module for node in late.body for alias in node.names}


def test_faults_are_public_and_typed_as_they_are_at_run_time():
    assert late_exports() == dvrt.transport._LATE
    assert dvrt.transport.FaultyTransport is dvrt.transport.faulty.FaultyTransport
    for name, module in late_exports().items():
        assert getattr(dvrt.transport, name) is getattr(importlib.import_module(module), name)
    with pytest.raises(AttributeError, match="no attribute 'FaultlessTransport'"):
        _ = dvrt.transport.FaultlessTransport


def test_importing_is_light():
    code = (
        "import sys; import dvrt.transport as t; t.get_transport('local');"
        "late = {'dvrt.transport.tcp', 'dvrt.transport.faulty', 'dvrt.transport.faults'};"
        "heavy = {'torch', 'ucxx', 'cupy', 'uvloop', *late} & set(sys.modules);"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
