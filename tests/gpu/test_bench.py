"""``bench gpu`` on what is here: the CPU device, and CuPy's device on an imitation of CuPy."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import pytest

from dvrt.bench import gpu
from dvrt.bench.gpu import CASES, Limits, measure, measure_on, pcie_limit
from dvrt.cuda.cpu_device import CpuDevice
from dvrt.cuda.cupy_device import CupyDevice


def imitation():
    path = Path(__file__).parents[1] / "devices" / "fake_cupy.py"
    spec = importlib.util.spec_from_file_location("fake_cupy", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make()


@pytest.mark.may_block
@pytest.mark.parametrize("kind", ["cpu", "cupy"])
async def test_every_side_is_measured(kind):
    fake = imitation()
    device = CpuDevice() if kind == "cpu" else CupyDevice(cupy=fake)
    limits = Limits(pcie=64e9, memory=3e12)
    try:
        measured = await measure_on(
            device, lambda: time.sleep(0.001), limits, repeats=2, whole_bytes=1 << 20
        )
    finally:
        await device.aclose()
        fake.stop()
    for name in ("pinned_out", "pageable_in", "within", "packed_8KiB_in", "runs_1.5KiB_out"):
        assert measured.results[name]["median"] > 0
        assert len(measured.results[name]["repeats"]) == 2
    wanted = {f"packed_vs_runs_{case}_{way}" for case in CASES for way in ("out", "in")}
    wanted |= {"pinned_vs_pageable_out", "pinned_vs_pageable_in", "overlap_vs_none"}
    wanted |= {"pcie_share_pinned_out", "pcie_share_packed_8KiB_out", "memory_share_within"}
    assert wanted <= measured.ratios.keys()
    share = measured.ratios["pcie_share_pinned_out"]
    assert share == pytest.approx(measured.results["pinned_out"]["median"] / 64)


@pytest.mark.may_block
async def test_an_unknown_limit_is_said_and_no_share_of_it():
    device = CpuDevice()
    try:
        measured = await measure_on(device, list, Limits(), repeats=1, whole_bytes=4096)
    finally:
        await device.aclose()
    assert not any("share" in name for name in measured.ratios)
    assert sum("not known" in note for note in measured.notes) == 2
    assert measured.results["pcie_limit_gb_per_s"] == "unknown"


@pytest.mark.may_block
async def test_copies_beside_compute_take_less_time_than_one_after_the_other():
    device = CpuDevice(link_bytes_per_s=1e9)
    try:
        measured = await measure_on(
            device, lambda: time.sleep(0.02), Limits(), repeats=3, whole_bytes=20_000_000
        )
    finally:
        await device.aclose()
    assert 1.4 < measured.ratios["overlap_vs_none"] < 2.2


def test_without_a_gpu_it_says_so(monkeypatch):
    def missing(name):
        raise gpu.ConfigError("device cuda: CuPy is not installed")

    monkeypatch.setattr(gpu, "open_device", missing)
    measured = measure(quick=True)
    assert measured.results == {"gpus": 0}
    assert measured.notes == ["nothing measured: device cuda: CuPy is not installed"]


@pytest.mark.parametrize(
    ("speed", "width", "gb_per_s"),
    [
        ("32.0 GT/s PCIe", "16", 63.0),
        ("16.0 GT/s PCIe", "16", 31.5),
        ("5.0 GT/s PCIe", "8", 4.0),
        ("Unknown", "16", None),
        ("", "", None),
        ("16.0 GT/s PCIe", "0", None),
    ],
)
def test_the_limit_of_a_link(speed, width, gb_per_s):
    limit = pcie_limit(speed, width)
    assert limit is None if gb_per_s is None else limit == pytest.approx(gb_per_s * 1e9, rel=0.01)
