"""Whether this machine has the device that a model is to compute on."""

from __future__ import annotations

from dvrt.errors import ConfigError


def require_cuda(device: str) -> None:
    """Raise ConfigError for ``cuda`` or ``cuda:N`` where PyTorch does not see it; imports torch for
    these alone."""
    if not device.startswith("cuda"):
        return
    import torch

    number = int(device.partition(":")[2] or 0)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if number >= count:
        raise ConfigError(f"device is {device}; PyTorch sees {count} CUDA devices here")
