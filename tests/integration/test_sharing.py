"""Several hosts compute features together, here as threads of one process: nothing is lost, nothing computed twice."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests import builders
from tests.unit.test_hosts import teams, together
from tf_finetune import backbone as backbones
from tf_finetune.features import sharing
from tf_finetune.features.frozen import Way
from tf_finetune.training import steps


def source_of(count: int, seed: int = 0):
    photos, labels = builders.coloured_arrays(count, seed=seed)
    return builders.array_source(photos, labels)


def passes_of(hosts_of, body, folders):
    return [builders.make_passes(body, folder, team=one) for one, folder in zip(hosts_of, folders, strict=True)]


def computed_by(passes) -> list[int]:
    """Returns how many examples each host sent through the backbone itself."""
    return [one.computed_here for one in passes]


@pytest.fixture(autouse=True)
def count_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    from tf_finetune.features import frozen

    compute = frozen.Passes._compute

    def counted(self, examples, way, augmentation, keys, rows, known):
        self.computed_here = getattr(self, "computed_here", 0) + int((~known).sum())
        return compute(self, examples, way, augmentation, keys, rows, known)

    monkeypatch.setattr(frozen.Passes, "_compute", counted)
    monkeypatch.setattr(frozen.Passes, "computed_here", 0, raising=False)


@pytest.mark.parametrize(("count", "shares"), [(2, [1, 1, 0]), (10, [4, 3, 3]), (40, [14, 13, 13])])
def test_hosts_share_a_pass_evenly_and_the_first_has_the_rows_of_one_host(convolution_backbone, count, shares):
    body = backbones.Backbone(convolution_backbone)
    source = source_of(count)
    expected = builders.make_passes(body).features(source).rows
    hosts_of, ended, _ = teams(3)
    passes = passes_of(hosts_of, body, [None] * 3)
    found = together(*(lambda one=one: one.features(source).rows for one in passes))
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
    assert computed_by(passes) == shares
    assert [one.calls(Way())[0] for one in passes] == [count] * 3
    assert ended == [[], [], []]


def test_equal_examples_are_computed_once_over_all_hosts(convolution_backbone):
    body = backbones.Backbone(convolution_backbone)
    source = source_of(12)
    twice = dataclasses.replace(source, digests=[*source.digests[:6], *source.digests[:6]])
    expected = builders.make_passes(body).features(twice).rows
    passes = passes_of(teams(2)[0], body, [None] * 2)
    found = together(*(lambda one=one: one.features(twice).rows for one in passes))
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
    assert computed_by(passes) == [3, 3]


def test_what_any_host_has_kept_is_not_computed_again(convolution_backbone, tmp_path):
    body = backbones.Backbone(convolution_backbone)
    source = source_of(12)
    expected = builders.make_passes(body).features(source).rows
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for folder, places in zip(folders, (range(0, 4), range(2, 6), range(5, 9)), strict=True):
        part = builders.array_source(*(half[list(places)] for half in builders.coloured_arrays(12)))
        builders.make_passes(body, folder).features(part)
    passes = passes_of(teams(3)[0], body, folders)
    found = together(*(lambda one=one: one.features(source).rows for one in passes))
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
    assert computed_by(passes) == [1, 1, 1]
    assert passes[0].reused == 9

    again = builders.make_passes(body, folders[0])  # The first has kept all, so that one host goes on from there.
    assert again.features(source).rows.tobytes() == found[0].tobytes()
    assert (again.reused, computed_by([again])) == (12, [0])


def test_a_folder_that_all_hosts_share_holds_each_feature_once(convolution_backbone, tmp_path):
    body = backbones.Backbone(convolution_backbone)
    source = source_of(12)
    passes = passes_of(teams(3)[0], body, [tmp_path] * 3)
    together(*(lambda one=one: one.features(source).rows for one in passes))
    again = builders.make_passes(body, tmp_path)
    again.features(source)
    assert again.reused == 12
    from tf_finetune import feature_cache

    assert [space["examples"] for space in feature_cache.listing(feature_cache.Place(tmp_path))] == [12]


def test_an_example_that_one_host_cannot_read_is_an_error_of_all(convolution_backbone):
    body = backbones.Backbone(convolution_backbone)
    source = source_of(12)

    def load(index, seed):
        with tf.control_dependencies([tf.debugging.assert_none_equal(index, tf.constant(7, tf.int64))]):
            return source.load(index, seed)

    passes = passes_of(teams(3)[0], body, [None] * 3)
    broken = dataclasses.replace(source, load=load)
    failed = together(*(lambda one=one: one.features(broken) for one in passes))
    assert [type(error) for error in failed] == [tf.errors.InvalidArgumentError] * 3
    found = together(*(lambda one=one: one.features(source).rows for one in passes))  # They are still in step.
    assert np.isfinite(found[0]).all()


def test_what_the_first_host_cannot_decide_is_an_error_of_all():
    def fail():
        raise tf.errors.InvalidArgumentError(None, None, "a broken photo")

    failed = together(*(lambda one=one: sharing.decided(one, "way", fail) for one in teams(3)[0]))
    assert [type(error) for error in failed] == [tf.errors.InvalidArgumentError] * 3
    assert all("a broken photo" in str(error) for error in failed)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_answers_of_all_hosts_come_in_the_order_of_the_examples(one, count):
    source = source_of(count)

    def double(inputs: tf.Tensor) -> tf.Tensor:
        return 2 * tf.reduce_mean(inputs, axis=[1, 2])

    given = tf.function(double, autograph=False)
    expected = sharing.outputs(given, source, one, teams(1)[0][0])
    found = together(*(lambda host=host: sharing.outputs(given, source, one, host) for host in teams(3)[0]))
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


@pytest.mark.parametrize(("batch_size", "first"), [(8, 0), (5, 2), (3, 1)])
def test_the_batches_of_all_hosts_are_those_of_one_host_with_as_many_devices(batch_size, first):
    source = source_of(11)
    plan = steps.Plan(examples=11, batch_size=batch_size, replicas=4, epochs=2, seed=3)
    whole = [tuple(part.numpy() for part in batch) for batch in steps.stream(source, plan, first)]
    assert len(whole) == 4 * (plan.steps - first)
    streams = [iter(steps.stream(source, plan, first, host, hosts=2)) for host in range(2)]
    for place, expected in enumerate(whole):
        found = next(streams[place % 4 // 2])
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one, other.numpy())
