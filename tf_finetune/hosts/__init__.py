"""Several hosts that do one job together: who they are. `team` has what they tell each other."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tf_finetune.errors import FinetuneError, UsageError, listed

PORT = 8890  # As SageMaker's TensorFlow toolkit has it.
JOIN_SECONDS = 600.0  # Hosts of one job start some minutes apart.
JOIN_VARIABLE, PORT_VARIABLE = "TF_FINETUNE_JOIN_SECONDS", "TF_FINETUNE_PORT"
EXPECTED = 'Expected {"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}}'


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The hosts of one job, of which the first is the chief: it decides, and it alone writes results.

    Attributes:
        addresses: HOST:PORT of each host, where TensorFlow listens; on the chief's next port the hosts find each other.
        index: Of this host.
        join_seconds: How long the hosts wait for each other at the start.
    """

    addresses: tuple[str, ...]
    index: int
    join_seconds: float = JOIN_SECONDS

    @property
    def names(self) -> tuple[str, ...]:
        """What messages call the hosts: without their ports, unless two hosts have one name."""
        short = tuple(address.rpartition(":")[0] for address in self.addresses)
        return short if len(set(short)) == len(short) else self.addresses

    @property
    def meeting_place(self) -> tuple[str, int]:
        """The chief's host and the port next to TensorFlow's, where the hosts meet."""
        host, _, port = self.addresses[0].rpartition(":")
        return host.strip("[]"), int(port) + 1


def cluster_of(
    environ: Mapping[str, str], hosts: Sequence[str], current: str, channels: Mapping[str, Any]
) -> Cluster | None:
    """Returns the hosts of a job, from TF_CONFIG or else from SageMaker's list; None where there is but one.

    Args:
        environ: May have TF_CONFIG, JOIN_VARIABLE and, for hosts that SageMaker names, PORT_VARIABLE.
        hosts: The names of all hosts, as SageMaker has them.
        current: The name of this one.
        channels: What SageMaker's inputdataconfig.json says of each channel.

    Raises:
        UsageError: TF_CONFIG is not what it should be, this host is none of the hosts, or they have not all the data.
    """
    given = environ.get("TF_CONFIG", "").strip()
    found = _from_tf_config(given) if given else None
    if found is None and len(hosts) > 1:
        if current not in hosts:
            raise UsageError(f"SM_CURRENT_HOST: expected one of SM_HOSTS, {listed(hosts)}; received {current}.")
        port = environ.get(PORT_VARIABLE) or str(PORT)
        if not _is_port(port):
            raise UsageError(f"{PORT_VARIABLE}: expected a port from 1 to 65534; received {port!r}.")
        found = Cluster(tuple(f"{host}:{port}" for host in hosts), list(hosts).index(current))
    if found is None or len(found.addresses) < 2:
        return None
    for name, about in channels.items():
        if isinstance(about, Mapping) and about.get("S3DistributionType") == "ShardedByS3Key":
            raise UsageError(
                f"channel {name}: several hosts need S3DataDistributionType=FullyReplicated; received ShardedByS3Key. "
                "Which examples are for validation is decided by the content of all, so each host must have all; what "
                "is computed from them is shared out anyway."
            )
    return dataclasses.replace(found, join_seconds=_join_seconds(environ))


@contextlib.contextmanager
def declining(cluster: Cluster | None) -> Iterator[None]:
    """Has the other hosts know why this one does not come, if the block fails, so that they need not wait for it.

    Args:
        cluster: The hosts; None for one.
    """
    try:
        yield
    except FinetuneError as error:
        if cluster is not None:
            from tf_finetune.hosts import meeting  # Only here, for it needs NumPy.

            meeting.decline(cluster, f"{cluster.names[cluster.index]} failed: {error}")
        raise


def _from_tf_config(text: str) -> Cluster | None:
    """Returns the hosts that TF_CONFIG names, or None where it names none."""
    try:
        given = json.loads(text)
        task, jobs = given.get("task") or {}, given.get("cluster") or {}
        kind, index = task.get("type", "worker"), int(task.get("index", 0))
        jobs = {job: _addresses(job, places) for job, places in jobs.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"TF_CONFIG: {EXPECTED}; {error}. Received: {text[:200]}") from None
    strange = sorted(({kind} | set(jobs)) - {"chief", "worker"})
    if strange:
        raise UsageError(
            f"TF_CONFIG: only hosts of type worker (or chief, the first of them) can train here; received "
            f"{listed(strange)}. Name every host as a worker."
        )
    chiefs, workers = jobs.get("chief", ()), jobs.get("worker", ())
    if not chiefs and not workers:
        return None
    of_kind = chiefs if kind == "chief" else workers
    if len(chiefs) > 1 or not 0 <= index < len(of_kind):
        raise UsageError(
            f"TF_CONFIG: this host is {kind} {index}, but there are {len(chiefs)} chief and {len(workers)} worker "
            f"addresses. {EXPECTED}, at most one chief, and an index of 0 or more that is less than their number."
        )
    places = (*chiefs, *workers)
    if len(set(places)) < len(places):
        raise UsageError(f"TF_CONFIG: expected another address for each host; received {listed(places)}.")
    return Cluster(places, index if kind == "chief" else index + len(chiefs))


def _addresses(job: str, places: Any) -> tuple[str, ...]:
    """Returns the addresses of hosts, HOST:PORT each.

    Raises:
        ValueError: One is none.
    """
    if not isinstance(places, list):
        raise ValueError(f"{job} should be a list of addresses")
    for place in places:
        host, _, port = str(place).rpartition(":")
        if not host or not _is_port(port):
            raise ValueError(f"{place!r} is no HOST:PORT with a port from 1 to 65534")
    return tuple(map(str, places))


def _is_port(text: str) -> bool:
    """Returns whether a text is a port that has a next one."""
    return text.isdecimal() and 0 < int(text) < 65535


def _join_seconds(environ: Mapping[str, str]) -> float:
    given = environ.get(JOIN_VARIABLE) or str(JOIN_SECONDS)
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e6:
        raise UsageError(f"{JOIN_VARIABLE}: expected a number of seconds above 0; received {given!r}.")
    return seconds
