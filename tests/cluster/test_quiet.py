"""What a launched cluster keeps from being printed, and what not."""

from __future__ import annotations

import logging

import distributed

from cluster.quiet import dask_quiet


class Kept(logging.Handler):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def test_only_dasks_own_lines_are_held_back():
    # A handler may be everybody's: pytest's is, and many programs' is.
    assert distributed.__version__
    handler, loggers = (
        Kept(),
        [logging.getLogger("distributed"), logging.getLogger("own")],
    )
    for logger in loggers:
        logger.addHandler(handler)
    try:
        with dask_quiet():
            logging.getLogger("distributed.scheduler").warning("noise")
            logging.getLogger("distributed.scheduler").error("trouble")
            logging.getLogger("own").warning("mine")
        logging.getLogger("distributed.scheduler").warning("later")
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    assert handler.texts == ["trouble", "mine", "later"]
