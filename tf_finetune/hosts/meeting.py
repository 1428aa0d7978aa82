"""How the hosts of one job find each other: the chief listens, the others call until it answers or time is up."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Iterable
from typing import Any

from tf_finetune.errors import HostError, listed
from tf_finetune.hosts import JOIN_VARIABLE, Cluster
from tf_finetune.hosts.wire import FAILED, HELLO, MOST_HELLO, Wire

log = logging.getLogger(__name__)

PROTOCOL = "tf_finetune hosts 1"
RETRY_SECONDS = 0.5
HELLO_SECONDS = 10.0  # A stranger may connect and say nothing.
DECLINING_SECONDS = 30.0  # In which the others may come, to be told that the job cannot be done.
Wires = dict[int, Wire]


def met(cluster: Cluster, silence: float) -> Wires:
    """Returns the connections of this host, by the other host's index, when all hosts are there.

    Raises:
        HostError: Some did not come within join_seconds, or they do not agree on who they are.
    """
    until = time.monotonic() + cluster.join_seconds
    return _awaited(cluster, until, silence) if cluster.index == 0 else {0: _called(cluster, until, silence)}


def decline(cluster: Cluster, problem: str) -> None:
    """Tells the other hosts the problem for which this one does not come."""
    log.info("this host cannot take part; the others are told so, for up to %g seconds", DECLINING_SECONDS)
    with contextlib.suppress(OSError, HostError):
        if cluster.index:
            wire = _connected(cluster, time.monotonic() + DECLINING_SECONDS)
            wire.send(HELLO, {"protocol": PROTOCOL, "failed": problem})
            wire.end()
        else:
            with _listening(cluster) as listener:
                _refuse(cluster, listener, [], problem)


def _awaited(cluster: Cluster, until: float, silence: float) -> Wires:
    """Returns the chief's connections to all others."""
    wires: Wires = {}
    with _listening(cluster) as listener:
        while len(wires) < len(cluster.addresses) - 1:
            try:
                wire, said = _next(listener, until)
            except TimeoutError:
                problem = _absent(cluster, wires)
                _tell(wires.values(), problem)
                raise HostError(problem) from None
            problem = str(said.get("failed") or _problem(cluster, said, wires))
            if problem:
                _refuse(cluster, listener, [*wires.values(), wire], problem)
                raise HostError(problem)
            wires[said["index"]] = wire
    for wire in wires.values():
        wire.silence = silence
        wire.send(HELLO, {"protocol": PROTOCOL})
    return dict(sorted(wires.items()))


def _next(listener: socket.socket, until: float) -> tuple[Wire, dict[str, Any]]:
    """Returns the connection to the next host that calls, and what it says of itself.

    Raises:
        TimeoutError: None has called in time.
    """
    while True:
        listener.settimeout(max(0.01, until - time.monotonic()))
        connection, _ = listener.accept()
        wire = Wire(connection, HELLO_SECONDS)
        with contextlib.suppress(OSError, ValueError):
            kind, said = wire.receive(MOST_HELLO)
            if kind == HELLO and isinstance(said, dict) and said.get("protocol") == PROTOCOL:
                return wire, said
        wire.close()  # A port scanner, or a health check.


def _refuse(cluster: Cluster, listener: socket.socket, come: list[Wire], problem: str) -> None:
    """Tells all hosts what is wrong: those that have come, and for a while those that still come."""
    _tell(come, problem)
    until = time.monotonic() + DECLINING_SECONDS
    with contextlib.suppress(TimeoutError):
        for _ in range(len(cluster.addresses) - 1 - len(come)):
            _tell([_next(listener, until)[0]], problem)


def _tell(wires: Iterable[Wire], problem: str) -> None:
    for wire in wires:
        with contextlib.suppress(OSError):
            wire.send(FAILED, problem)


def _listening(cluster: Cluster) -> socket.socket:
    """Returns the socket on which the chief listens: at its own address, or at all where the name is not its own."""
    host, port = cluster.meeting_place
    reason = ""
    for place in (host, ""):
        with contextlib.suppress(socket.gaierror):
            family = socket.getaddrinfo(place or "0.0.0.0", port, type=socket.SOCK_STREAM)[0]
            listener = socket.socket(family[0], socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(family[4])
                listener.listen(len(cluster.addresses))
                return listener
            except OSError as error:
                listener.close()
                reason = error.strerror or str(error)
    raise HostError(f"This host, {host}, cannot listen on port {port}: {reason}. Free it, or give TF_CONFIG another.")


def _called(cluster: Cluster, until: float, silence: float) -> Wire:
    """Returns another host's connection to the chief, which has all."""
    wire = _connected(cluster, until)
    # The chief's time is up first, so that it says who is absent.
    wire.silence = max(1.0, until - time.monotonic()) + HELLO_SECONDS
    try:
        addresses = list(cluster.addresses)
        wire.send(HELLO, {"protocol": PROTOCOL, "index": cluster.index, "addresses": addresses})
        kind, said = wire.receive(MOST_HELLO)
    except (OSError, ValueError) as error:
        host, port = cluster.meeting_place
        raise HostError(
            f"The first host, {host}:{port}, ended before all had come: {error}. {_advice(cluster)}"
        ) from None
    if kind == FAILED:
        raise HostError(str(said))
    wire.silence = silence
    return wire


def _connected(cluster: Cluster, until: float) -> Wire:
    """Returns a connection to the chief, when it listens."""
    host, port = cluster.meeting_place
    while True:
        left = until - time.monotonic()
        try:
            return Wire(socket.create_connection((host, port), timeout=max(0.1, min(left, HELLO_SECONDS))), left)
        except OSError as error:
            if left <= RETRY_SECONDS:
                raise HostError(
                    f"The first host, {host}, did not answer on port {port} within {cluster.join_seconds:g} seconds: "
                    f"{error.strerror or error}. {_advice(cluster)}"
                ) from None
            time.sleep(RETRY_SECONDS)


def _problem(cluster: Cluster, said: dict[str, Any], wires: Wires) -> str:
    """Returns what is wrong with what another host says of itself, or nothing."""
    index, addresses = said.get("index"), said.get("addresses")
    if addresses != list(cluster.addresses):
        theirs = listed(addresses) if isinstance(addresses, list) else addresses
        mine = listed(cluster.addresses)
        return f"Hosts disagree on who they are: {mine} here, {theirs} on another. Give all of them one list."
    if not isinstance(index, int) or not 0 < index < len(cluster.addresses) or index in wires:
        return f"Two hosts say that they are number {index} of {len(cluster.addresses)}. Give each an index of its own."
    return ""


def _absent(cluster: Cluster, wires: Wires) -> str:
    absent = [address for index, address in enumerate(cluster.addresses) if index and index not in wires]
    return (
        f"{len(absent)} of {len(cluster.addresses)} hosts did not come within {cluster.join_seconds:g} seconds: "
        f"{listed(absent)}. {_advice(cluster)}"
    )


def _advice(cluster: Cluster) -> str:
    port = cluster.meeting_place[1]
    return (
        f"Start the same command on all hosts, and let them reach each other on ports {port - 1} and {port}; "
        f"{JOIN_VARIABLE} says how long they wait."
    )
