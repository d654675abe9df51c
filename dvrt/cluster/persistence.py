"""Where a launch keeps its logs on disk: in a place that nothing else's entries were ever in.

Numbers of sequences and epochs begin anew with each journal, and an entry does not say which
weights it comes from; so both name the place.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from dvrt.cluster.plan import ClusterPlan
from dvrt.config import LaunchOptions

PREFIX = "kv-"


def kept_directory(options: LaunchOptions, plan: ClusterPlan, secret: bytes) -> Path | None:
    """The directory in ``persist`` for the journal with this secret, the checkpoint's files as they
    are, and the arithmetic of the launch; None without ``persist``."""
    if not options.persist_directory:
        return None
    spec = plan.layouts[-1].loads[0].spec  # of tokens: logs of prompts alone are not kept
    digest = hashlib.blake2b(secret, digest_size=8)
    for part in (spec.dtype, spec.device, spec.exact, spec.batch_size, spec.chunk_tokens):
        digest.update(f"{part}\n".encode())
    for part in _checkpoint(Path(spec.directory)):
        digest.update(f"{part}\n".encode())
    return Path(options.persist_directory) / f"{PREFIX}{digest.hexdigest()}"


def remove_others(kept: Path) -> None:
    """Remove what launches with other journals, files or options have left beside it; blocks."""
    for path in kept.parent.glob(f"{PREFIX}*"):
        if path != kept and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _checkpoint(directory: Path) -> Iterator[str]:
    for path in sorted([directory / "config.json", *directory.glob("*.safetensors")]):
        stat = path.stat()
        yield f"{path.name} {stat.st_size} {stat.st_mtime_ns}"
