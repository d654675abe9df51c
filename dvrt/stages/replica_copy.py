"""The bytes of one copied log, and what was checked of them when they came."""

from __future__ import annotations

from dataclasses import dataclass, field

from dvrt.kv.digest import digest_of


@dataclass(slots=True)
class ReplicaCopy:
    """One log: its entries from position 0 on. ``parts`` are (end, digest) of what came together,
    so that memory which has changed since is noticed before it is believed.
    """

    seq: int
    epoch: int
    data: bytearray = field(default_factory=bytearray)
    parts: list[tuple[int, int]] = field(default_factory=list)
    is_given_up: bool = False

    @property
    def nbytes(self) -> int:
        return len(self.data)

    def append(self, part: memoryview) -> None:
        if part.nbytes:
            self.data += part
            self.parts.append((len(self.data), digest_of([part])))

    def cut(self, nbytes: int) -> None:
        """Keep the first ``nbytes``, or less where what should be kept has changed."""
        while self.parts and self._begin(-1) >= nbytes:
            self.parts.pop()
        if self.parts and self.parts[-1][0] > nbytes:
            begin = self._begin(-1)
            is_sound = self._is_sound(-1)
            self.parts.pop()
            if is_sound:
                self.parts.append((nbytes, digest_of([memoryview(self.data)[begin:nbytes]])))
        del self.data[self.parts[-1][0] if self.parts else 0 :]

    def sound_bytes(self) -> int:
        """How many bytes from the beginning are as they came."""
        for index in range(len(self.parts)):
            if not self._is_sound(index):
                return self._begin(index)
        return len(self.data)

    def _begin(self, index: int) -> int:
        place = index % len(self.parts)
        return self.parts[place - 1][0] if place else 0

    def _is_sound(self, index: int) -> bool:
        end, digest = self.parts[index]
        return digest_of([memoryview(self.data)[self._begin(index) : end]]) == digest


@dataclass(slots=True)
class Shelf:
    """The copies of one stage's logs by slot; each entry of theirs has ``entry_bytes``."""

    first: int
    last: int
    entry_bytes: int = 0
    copies: dict[int, ReplicaCopy] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum([copy.nbytes for copy in self.copies.values()])
