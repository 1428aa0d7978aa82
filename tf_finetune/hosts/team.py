"""What the hosts of one job tell each other, and that they notice at once when one of them is lost.

Each host holds one TCP connection to the chief, over which it also shows every few seconds that it lives. All hosts run
the same program; wherever a clock, a signal, a local file or a measured time could lead them different ways, the
chief's answer counts for all (`told`), so that none waits for another that went elsewhere.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from tf_finetune.errors import FinetuneError, HostError, listed
from tf_finetune.hosts import Cluster, meeting
from tf_finetune.hosts.wire import BEAT, BYE, FAILED, STOP, VALUE, Wire

log = logging.getLogger(__name__)

BEAT_SECONDS, SILENCE_SECONDS = 5.0, 40.0
PARTING_SECONDS = 10.0  # For the others to end too.
DOUBT_SECONDS = 3.0  # In which a failure may turn out to be another host's.
CURE = "Start the job again on all hosts: it goes on from what checkpoints and feature cache hold."
Ended = Callable[[str], None]


class Team:
    """The hosts of one job, seen by one of them.

    Args:
        names: Of all hosts; the first is the chief.
        index: Of this one.
        wires: To each other host that this one is connected with, by index: on the chief all, else the chief alone.
        ended: Given the one message when another host is lost or has failed; it is to end the process. If it returns,
            whoever waits for that host gets a HostError.
        beat: Seconds between signs of life.
    """

    def __init__(
        self,
        names: Sequence[str] = ("localhost",),
        index: int = 0,
        wires: Mapping[int, Wire] | None = None,
        ended: Ended = lambda message: None,
        beat: float = BEAT_SECONDS,
    ) -> None:
        self.names, self.index, self.asked = tuple(names), index, ""
        self._wires, self._ended = dict(wires or {}), ended
        self._values: dict[int, queue.SimpleQueue[Any]] = {other: queue.SimpleQueue() for other in self._wires}
        self._parted: dict[int, threading.Event] = {other: threading.Event() for other in self._wires}
        self._over, self._told_end = threading.Event(), threading.Event()
        self._failure = ""
        self._failing = threading.Lock()
        for other in self._wires:
            threading.Thread(target=self._listen, args=(other,), daemon=True).start()
        if self._wires:
            threading.Thread(target=self._show_life, args=(beat,), daemon=True).start()

    @property
    def count(self) -> int:
        """The number of hosts."""
        return len(self.names)

    @property
    def is_chief(self) -> bool:
        """Whether this host decides and writes."""
        return self.index == 0

    def told(self, topic: str, value: Any = None) -> Any:
        """Returns the chief's value, on all hosts; all must ask for the same topics in the same order.

        Args:
            topic: Names the value.
            value: On the chief; any other host's is not looked at. What JSON can hold, and arrays.
        """
        if not self.is_chief:
            return self._received(0, topic)
        for other in self._wires:
            self._send(other, VALUE, [topic, value])
        return value

    def collected(self, topic: str, value: Any) -> list[Any]:
        """Returns each host's value on the chief, and nothing on the others, which do not wait."""
        if not self.is_chief:
            self._send(0, VALUE, [topic, value])
            return []
        return [value, *(self._received(other, topic) for other in self._wires)]

    def awaited(self, topic: str, stop: Callable[[], str]) -> Any:
        """Returns the chief's value, as `told` does on other hosts, for which it may take hours.

        Args:
            topic: Names the value.
            stop: Gives a reason to end early, which the chief is told of, or nothing.
        """
        return self._received(0, topic, stop)

    def ask_to_stop(self, reason: str) -> None:
        """Has the chief know that a training is to end early."""
        if reason and not self.asked:
            self.asked = f"{self.names[self.index]}: {reason}"
            if not self.is_chief:
                self._send(0, STOP, self.asked)

    def check_same(self, what: str, mine: Mapping[str, Any], cure: str) -> None:
        """Compares facts that must be the same on all hosts.

        Args:
            what: Names them in the message.
            mine: This host's, by name; what JSON can hold.
            cure: What to do where they are not.

        Raises:
            HostError: On all hosts, where they are not.
        """
        facts = self.collected(what, mine)
        problem = self.told(f"whether {what} are the same", _difference(self.names, facts, what, cure))
        if problem:
            raise HostError(problem)

    def part(self) -> None:
        """Ends the connections, when all have come to the end."""
        self._over.set()
        for other in self._wires:
            with contextlib.suppress(OSError):
                self._wires[other].send(BYE)
        until = time.monotonic() + PARTING_SECONDS
        for event in self._parted.values():
            event.wait(max(0.0, until - time.monotonic()))
        for wire in self._wires.values():
            wire.end()

    def fail(self, message: str) -> None:
        """Has the other hosts end too, with this message, as this one has failed."""
        if self._failing.acquire(blocking=False):  # Else the failure came from elsewhere, and they know.
            self._tell_all(message)
        self._over.set()

    def _tell_all(self, message: str, but: int | None = None) -> None:
        for other, wire in self._wires.items():
            if other != but:
                with contextlib.suppress(OSError):
                    wire.send(FAILED, message)

    def _send(self, other: int, kind: bytes, value: Any) -> None:
        try:
            self._wires[other].send(kind, value)
        except OSError as error:
            self._lose(other, str(error))
            self._raise()

    def _received(self, other: int, topic: str, stop: Callable[[], str] | None = None) -> Any:
        while True:
            try:
                value = self._values[other].get(timeout=1.0 if stop else None)
                break
            except queue.Empty:
                self.ask_to_stop(stop() if stop else "")
        if value is None:
            self._values[other].put(None)
            self._raise()
        if value[0] != topic:  # Our own mistake; an exchange of other values would go unnoticed.
            raise AssertionError(f"{self.names[other]} sent {value[0]!r} where {topic!r} was expected")
        return value[1]

    def _raise(self) -> NoReturn:
        self._told_end.wait(DOUBT_SECONDS)
        raise HostError(self._failure or "another host has failed")

    def _listen(self, other: int) -> None:
        try:
            while True:
                kind, value = self._wires[other].receive()
                if kind == VALUE:
                    self._values[other].put(value)
                elif kind == STOP:
                    self.asked = self.asked or str(value)
                elif kind == FAILED:
                    self._finish(str(value), other)
                elif kind == BYE:
                    self._parted[other].set()
        except (OSError, ValueError) as error:
            if not self._parted[other].is_set():
                self._lose(other, error.strerror if isinstance(error, OSError) and error.strerror else str(error))
        finally:
            self._parted[other].set()
            self._values[other].put(None)

    def _lose(self, other: int, reason: str) -> None:
        self._finish(f"{self.names[other]}, host {other + 1} of {self.count}, was lost: {reason}. {CURE}", other)

    def _finish(self, message: str, source: int) -> None:
        """Ends this host, and on the chief the others, because of one of them."""
        if self._over.is_set() or not self._failing.acquire(blocking=False):
            return
        self._failure = message
        self._tell_all(message, source)
        self._ended(message)  # First, so that whoever waits does not say the same in another thread.
        self._told_end.set()
        for waiting in self._values.values():
            waiting.put(None)

    def _show_life(self, beat: float) -> None:
        while not self._over.wait(beat):
            for wire in self._wires.values():
                with contextlib.suppress(OSError):  # Whoever listens there notices.
                    wire.send(BEAT)


ALONE = Team()  # For what needs none of a job's own; nobody asks it to stop.


@contextlib.contextmanager
def joined(
    cluster: Cluster | None,
    ended: Ended,
    about: Mapping[str, Any],
    silence: float = SILENCE_SECONDS,
    beat: float = BEAT_SECONDS,
) -> Iterator[Team]:
    """Gives the team of a job; it comes to its end together, or fails together.

    Args:
        cluster: The hosts; None for one.
        ended: As `Team` has it.
        about: Facts that must be the same on all hosts: names to what JSON can hold.
        silence: Seconds without a sign of life after which a host is lost.
        beat: Seconds between signs of life.

    Raises:
        HostError: Some host did not come, or they were started with different settings.
    """
    if cluster is None:
        yield Team()  # Its own: a request to stop is remembered, and is for this job alone.
        return
    wires = meeting.met(cluster, silence)
    log.info("%d hosts have met: %s; the first decides and writes", len(cluster.names), listed(cluster.names))
    team = Team(cluster.names, cluster.index, wires, ended, beat)
    try:
        team.check_same("settings and versions", about, "Start the same command with the same version on all hosts")
        yield team
    except HostError as error:
        team.fail(str(error))
        raise
    except FinetuneError as error:
        team.fail(f"{team.names[team.index]} failed: {error}")
        raise
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        time.sleep(0 if interrupted else DOUBT_SECONDS)  # A host that is lost breaks what waits for it.
        reason = "it was interrupted" if interrupted else f"{type(error).__name__}: {error}".splitlines()[0]
        team.fail(f"{team.names[team.index]} failed: {reason}. {CURE}")
        raise
    team.part()


def _difference(names: Sequence[str], facts: Sequence[Mapping[str, Any]], what: str, cure: str) -> str:
    """Returns the message about the first host whose facts differ from the chief's, or nothing."""
    for name, theirs in zip(names, facts, strict=False):
        wrong = [key for key in sorted(facts[0].keys() | theirs.keys()) if theirs.get(key) != facts[0].get(key)]
        if wrong:
            said = listed(f"{key} is {facts[0].get(key)} on {names[0]}, {theirs.get(key)} on {name}" for key in wrong)
            return f"Expected the same {what} on all hosts. Received: {said}. {cure}."
    return ""
