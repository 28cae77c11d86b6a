"""From slices of row groups to decoded columns, within a byte bound, where the rows lie."""
