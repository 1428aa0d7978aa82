"""The pass of examples through a frozen backbone: each once, ever, since what comes out is kept.

Dimension letters: D features, N examples, V views of each example.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_finetune import devices, features, storage
from tf_finetune.backbone import Backbone
from tf_finetune.errors import BackboneError
from tf_finetune.feature_cache import Place
from tf_finetune.feature_cache.space import SHARD_BYTES, Space
from tf_finetune.features import Progress, Source, sharing
from tf_finetune.features.digests import keys_of_views
from tf_finetune.hosts.team import ALONE, Team

log = logging.getLogger(__name__)

VERSION = 4  # Of how examples are prepared, and features computed and kept; a change makes what is cached void.
FLUSH_SECONDS = (1.0, 15.0)  # Between shards: at first, and in the end.
MOST_VIEWS = 100_003  # Of one example; a prime, so that seeds do not meet.
LARGE = 256  # Photos from which turning variables into constants, and checking 16 bits, are paid back.


@dataclasses.dataclass(frozen=True)
class Way:
    """How features are computed.

    Attributes:
        precision: "float32", "bfloat16" or "float16".
        scaled: Whether large JPEGs are decoded at a smaller scale, which is faster and not quite the same.
    """

    precision: str = "float32"
    scaled: bool = False


EXACT = Way()


class SpoiltError(Exception):
    """A way that is not exact gave features that are no numbers."""


class Passes:
    """The passes through one frozen backbone: made ready when first needed, and counted.

    Args:
        backbone: The backbone, with the weights of its SavedModel.
        size: D.
        image_size: Height and width in pixels, for image backbones that accept any.
        strategy: The replicas that compute, of this host.
        place: Where features are kept.
        about: What features depend on besides backbone, device and way: the preparation of examples.
        name: What the user called the backbone.
        as_constants: Whether the backbone's variables become constants, which takes a second or more, and then is
            faster by a quarter; 16 bits need it to be faster at all.
        preparing: Gives the context in which a pass is made ready, for a stopwatch.
        progress: Told the stage, the examples done and all.
        team: The hosts that share the work; all call `features` alike, and the chief alone has all of what it returns.
    """

    def __init__(
        self,
        backbone: Backbone,
        size: int,
        image_size: int | None,
        strategy: tf.distribute.Strategy,
        place: Place,
        about: Mapping[str, Any],
        name: str,
        as_constants: bool = False,
        preparing: Callable[[], Any] = contextlib.nullcontext,
        progress: Progress | None = None,
        team: Team = ALONE,
    ) -> None:
        self.team = team
        self.size, self.strategy, self.place, self.name = size, strategy, place, name
        self.preparing, self.progress, self.image_size = preparing, progress, image_size
        self.as_constants = as_constants
        self._original = backbone
        self._about = dict(about)
        self._forward: Any = None
        self._compiled: set[str] = set()
        self._spaces: dict[str, Space] = {}
        self._held: dict[tuple[str, bytes], np.ndarray] = {}
        self.sent: set[bytes] = set()  # Digests of the examples that were sent through the backbone, and,
        self.checked: dict[Way, set[bytes]] = {}  # by way, of those that a check sent.
        self.reused = 0

    def features(self, examples: Source, way: Way = EXACT, augmentation: Mapping[str, Any] | None = None) -> Source:
        """Returns the examples read as their features: those that are known, and the others by one pass.

        Args:
            examples: With digests; `views` copies of each, distorted by `load`, where there is an augmentation.
            way: How features are computed.
            augmentation: What the distortions depend on: `random_seed`, and the settings.

        Raises:
            SpoiltError: Some features are NaN or infinite, and may be fine when they are computed exactly.
            BackboneError: They are so even then.
        """
        rows, computed, spoilt = self._rows(examples, way, augmentation, together=True)
        if spoilt and way != EXACT:
            self.checked.setdefault(way, set()).update(computed)  # It was a check after all: all must be sent again.
            raise SpoiltError(f"{spoilt:,} of {len(rows):,} examples give NaN or infinite features in {way.precision}")
        self.sent |= computed
        if spoilt:
            raise BackboneError(
                f"backbone {self._original.saved_model} gives NaN or infinite features for {spoilt:,} of {len(rows):,} "
                "examples. Check pixel_range, or choose another backbone."
            )
        return features.of_features(examples, rows)

    def check(self, examples: Source, way: Way) -> np.ndarray:
        """Returns float32 [N, D] of a few examples, which are remembered, so that `features` need not repeat them."""
        rows, computed, _ = self._rows(examples, way, None)
        self.checked.setdefault(way, set()).update(computed)
        space = self.space(way)
        self._held.update(((space.about, key), row) for key, row in zip(examples.digests, rows, strict=True))
        return rows

    def space(self, way: Way, augmentation: Mapping[str, Any] | None = None) -> Space:
        """Returns where the features of a way are kept."""
        about = {**self._about, **dataclasses.asdict(way), "augmentation": dict(augmentation) if augmentation else None}
        about["device"] = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
        about["backbone"] = self.digests
        about["version"] = [VERSION, *tf.__version__.split(".")[:2]]
        space = Space(self.place, about, self.name)
        space = self._spaces.setdefault(space.about, space)
        space.writable &= all(other.writable for other in self._spaces.values())  # One warning is enough.
        return space

    @functools.cached_property
    def digests(self) -> list[str | None]:
        """The SHA-256 of the backbone's files, and of its preprocessor's, if it has one."""
        folders = (self._original.saved_model, self._original.preprocessor)
        return [storage.content_of(Path(folder)) if folder else None for folder in folders]

    def calls(self, chosen: Way | None) -> tuple[int, int]:
        """Returns how many distinct examples were sent, for training by a way and for evaluation; and the extra passes
        that checking it took. Without a way, all that a check sent was extra.
        """
        used = self.sent | (self.checked.get(chosen, set()) if chosen else set())
        return len(used), sum(len(sent) for way, sent in self.checked.items() if way != chosen)

    def _rows(
        self, examples: Source, way: Way, augmentation: Mapping[str, Any] | None, together: bool = False
    ) -> tuple[np.ndarray, set[bytes], int]:
        """Returns features, float32 [V x N, D], the digests of those computed now, and how many are no numbers.

        What several hosts compute together is whole on the chief alone.
        """
        space = self.space(way, augmentation)
        keys = keys_of_views(examples) if augmentation else list(examples.digests)
        rows, known = space.read(keys, self.size)
        self.reused += int(known.sum())
        for place, key in enumerate(keys):
            row = self._held.get((space.about, key))
            if row is not None:
                self.reused -= int(known[place])  # It was computed a moment ago, by this job.
                rows[place], known[place] = row, True
        compute = functools.partial(self._compute, examples, way, augmentation, keys, rows)
        if together and self.team.count > 1:
            found = sharing.computed(self.team, compute, keys, examples.lengths, rows, known)
            self.reused += found.reused
            sharing.keep(space, keys, rows, found.received)  # So that a next job on the chief alone finds it.
            new, spoilt = found.new, found.spoilt
        else:
            new, spoilt = np.flatnonzero(~known), 0 if known.all() else compute(known)
        return rows, {examples.digests[place % len(examples)] for place in new}, spoilt

    def _compute(
        self,
        examples: Source,
        way: Way,
        augmentation: Mapping[str, Any] | None,
        keys: list[bytes],
        rows: np.ndarray,
        known: np.ndarray,
    ) -> int:
        """Fills in the rows that are not known, each distinct example once, and keeps them; counts the spoilt."""
        places: dict[bytes, list[int]] = {}
        for place in np.flatnonzero(~known):
            places.setdefault(keys[place], []).append(int(place))
        # By length, so that short texts are not padded to the longest; by content, so that a pass that was killed is
        # taken up in the same batches.
        lengths = examples.lengths if examples.lengths is not None else np.zeros(len(examples), np.int64)
        order = sorted(places, key=lambda key: (lengths[places[key][0] % len(examples)], key))
        forward = self._ready(way.precision)
        indices = np.array([places[key][0] for key in order])
        keeper = _Keeper(self.space(way, augmentation))
        done, spoilt = 0, 0
        with devices.rewriting(way.precision):
            seeds = _seeds(examples, indices, augmentation)
            order_of_examples = indices % len(examples)
            batches = features.batches(forward, examples.load, order_of_examples, seeds, self.strategy, len(set(keys)))
            for batch in batches:
                batch_keys = order[done : done + len(batch)]
                for key, row in zip(batch_keys, batch, strict=True):
                    rows[places[key]] = row
                fine = np.isfinite(batch).all(axis=1)
                spoilt += sum(len(places[key]) for key, good in zip(batch_keys, fine, strict=True) if not good)
                keeper.add([key for key, good in zip(batch_keys, fine, strict=True) if good], batch[fine])
                done += len(batch)
                if self.progress:
                    self.progress("features", done, len(order))
        keeper.flush()
        return spoilt

    def _ready(self, precision: str) -> Any:
        """Returns the forward function, made when first needed, and compiled for a precision by a trial."""
        with self.preparing():
            if self._forward is None:
                self._forward = self._make(precision)
            if precision not in self._compiled:
                self._try(self._forward, precision)
        return self._forward

    def _make(self, precision: str) -> Any:
        # Variables that are spread over replicas cannot be read here.
        is_one = self.strategy.num_replicas_in_sync == 1
        backbone = self._original if is_one else self._original.frozen_copy()
        if self.as_constants:
            try:
                forward = backbone.forward(self.image_size, as_constants=True)
                self._try(forward, precision)
                return forward
            except Exception as error:  # Anything: the graph cannot be converted, or does not run as converted.
                reason = (str(error).strip().split("\n") or [""])[0][:200]
                log.info("the backbone cannot be turned into constants, and runs as it is: %s", reason)
        return backbone.forward(self.image_size)

    def _try(self, forward: Any, precision: str) -> None:
        with devices.rewriting(precision):
            forward(self._original.blank(self.image_size))
        self._compiled.add(precision)


class _Keeper:
    """Gathers rows and writes a shard now and then: soon at first, so that little is lost when the job is killed."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.keys: list[bytes] = []
        self.rows: list[np.ndarray] = []
        self.wait, self.longest = FLUSH_SECONDS
        self.since = time.monotonic()

    def add(self, keys: list[bytes], rows: np.ndarray) -> None:
        self.keys += keys
        self.rows.append(rows)
        waited = time.monotonic() - self.since
        if waited >= self.wait or sum(part.nbytes for part in self.rows) >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        if self.keys:
            self.space.write(self.keys, np.concatenate(self.rows))
        self.keys, self.rows = [], []
        self.wait = min(2 * self.wait, self.longest)
        self.since = time.monotonic()


def _seeds(examples: Source, indices: np.ndarray, augmentation: Mapping[str, Any] | None) -> np.ndarray:
    """Returns int32 [M, 2]: the seed of each view's distortion, from the job's seed, the view and the example's key."""
    views, keys = indices // len(examples), examples.keys[indices % len(examples)]
    seed = augmentation["random_seed"] % 2**31 if augmentation else 0
    return np.stack([(seed * MOST_VIEWS + views) % 2**31, keys % 2**31], axis=1).astype(np.int32)
