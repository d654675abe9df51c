"""What leaves a stage on a GPU is in host memory; a model that says its states are on one."""

from __future__ import annotations

from types import SimpleNamespace

from dvrt.models.hash_model import HashModel
from dvrt.requests import Request
from tests.runtime.test_executor import GREEDY, N_LAYERS, serve, shape_of


class OnDevice:
    """Looks like a tensor of a GPU; its bytes are to be had by a copy alone."""

    device = SimpleNamespace(type="cuda")

    def __init__(self, array):
        self._array = array

    def data_ptr(self):
        return 1 << 40

    def is_contiguous(self):
        return True

    def numel(self):
        return self._array.size

    def element_size(self):
        return self._array.itemsize

    def cpu(self):
        return self._array


def test_hidden_states_leave_a_stage_as_host_memory(monkeypatch):
    n_copied = 0

    def on_device(compute):
        def computed(model, *arguments, **options):
            nonlocal n_copied
            hidden = compute(model, *arguments, **options)
            if model._first + len(model._keys) == N_LAYERS:
                return hidden
            n_copied += 1
            return OnDevice(hidden)

        return computed

    request = Request(id="a", prompt_ids=(5, 6, 7), max_tokens=6, sampling=GREEDY)
    expected = serve([request], shape_of(3, 1, 2))
    for name in ("decode", "chunk"):
        monkeypatch.setattr(HashModel, name, on_device(getattr(HashModel, name)))
    assert serve([request], shape_of(3, 1, 2)) == expected
    assert n_copied
