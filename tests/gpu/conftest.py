"""What CUDA keeps open for as long as a process lives is opened before the first test looks."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _context(request: pytest.FixtureRequest) -> None:
    """A context of PyTorch's and of CuPy's, with its pipes and files; nothing without a GPU."""
    marks = [item.iter_markers() for item in request.session.items]
    names = [{mark.name for mark in each} for each in marks]
    if not any("gpu" in each and "skip" not in each for each in names):
        return
    import cupy
    import torch

    torch.ones(8, 8, device="cuda").mm(torch.ones(8, 8, device="cuda")).cpu()
    cupy.asnumpy(cupy.zeros(8) + 1)
    cupy.cuda.alloc_pinned_memory(8)
