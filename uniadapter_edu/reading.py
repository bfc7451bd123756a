"""Rows of a data set as training reads them: one at a time, and it knows what to do when one cannot be read.

A picture may be damaged, and a file may be lost while training goes on. Where such rows are to be skipped, another row
takes the place of each, so that every batch is whole: the contrastive loss of a smaller one would be another loss. Which
row, follows from the seed and from the two numbers by which the lost one was asked for. A resumed run does the same.
"""

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from PIL import Image

from uniadapter_edu.errors import UniAdapterError, UnreadableError

# What decoders raise for damaged files: hardly less than everything, once they stumble over a number that cannot be.
# UniAdapterError is a ValueError, too, but says something about all rows.
DAMAGED = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    SyntaxError,
    EOFError,
)
DAMAGED += (struct.error, zlib.error, Image.DecompressionBombError)


def is_text(value) -> bool:
    """Whether this is a str that can be written down: half of a pair of surrogates, as a cut emoji leaves, cannot."""
    try:
        return isinstance(value, str) and bool(value.encode("utf-8") or True)
    except UnicodeEncodeError:
        return False


@contextmanager
def readable(row: int) -> Iterator[None]:
    """Whatever a decoder raises in the block becomes an `UnreadableError` that names the row."""
    try:
        yield
    except UniAdapterError:
        raise
    except DAMAGED as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200] or type(error).__name__
        raise UnreadableError(
            f"row {row} of the data set cannot be read: {reason}",
            'restore it, or leave it out; train() does without such rows with unreadable="skip".',
        ) from error


class Rows(torch.utils.data.Dataset):
    """The rows of a batch by their keys, (epoch, row) each; a row says which it is, so that the task can draw by it.

    read     makes a row of the data set what the task collates
    skip     whether another row takes the place of one that cannot be read; else that is an error
    """

    def __init__(self, rows: Sequence, read: Callable[[dict], dict], skip: bool, seed: int):
        self.rows, self.read, self.skip, self.seed = rows, read, skip, seed

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> tuple[list[dict], list[int] | UnreadableError]:
        """A batch, and which of its rows were lost. An error is given back and not raised: from a process that loads
        data it would arrive as another one."""
        batch, lost, taken = [], [], {row for _, row in keys}
        try:
            for key in keys:
                batch.append(self._one(*key, lost, taken))
        except UnreadableError as error:
            return [], error
        return batch, lost

    def _one(self, epoch: int, row: int, lost: list[int], taken: set[int]) -> dict:
        try:
            return self._row(epoch, row)
        except UnreadableError as error:
            if not self.skip:
                raise
            first = error
        lost.append(row)
        for other in self._others(epoch, row, taken):
            try:
                found = self._row(epoch, other)
            except UnreadableError:
                continue
            taken.add(other)
            return found
        raise UnreadableError(f"no row of the data set can be read; {first.cause}", "check where its pictures are.")

    def _row(self, epoch: int, row: int) -> dict:
        with readable(row):
            return {**self.read(self.rows[row]), "epoch": epoch, "index": row}

    def _others(self, epoch: int, row: int, taken: set[int]) -> Iterator[int]:
        """All rows in an order that follows from the seed: first those that are not in the batch anyway."""
        generator = torch.Generator().manual_seed(hash((self.seed, epoch, row)) & 0x7FFF_FFFF)  # of integers, the same
        order = torch.randperm(len(self.rows), generator=generator).tolist()  # in every process
        yield from (other for other in order if other not in taken)
        yield from (other for other in order if other in taken)
