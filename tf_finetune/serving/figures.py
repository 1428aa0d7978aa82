"""What /metrics tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


@dataclass(frozen=True)
class Figures:
    """The figures of one server.

    Attributes:
        registry: Holds them all.
        requests: By status.
        seconds: Of requests to /invocations, from their first byte here to the answer.
        batches: Sizes of batches.
        model_seconds: Of batches in the model.
    """

    registry: CollectorRegistry
    requests: Counter
    seconds: Histogram
    batches: Histogram
    model_seconds: Histogram

    def text(self) -> bytes:
        """Returns all in Prometheus' text format."""
        return generate_latest(self.registry)


def make(waiting: Callable[[], int], held: Callable[[], int]) -> Figures:
    """Returns figures that all are 0.

    Args:
        waiting: Gives the number of examples that wait.
        held: Gives the bytes of bodies that are in memory.
    """
    registry = CollectorRegistry()
    name = "tf_finetune_"
    gauge = Gauge(f"{name}waiting_examples", "Examples that wait for the model.", registry=registry)
    gauge.set_function(waiting)
    gauge = Gauge(f"{name}held_bytes", "Bytes of requests' bodies in memory.", registry=registry)
    gauge.set_function(held)
    return Figures(
        registry=registry,
        requests=Counter(f"{name}requests", "Requests to /invocations.", ["status"], registry=registry),
        seconds=Histogram(f"{name}request_seconds", "Seconds of a request.", buckets=SECONDS, registry=registry),
        batches=Histogram(f"{name}batch_examples", "Examples of a batch.", buckets=BATCH_SIZES, registry=registry),
        model_seconds=Histogram(f"{name}model_seconds", "Seconds of a batch.", buckets=SECONDS, registry=registry),
    )
