"""Switch frames between hosts in user space, since few kernels here delay them: links have a rate, ways a delay and jitter, and a link can be cut.

    host i  --- rate --->  [ delay + jitter ]  --- rate --->  host j        frames of one way keep their order

As a program, `python -m tests.switch PREFIX N`, it makes devices PREFIX0 .. to be given to hosts as their eth0, says so, and obeys its input, a line each,
while frames are under way: `delay SECONDS`, `jitter SECONDS`, `rate BITS_PER_S` (0: no limit), `cut HOST`, `mend HOST`. It ends with its input.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
QUEUE_NBYTES = 16 << 20
"""What waits for a link at most; what comes beyond it is lost."""
MAC = b"\x02\0\0\0\0"
"""What a host's address begins with; its number from 1 is the last byte."""


class Switch:
    """Decide when each frame leaves. `n_lost` counts those that never do: from or to a link that is cut, or behind a full queue."""

    def __init__(self, n: int) -> None:
        self.n, self.n_lost = n, 0
        self.delay = self.jitter = self.nbytes_per_s = 0.0
        self.is_cut = [False] * n
        self.sent_at, self.taken_at = [0.0] * n, [0.0] * n  # when a link will have carried all that it was given so far
        self.due: list[tuple[float, int, int, bytes]] = []
        self.n_taken = 0

    def change(self, what: str, value: float) -> None:
        """Carry out one line of the input."""
        if what in ("cut", "mend"):
            self.is_cut[int(value)] = what == "cut"
        elif what == "rate":
            self.nbytes_per_s = value / 8
        elif what in ("delay", "jitter"):
            setattr(self, what, value)
        else:
            raise ValueError(f"switch: there is no '{what}'")

    def take(self, source: int, frame: bytes, now: float) -> None:
        """Let a frame begin its way; one for all goes to all others."""
        if frame[0] & 1:
            targets = [target for target in range(self.n) if target != source]
        else:
            targets = [frame[5] - 1] if frame[:5] == MAC and 0 < frame[5] <= self.n else []
        seconds = len(frame) / self.nbytes_per_s if self.nbytes_per_s else 0.0
        if (self.sent_at[source] - now) * self.nbytes_per_s > QUEUE_NBYTES:
            self.n_lost += 1
            return
        left = self.sent_at[source] = max(now, self.sent_at[source]) + seconds
        for target in targets:
            if self.is_cut[source] or self.is_cut[target]:
                self.n_lost += 1
                continue
            there = left + self.delay + random.random() * self.jitter
            there = self.taken_at[target] = max(there, self.taken_at[target] + seconds)
            self.n_taken += 1
            heapq.heappush(self.due, (there, self.n_taken, target, frame))

    def give(self, now: float) -> list[tuple[int, bytes]]:
        """Return the frames whose time has come, with their hosts."""
        found = []
        while self.due and self.due[0][0] <= now:
            _, _, target, frame = heapq.heappop(self.due)
            if self.is_cut[target]:
                self.n_lost += 1
            else:
                found.append((target, frame))
        return found


def open_device(name: str) -> int:
    """Make a device whose other end is the file that is returned; it goes with the file, and keeps it where it is moved."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return file


def main(prefix: str, n: int) -> None:
    """Switch until the input ends."""
    files = [open_device(f"{prefix}{i}") for i in range(n)]
    switch, clock_now = Switch(n), time.monotonic
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(10))  # ranks that spin on few cores must not delay frames
    except OSError:
        pass
    print("up", flush=True)
    while True:
        wait = min(1.0, max(0.0, switch.due[0][0] - clock_now())) if switch.due else 1.0
        ready, _, _ = select.select([*files, 0], [], [], wait)
        if 0 in ready:
            line = sys.stdin.readline()
            if not line:
                return
            what, value = line.split()
            switch.change(what, float(value))
            print("done", flush=True)
        for source, file in enumerate(files):
            if file in ready:
                _drain(switch, source, file)
        for target, frame in switch.give(clock_now()):
            try:
                os.write(files[target], frame)
            except OSError:  # the device is down, or gone
                switch.n_lost += 1


def _drain(switch: Switch, source: int, file: int, most: int = 64) -> None:
    for _ in range(most):
        try:
            frame = os.read(file, 65600)
        except OSError:  # no more, or the device is down
            return
        switch.take(source, frame, time.monotonic())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
