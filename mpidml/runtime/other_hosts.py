"""Ask other hosts how their ranks stand, by datagrams between the watchdogs, while this rank waits for long.

    rank 0 on host a   -- ? (job, call) -->   any rank of host b        a host is asked through its ranks in turn: one that is stopped
                       <-- its table -----                              does not answer, the next one does
    no answer from any of them                                          a host that has answered before is silent

Nothing is sent while nobody waits. At most 16 hosts are asked at a time, in turn.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

from mpidml.core.current_wait import Call
from mpidml.runtime.neighbours import SILENT, UNKNOWN, Look

AT_ONCE = 16
N_LOST = 4
"""So many questions in a row without an answer are no accident of the network."""
MOST_NBYTES = 60_000
SIOCGIFADDR = 0x8915
Address = tuple[str, int]


class Host:
    """Another host: its ranks, where each of them can be reached, and what it said last."""

    def __init__(self, name: str, ranks: list[int], addresses: list[list[Address]]) -> None:
        self.name, self.ranks, self.addresses = name, ranks, addresses
        self.n_asked = self.n_open = 0  # questions, and those since the last answer
        self.heard_at = 0.0
        self.said: list[Look] = []

    def looks(self, now: float) -> list[Look]:
        """Return what is known of its ranks."""
        if self.heard_at and self.n_open < N_LOST:
            return self.said
        if not self.heard_at:
            return [Look(rank, UNKNOWN, None, f"nothing is known: no answer from host {self.name} yet") for rank in self.ranks]
        silent = now - self.heard_at
        return [look._replace(state=SILENT, text=f"no answer from its host, {self.name}; when seen last, it {look.text}", silent_seconds=silent) for look in self.said]


class OtherHosts:
    """The socket of this rank, of the hosts that the ranks of the job `comm` lie on; `token` is the job's own (Collective on comm)."""

    def __init__(self, comm: Any, leader: int, token: str) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("", 0))
        self.socket.setblocking(False)
        self.token, self.turn = token, 0
        port = self.socket.getsockname()[1]
        every = comm.allgather((leader, socket.gethostname(), [(address, port) for address in own_addresses()]))
        self.hosts = [
            Host(every[of][1], ranks, [every[rank][2] for rank in ranks])
            for of in sorted({each[0] for each in every} - {leader})
            for ranks in [[rank for rank, each in enumerate(every) if each[0] == of]]
        ]

    def ask(self, call: Call | None) -> None:
        """Send a question to some of the hosts."""
        packet = self._packed({"ask": [call.key, call.number] if call is not None else None})
        for _ in range(min(AT_ONCE, len(self.hosts))):
            host = self.hosts[self.turn % len(self.hosts)]
            self.turn += 1
            for address in host.addresses[host.n_asked % len(host.ranks)]:
                self._send(packet, address)
            host.n_asked, host.n_open = host.n_asked + 1, host.n_open + 1

    def take(self, now: float, told: Callable[[Call | None], Sequence[Look]]) -> bool:
        """Answer questions with what is `told` here, and note answers; return whether anything came."""
        came = False
        while True:
            try:
                data, sender = self.socket.recvfrom(65536)
            except OSError:  # nothing more; or an answer of the network that a rank could not be reached
                return came
            came = True
            with contextlib.suppress(Exception):  # anybody may send anything: what is none of ours is dropped
                packet = json.loads(data)
                if packet.pop("job") != self.token:
                    continue
                if "ask" in packet:
                    call = Call(int(packet["ask"][0]), int(packet["ask"][1]), ()) if packet["ask"] else None
                    self._send(self._packed({"say": _fitting(told(call))}), sender)
                    continue
                looks = [Look(*each) for each in packet["say"]]
                for host in self.hosts:
                    if looks and looks[0].rank in host.ranks:
                        host.heard_at, host.said, host.n_open = now, looks, 0

    def looks(self, now: float) -> list[Look]:
        """Return what is known of the ranks of all other hosts."""
        return [look for host in self.hosts for look in host.looks(now)]

    def _packed(self, what: dict[str, Any]) -> bytes:
        return json.dumps({"job": self.token, **what}).encode()

    def _send(self, packet: bytes, address: Address) -> None:
        with contextlib.suppress(OSError):
            self.socket.sendto(packet, tuple(address))


def _fitting(looks: Sequence[Look]) -> list[Look]:
    """Shorten texts so that all fit one datagram."""
    room = MOST_NBYTES // max(1, len(looks)) - 60
    return [look._replace(text=look.text[: max(0, room)]) for look in looks]


def own_addresses() -> list[str]:
    """Return this host's IPv4 addresses, the loopback's only where there is no other."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as of:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                request = fcntl.ioctl(of.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found.append(socket.inet_ntoa(request[20:24]))
    return [address for address in found if not address.startswith("127.")] or found
