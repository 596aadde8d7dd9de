"""Join two hosts (`benchmarks.hosts`) by a wire with a rate: the kernel's limit on what leaves either of them.

    h1 | eth0, at most RATE out  ==========  eth0, at most RATE out | h2

Needs `tc` besides. The link has no delay of its own (some 20 us).
"""

from __future__ import annotations

import re
import subprocess

from benchmarks import hosts
from benchmarks.hosts import Hosts, ip

BURST_SECONDS, MTU, GSO_NBYTES = 150e-6, 1514, 65536


def lacking() -> str:
    """Return why no link can be emulated here, "" where one can."""
    return hosts.lacking("tc")


class Link(Hosts):
    """Two hosts joined by a link of `rate`, such as "1gbit" or "100mbit", both ways at once, while the `with` block runs."""

    def __init__(self, rate: str) -> None:
        super().__init__(2)
        self.rate = rate
        number, unit = re.fullmatch(r"(\d+)([kmg])bit", rate).groups()  # type: ignore[union-attr]
        self.burst = max(2 * MTU, int(BURST_SECONDS * int(number) * 1000 ** (1 + "kmg".index(unit)) / 8))

    def join(self) -> None:
        """Lay a pair of devices between the hosts, and limit what leaves them."""
        ip("link", "add", "eth0", "netns", self.spaces[0], "type", "veth", "peer", "name", "eth0", "netns", self.spaces[1])
        for space in self.spaces:
            # What may go at once, 150 us at the rate, is also the largest piece that the kernel hands over: it need not cut pieces up, which takes a core.
            ip("-n", space, "link", "set", "eth0", "gso_max_size", str(min(self.burst, GSO_NBYTES)))
            limit = ["root", "tbf", "rate", self.rate, "burst", str(self.burst), "latency", "50ms"]
            subprocess.run(["tc", "-n", space, "qdisc", "add", "dev", "eth0", *limit], check=True)
