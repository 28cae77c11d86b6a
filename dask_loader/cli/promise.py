"""What an epoch promises: steps, rows and copies of each rank, and rows left off. Pure.

Written from the promises alone. The loader's own plan is not asked.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Promise:
    """An epoch's numbers.

    Attributes:
        num_rows: Rows that the filters keep.
        world_size: Ranks.
        batch_size: Rows of each rank's whole batch.
        uneven: "pad", "drop" or "exact".
        drop_last: Whether a last global batch that is not whole is left off.
        first_steps: Steps, all whole, that other ranks made before a checkpoint.
        first_world_size: How many ranks those were, with the same global batch.
    """

    num_rows: int
    world_size: int
    batch_size: int
    uneven: str = "pad"
    drop_last: bool = False
    first_steps: int = 0
    first_world_size: int = 0

    @property
    def num_ranks(self) -> int:
        """Ranks that have any batch at all."""
        return max(self.world_size, self.first_world_size * (self.first_steps > 0))

    @property
    def step_rows(self) -> int:
        """Rows of a whole global batch."""
        return self.world_size * self.batch_size

    @property
    def num_whole(self) -> int:
        """Whole global batches."""
        return self.num_rows // self.step_rows

    @property
    def tail_rows(self) -> int:
        """Rows that are left for a last global batch."""
        return self.num_rows % self.step_rows

    @property
    def num_dropped(self) -> int:
        """Rows that never come."""
        if self.drop_last:
            return self.tail_rows
        return self.tail_rows % self.world_size if self.uneven == "drop" else 0

    @property
    def num_pads(self) -> int:
        """Copies, over all ranks; no rank has two."""
        pads = self.uneven == "pad" and not self.drop_last
        return -self.tail_rows % self.world_size if pads else 0

    def last_rows(self, rank: int) -> int:
        """Return the rows of a rank's share of what is left, copies included."""
        each, over = divmod(self.tail_rows, self.world_size)
        if self.drop_last or rank >= self.world_size:
            return 0
        more = {"pad": over > 0, "drop": False, "exact": rank < over}
        return each + more[self.uneven]

    def num_steps(self, rank: int) -> int:
        """Return a rank's batches."""
        before = self.first_steps * (rank < self.first_world_size)
        if rank >= self.world_size:
            return before
        after = self.num_whole - self.first_steps + (self.last_rows(rank) > 0)
        return before + after

    def batch_rows(self, rank: int, step: int) -> int:
        """Return the rows of a rank's batch; 0 where it has none."""
        if step < self.first_steps:
            mine = rank < self.first_world_size
            return self.step_rows // self.first_world_size if mine else 0
        if step < self.num_whole:
            return self.batch_size if rank < self.world_size else 0
        return self.last_rows(rank) if step == self.num_whole else 0
