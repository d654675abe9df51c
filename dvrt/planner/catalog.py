"""The GPUs and models whose derived profiles come with the package, and the script that makes them.

``python -m dvrt.planner.catalog`` writes the files again. GPU rates are the vendors' dense 16-bit
peaks; networks and prices of A100 and V100 are those of the paper's machines. Where nobody gives a
price there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dvrt.planner.profile import SHIPPED, Profile, profile_text
from dvrt.planner.roofline import Gpu, Shape, derive_profile

GPUS = (
    Gpu(
        name="A100-80",
        peak_flops=312e12,
        memory_bandwidth=2.039e12,
        memory_bytes=80_000_000_000,
        host_memory_bytes=220_000_000_000,
        host_to_device=25e9,
        device_to_host=25e9,
        network=5e9,
        gpu_link=300e9,
        price_per_hour=4.63,
    ),
    Gpu(
        name="V100-16",
        peak_flops=125e12,
        memory_bandwidth=0.9e12,
        memory_bytes=16_000_000_000,
        host_memory_bytes=112_000_000_000,
        host_to_device=12e9,
        device_to_host=12e9,
        network=4e9,
        gpu_link=150e9,
        price_per_hour=2.0,
    ),
    Gpu(
        name="H100",
        peak_flops=989e12,
        memory_bandwidth=3.35e12,
        memory_bytes=80_000_000_000,
        host_memory_bytes=256_000_000_000,
        host_to_device=50e9,
        device_to_host=50e9,
        network=50e9,
        gpu_link=450e9,
    ),
    Gpu(
        name="H200",
        peak_flops=989e12,
        memory_bandwidth=4.8e12,
        memory_bytes=141_000_000_000,
        host_memory_bytes=256_000_000_000,
        host_to_device=50e9,
        device_to_host=50e9,
        network=50e9,
        gpu_link=450e9,
    ),
)


def _classic(
    name: str, layers: int, hidden: int, heads: int, vocabulary: int, at: int, unused: int = 0
) -> Shape:
    """GPT-2, OPT and BLOOM: every head has its own KV, the feed-forward is four times wider.

    ``at`` positions are learned, but for BLOOM, of which OPT leaves the first two unused.
    """
    return Shape(
        name=name,
        layers=layers,
        hidden=hidden,
        kv_heads=heads,
        head_dim=hidden // heads,
        feed_forward=4 * hidden,
        vocabulary=vocabulary,
        positions=at,
        longest=at - unused,
    )


def _llama(name: str, layers: int, hidden: int, feed_forward: int) -> Shape:
    return Shape(
        name=name,
        layers=layers,
        hidden=hidden,
        kv_heads=8,
        head_dim=128,
        feed_forward=feed_forward,
        vocabulary=128_256,
        longest=8192,
        gated=True,
        tied=False,
    )


SHAPES = (
    _classic("GPT2-1.5B", 48, 1600, 25, 50_257, 1024),
    _classic("OPT-13B", 40, 5120, 40, 50_272, 2050, 2),
    _classic("OPT-30B", 48, 7168, 56, 50_272, 2050, 2),
    _classic("OPT-66B", 64, 9216, 72, 50_272, 2050, 2),
    _classic("BLOOM-176B", 70, 14_336, 112, 250_880, 0),
    _llama("Llama-3-8B", 32, 4096, 14_336),
    _llama("Llama-3-70B", 80, 8192, 28_672),
)


def catalog_profiles() -> Iterator[Profile]:
    """Every shipped profile, derived anew."""
    return (derive_profile(shape, gpu) for gpu in GPUS for shape in SHAPES)


def write_catalog(directory: Path = SHIPPED) -> list[Path]:
    """Write all profiles; returns their paths."""
    directory.mkdir(exist_ok=True)
    paths = []
    for profile in catalog_profiles():
        path = directory / f"{profile.name}.json"
        path.write_text(profile_text(profile))
        paths.append(path)
    return paths


if __name__ == "__main__":
    write_catalog()
