"""The epoch as pure functions: numbers in, numbers out. No I/O, Arrow, torch or Dask.

The words, from the whole to the part:

* row line: the row groups that have rows left, laid end to end in the epoch's order.
* split: one of num_splits consecutive runs of the line, equal in rows up to one.
* slice: a row range of one row group. window: consecutive slices of one split, the unit
  that a task reads, mixes and hands over.
* position: a place in the epoch. Position p is row p // num_splits of split
  p mod num_splits, as cards are dealt.
* step: a run of world_size * batch_size positions; a rank's share of it is its batch.
"""
