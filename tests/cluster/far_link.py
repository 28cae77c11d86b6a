"""A long and lossy line between two TAP devices, which it makes where it is started.

far_link.py DEVICE DEVICE DELAY_S LOSS
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_MAX_FRAME_BYTES = 2048  # an MTU of 1500
_FRAMES_AT_ONCE = 64  # read from one side, before those that are due are written


def open_tap(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(
        fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI)
    )
    return fd


def main() -> None:
    first, second, delay_s, loss = sys.argv[1:]
    taps = [open_tap(first), open_tap(second)]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    other = {taps[0]: taps[1], taps[1]: taps[0]}
    chance = random.Random(0)
    under_way: deque[tuple[float, int, bytes]] = deque()  # due when, to where, what
    while True:
        now = time.monotonic()
        while under_way and under_way[0][0] <= now:
            _, to, frame = under_way.popleft()
            try:
                os.write(to, frame)
            except OSError:  # a device that is down: lost
                continue
        wait_s = max(0.0, under_way[0][0] - now) if under_way else None
        for tap in select.select(taps, [], [], wait_s)[0]:
            for _ in range(_FRAMES_AT_ONCE):
                try:
                    frame = os.read(tap, _MAX_FRAME_BYTES)
                except OSError:  # no more, or down
                    break
                if chance.random() >= float(loss):
                    due = time.monotonic() + float(delay_s)
                    under_way.append((due, other[tap], frame))


if __name__ == "__main__":
    main()
