"""What a launched cluster keeps from being printed, and what not."""

from __future__ import annotations

import io
import logging

import distributed

import cluster
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


def test_a_handler_that_a_program_shares_with_dask_still_writes_its_warnings():
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    loggers = [logging.getLogger("distributed"), logging.getLogger("own")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        with cluster.launch("local", workers=1):
            logging.getLogger("own").warning("mine")
            logging.getLogger("distributed.scheduler").warning("noise")
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    assert written.getvalue() == "mine\n"
