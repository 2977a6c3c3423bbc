"""Several shards folders as one."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llip.data.shards import RowGroup, Shards


class ShardSets:
    """Row groups and rows numbered through all folders, in the order in which these are given."""

    def __init__(self, folders: Sequence[str], *, synthetic: bool = False) -> None:
        self._sets = [Shards(folder, synthetic=synthetic) for folder in folders]
        self.group_rows = [shards.group_rows for shards in self._sets]
        """Rows of every row group of each folder."""
        self.row_group_size = max(shards.manifest.row_group_size or 0 for shards in self._sets)
        self._first_group = np.cumsum([0, *map(len, self.group_rows)])
        self._first_row = np.cumsum([0, *(rows.sum() for rows in self.group_rows)])

    def read(self, group: int) -> RowGroup:
        """Read one row group. Raises ValueError where its file is damaged."""
        index = int(np.searchsorted(self._first_group, group, side="right")) - 1
        found = self._sets[index].read(group - int(self._first_group[index]))
        return replace(found, first=found.first + int(self._first_row[index]))

    def close(self) -> None:
        """Close the files."""
        for shards in self._sets:
            shards.close()
