"""``dvrt doctor``: it finds what is there, and names what brings the rest."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from dvrt.cli import doctor_checks, main
from dvrt.cli.doctor_checks import State


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        main(["doctor", *arguments])
    return int(end.value.code or 0), capsys.readouterr().out


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dvrt.cli.exit_on_signals", lambda: None)
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def with_ucx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_checks, "known_schemes", lambda: ("tcp", "ucx"))


def test_table(capsys) -> None:
    code, out = run(capsys)
    assert code == 0
    for word in ("transformers", metadata.version("torch"), "locked memory", "/dev/shm", "UCX"):
        assert word in out


def test_json_with_the_self_check(capsys) -> None:
    code, out = run(capsys, "--json", "--exact")
    report = json.loads(out)
    found = {each["name"]: each for each in report["findings"]}
    assert code == any(each["state"] == "broken" for each in found.values())
    assert found["exact mode, float32"]["value"] == "bit-identical"
    assert found["numpy"]["value"] == metadata.version("numpy")
    assert report["versions"]["dvrt"] == "0.1.0"
    for each in found.values():
        assert each["state"] in {state.value for state in State}
        assert (each["state"] == "ok") <= (each["remedy"] == "")


@pytest.mark.usefixtures("with_ucx")
def test_what_is_missing_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    found = {finding.name: finding for finding in doctor_checks.packages()}
    assert (found["torch"].state, found["torch"].remedy) == (State.BROKEN, "pip install torch")
    assert (found["ucxx"].state, found["ucxx"].remedy) == (
        State.MISSING,
        "pip install 'dvrt[ucx]'",
    )


def test_a_broken_install_fails(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_checks, "REQUIRED", ("surely-not-there",))
    assert run(capsys)[0] == 1


def tell(monkeypatch: pytest.MonkeyPatch, version: str, *resources: str) -> None:
    """A UCX that says so of itself."""
    lines = [f"{version} /lib/libucp.so.0", "#", "#            md 0  :  component 0  self "]
    lines += [
        f"#      resource {i}  :  md {i}  dev 0  flags -- {name}"
        for i, name in enumerate(resources)
    ]
    monkeypatch.setattr(doctor_checks, "_LOAD_UCX", f"print({chr(10).join(lines)!r})")


@pytest.mark.usefixtures("with_ucx")
def test_ucx_of_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    tell(monkeypatch, "1.21.0", "tcp/eth0", "tcp/lo", "posix/memory")
    which, transports = doctor_checks.ucx()
    assert (which.state, which.value) == (State.OK, "1.21.0 from /lib/libucp.so.0")
    assert (transports.state, transports.value) == (State.MISSING, "posix, tcp; no RDMA")
    assert "conda install" in transports.remedy


@pytest.mark.usefixtures("with_ucx")
def test_ucx_with_rdma_and_an_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tell(monkeypatch, "1.13.1", "rc_mlx5/mlx5_0:1", "tcp/lo")
    which, transports = doctor_checks.ucx()
    assert (which.state, which.remedy) == (State.MISSING, "pip install 'dvrt[ucx]'")
    assert (transports.state, transports.value) == (State.OK, "rc_mlx5, tcp")


@pytest.mark.usefixtures("with_ucx")
def test_no_ucx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_checks, "_LOAD_UCX", "raise SystemExit('no libucp')")
    (finding,) = doctor_checks.ucx()
    assert (finding.state, finding.remedy) == (State.MISSING, "pip install 'dvrt[ucx]'")


def test_what_no_transport_uses_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_checks, "known_schemes", lambda: ("tcp",))
    monkeypatch.setattr(doctor_checks, "_LOAD_UCX", "raise SystemExit('no libucp')")
    (finding,) = doctor_checks.ucx()
    assert (finding.state, finding.remedy) == (State.OK, "")


def test_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = {resource.RLIMIT_MEMLOCK: (8 << 20, 8 << 20), resource.RLIMIT_NOFILE: (1024, -1)}
    monkeypatch.setattr(resource, "getrlimit", given.__getitem__)
    locked, files, *_ = doctor_checks.limits()
    assert (locked.state, locked.remedy) == (State.LOW, "ulimit -l unlimited")
    assert locked.value.startswith("8 MiB")
    assert (files.value, files.remedy) == ("1024 of at most unlimited", "ulimit -n 65536")
    assert doctor_checks.shared_memory(tmp_path / "nowhere").state is State.LOW


def test_light() -> None:
    """The quick checks of packages and limits import neither torch nor NumPy nor ucxx."""
    program = (
        "import sys; from dvrt.cli import doctor_checks as c\n"
        "list(c.packages()), list(c.ucx()), list(c.limits())\n"
        "print(sorted({'torch', 'ucxx', 'cupy', 'numpy'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
