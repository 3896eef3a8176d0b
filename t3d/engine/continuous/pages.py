"""Keys and values in pages, and who owns which page.

A page holds `PAGE_SIZE` consecutive positions of one request in every layer. Page 0 belongs to nobody: padding is
written there.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from t3d.engine.continuous.transfer import sent

PAGE_SIZE = 64


def num_pages_for(num_positions: int) -> int:
    """Pages that hold positions 0 .. num_positions-1."""
    return -(-num_positions // PAGE_SIZE)


def bytes_per_page(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Of one page in all layers."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * PAGE_SIZE * dtype.itemsize


class PageAllocator:
    """Ownership of pages 1 .. num_pages-1, shared prefixes included. Host only.

    A page of whole prompt blocks can be published under a key that stands for everything up to its end. Who comes with
    the same prompt uses it too; it stays known after its last owner has gone, until the room is needed.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = deque(range(1, num_pages))
        self._owners: dict[int, int] = {}
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # published, without an owner; the longest unused first

    @property
    def num_free(self) -> int:
        """Pages that `take` could give."""
        return len(self._free) + len(self._idle)

    def take(self, count: int) -> list[int]:
        """Own `count` pages; the caller has looked at `num_free`."""
        return [self._take_one() for _ in range(count)]

    def _take_one(self) -> int:
        if self._free:
            page = self._free.popleft()
        else:
            page, _ = self._idle.popitem(last=False)
            del self._page_of[self._key_of.pop(page)]
        self._owners[page] = 1
        return page

    def give_back(self, pages: Sequence[int]) -> None:
        """Own pages no longer."""
        for page in pages:
            self._owners[page] -= 1
            if self._owners[page] > 0:
                continue
            del self._owners[page]
            if page in self._key_of:
                self._idle[page] = None
            else:
                self._free.append(page)

    def known(self, keys: Sequence[bytes]) -> list[int]:
        """The pages of the longest published prefix; not owned yet."""
        pages = []
        for key in keys:
            if key not in self._page_of:
                break
            pages.append(self._page_of[key])
        return pages

    def num_idle(self, pages: Sequence[int]) -> int:
        """How many of these published pages have no owner, so that sharing them uses up `num_free`."""
        return sum(page in self._idle for page in pages)

    def share(self, pages: Sequence[int]) -> None:
        """Own pages that `known` gave."""
        for page in pages:
            self._idle.pop(page, None)
            self._owners[page] = self._owners.get(page, 0) + 1

    def publish(self, pages: Sequence[int], keys: Sequence[bytes]) -> None:
        """Let others find owned pages. The first page published under a key stays the one."""
        for page, key in zip(pages, keys, strict=True):
            if key not in self._page_of and page not in self._key_of:
                self._page_of[key] = page
                self._key_of[page] = key

    def forget(self) -> None:
        """Let nobody find what was published so far."""
        self._free.extend(self._idle)
        self._idle.clear()
        self._page_of.clear()
        self._key_of.clear()


def prefix_keys(prompt_ids: Sequence[int], prefill_length: int, block_size: int) -> list[bytes]:
    """Keys of the whole pages of a prompt's prefill; one stands for every token up to its page's end.

    Only a page that ends with a block has keys and values that do not depend on what follows.
    """
    if PAGE_SIZE % block_size:
        return []
    keys = []
    digest = hashlib.blake2b(f"{block_size}".encode(), digest_size=16)
    tokens = np.asarray(prompt_ids[:prefill_length], dtype=np.int32)
    for start in range(0, prefill_length - PAGE_SIZE + 1, PAGE_SIZE):
        digest.update(tokens[start : start + PAGE_SIZE].tobytes())
        keys.append(digest.digest())
    return keys


class PagedCache:
    """The pages on the device, and the table that says where each slot's positions lie.

    Shape legend: L layers, G pages, H key-value heads, D head dimension, S slots.

    Attributes:
        keys, values: [L, G, H, PAGE_SIZE, D].
        table: int32 [S + 1, pages of the longest request]; 0 where a slot has no page (the idle slot never has one).
    """

    def __init__(
        self,
        config: PretrainedConfig,
        num_pages: int,
        num_slots: int,
        num_positions: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (config.num_hidden_layers, num_pages, config.num_key_value_heads, PAGE_SIZE, config.head_dim)
        # Zeros, not empty: a masked key has weight 0, and 0 times a stray NaN would still be NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self._rows = np.zeros((num_slots + 1, num_pages_for(num_positions)), dtype=np.int32)
        self._unsent: set[int] = set()
        self.table = torch.zeros(self._rows.shape, dtype=torch.int32, device=device)

    def point(self, slot: int, pages: Sequence[int]) -> None:
        """Say which pages a slot has; the device knows after the next `send`."""
        self._rows[slot] = 0
        self._rows[slot, : len(pages)] = pages
        self._unsent.add(slot)

    def send(self) -> None:
        """Write what `point` was told into the table, in the order of the device's work."""
        if not self._unsent:
            return
        slots = sorted(self._unsent)
        self._unsent.clear()
        rows, index = torch.from_numpy(self._rows[slots]), torch.tensor(slots)
        self.table.index_copy_(0, sent(index, self.table.device), sent(rows, self.table.device))

    def places(self, slot: int, start: int, stop: int) -> np.ndarray:
        """Where positions start .. stop-1 of a slot go: page * PAGE_SIZE + offset, int32."""
        positions = np.arange(start, stop, dtype=np.int32)
        return self._rows[slot, positions // PAGE_SIZE] * PAGE_SIZE + positions % PAGE_SIZE

    def read(self, pages: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Copies of pages on the host, [L, len(pages), H, PAGE_SIZE, D] each. Waits for the device."""
        index = torch.tensor(pages, device=self.keys.device)
        return self.keys.index_select(1, index).cpu(), self.values.index_select(1, index).cpu()

    def write(self, pages: Sequence[int], copies: tuple[Tensor, Tensor]) -> None:
        """What `read` gave, into as many pages."""
        index = torch.tensor(pages, device=self.keys.device)
        for stored, copy in zip((self.keys, self.values), copies, strict=True):
            stored.index_copy_(1, index, copy.to(stored.device))

    def clear(self, pages: Sequence[int]) -> None:
        """Zero pages that may hold NaN or infinity."""
        index = torch.tensor(pages, device=self.keys.device)
        self.keys.index_fill_(1, index, 0)
        self.values.index_fill_(1, index, 0)
