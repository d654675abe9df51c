"""Schemes are found by name and imported only when chosen."""

from __future__ import annotations

import subprocess
import sys

import pytest

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


def test_importing_is_light():
    code = (
        "import sys; import dvrt.transport as t; t.get_transport('local');"
        "heavy = {'torch', 'ucxx', 'cupy', 'dvrt.transport.tcp', 'uvloop'} & set(sys.modules);"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
