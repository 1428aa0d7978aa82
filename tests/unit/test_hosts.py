"""Who the hosts of a job are, how they find each other, and what they tell each other."""

from __future__ import annotations

import dataclasses
import functools
import json
import socket
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from tests import several
from tf_finetune import environment, hosts
from tf_finetune.errors import DataError, HostError, UsageError
from tf_finetune.hosts import Cluster, meeting, team
from tf_finetune.hosts.wire import HELLO, Wire

WORKERS = ["a:1000", "b:1000", "c:1000"]


def config(jobs: dict, kind: str = "worker", index: object = 0) -> dict[str, str]:
    return {"TF_CONFIG": json.dumps({"cluster": jobs, "task": {"type": kind, "index": index}, "environment": "cloud"})}


@pytest.mark.parametrize(
    ("environ", "names", "current", "addresses", "index"),
    [
        (config({"worker": WORKERS}, index=2), ["a"], "a", WORKERS, 2),
        (config({"chief": ["z:9"], "worker": WORKERS}, index=1), ["a"], "a", ["z:9", *WORKERS], 2),
        (config({"chief": ["z:9"], "worker": WORKERS}, "chief"), ["a"], "a", ["z:9", *WORKERS], 0),
        (config({"worker": ["[::1]:5", "a:5"]}), ["a", "b"], "b", ["[::1]:5", "a:5"], 0),
        ({}, ["algo-1", "algo-2"], "algo-2", ["algo-1:8890", "algo-2:8890"], 1),
        ({"TF_FINETUNE_PORT": "7000"}, ["a", "b"], "a", ["a:7000", "b:7000"], 0),
        ({"TF_CONFIG": "{}"}, ["algo-1", "algo-2"], "algo-1", ["algo-1:8890", "algo-2:8890"], 0),
    ],
)
def test_tf_config_names_the_hosts_or_else_sagemaker_does(environ, names, current, addresses, index):
    found = hosts.cluster_of(environ, names, current, {})
    assert found == Cluster(tuple(addresses), index)


@pytest.mark.parametrize("environ", [{}, config({"worker": ["a:1"]}), config({"chief": ["a:1"]}, "chief")])
def test_one_host_is_no_cluster(environ):
    assert hosts.cluster_of(environ, ["localhost"], "localhost", {}) is None


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"TF_CONFIG": "{"}, "TF_CONFIG: Expected"),
        ({"TF_CONFIG": "[1]"}, "TF_CONFIG: Expected"),
        (config({"worker": WORKERS}, index="x"), "TF_CONFIG: Expected"),
        (config({"worker": "a:1"}), "should be a list"),
        (config({"worker": ["a", "b"]}), "'a' is no HOST:PORT"),
        (config({"worker": ["a:65535", "b:1"]}), "'a:65535' is no HOST:PORT"),
        (config({"worker": WORKERS}, index=3), "this host is worker 3"),
        (config({"worker": WORKERS}, index=-1), "this host is worker -1"),
        (config({"worker": WORKERS}, "chief"), "this host is chief 0"),
        (config({"chief": ["x:1", "y:1"], "worker": WORKERS}), "at most one chief"),
        (config({"worker": ["a:1", "a:1"]}), "another address for each host"),
        (config({"worker": WORKERS, "ps": ["p:1"]}), "received ps"),
        (config({"worker": WORKERS}, "evaluator"), "received evaluator"),
        ({**config({"worker": WORKERS}), hosts.JOIN_VARIABLE: "soon"}, "a number of seconds"),
    ],
)
def test_a_wrong_tf_config_is_one_clear_message(environ, said):
    with pytest.raises(UsageError) as raised:
        hosts.cluster_of(environ, ["a"], "a", {})
    assert said in str(raised.value)


def test_a_host_that_is_none_of_the_hosts_and_channels_that_are_spread_over_them_are_refused():
    with pytest.raises(UsageError, match="SM_CURRENT_HOST: expected one of SM_HOSTS, a, b; received c"):
        hosts.cluster_of({}, ["a", "b"], "c", {})
    with pytest.raises(UsageError, match="TF_FINETUNE_PORT: expected a port .* received 'http'"):
        hosts.cluster_of({"TF_FINETUNE_PORT": "http"}, ["a", "b"], "a", {})
    channels = {"training": {"S3DistributionType": "ShardedByS3Key"}}
    with pytest.raises(UsageError, match="channel training: several hosts need .*FullyReplicated"):
        hosts.cluster_of({}, ["a", "b"], "a", channels)
    assert hosts.cluster_of({}, ["a"], "a", channels) is None


def teams(count: int, silence: float = 20.0, beat: float = 5.0) -> tuple[list[team.Team], list[list[str]], list]:
    """Returns the hosts of a job in one process, what each was ended with, and the sockets of the others."""
    chief, others, sockets = {}, [], []
    for index in range(1, count):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            sockets.append(socket.create_connection(listener.getsockname()))
            chief[index] = Wire(listener.accept()[0], silence)
        others.append({0: Wire(sockets[-1], silence)})
    ended: list[list[str]] = [[] for _ in range(count)]
    names = [f"host-{index}" for index in range(count)]
    made = [team.Team(names, index, wires, ended[index].append, beat) for index, wires in enumerate([chief, *others])]
    return made, ended, sockets


def together(*actions: Callable[[], object]) -> list[object]:
    """Returns what actions give that run at the same time; an exception is given as a value."""
    given: list[object] = [None] * len(actions)

    def act(place: int, action: Callable[[], object]) -> None:
        try:
            given[place] = action()
        except Exception as error:
            given[place] = error

    threads = [threading.Thread(target=act, args=item, daemon=True) for item in enumerate(actions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return given


def test_the_chief_is_told_by_all_and_tells_all():
    value = {
        "text": "é\0",
        "list": [1, 2.5, None, True, [float("inf")]],
        "arrays": [np.arange(6, dtype=np.int64).reshape(2, 3), np.zeros([0, 4], np.float32), np.array(True)],
        "bytes": np.frombuffer(b"abc", np.uint8),
        "columns": np.arange(6.0).reshape(2, 3).T,
    }
    hosts_of, ended, _ = teams(3)
    told = together(*(lambda one=one: one.told("a", value if one.is_chief else "not looked at") for one in hosts_of))
    assert told[0] is value
    for other in told[1:]:
        assert other.keys() == value.keys()
        assert (other["text"], other["list"]) == (value["text"], value["list"])
        for one, two in zip(value["arrays"], other["arrays"], strict=True):
            assert one.dtype == two.dtype
            np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(other["columns"], value["columns"])
        assert other["bytes"].tobytes() == b"abc"
    collected = together(*(lambda one=one: one.collected("b", one.index * 10) for one in hosts_of))
    assert collected == [[0, 10, 20], [], []]
    together(*(one.part for one in hosts_of))
    assert ended == [[], [], []]


def test_nothing_but_numbers_and_texts_is_sent():
    one, *_ = teams(2)[0]
    for strange in (np.array([object()]), np.array(["text"]), {"a": object()}):
        with pytest.raises(TypeError):
            one.told("a", strange)


def test_hosts_that_went_different_ways_stop_rather_than_take_one_value_for_another():
    (chief, other), ended, _ = teams(2)
    failed = together(lambda: chief.told("step", 1), lambda: other.told("epoch"))[1]
    assert isinstance(failed, AssertionError)
    assert "sent 'step' where 'epoch' was expected" in str(failed)


def test_one_host_is_told_what_it_says():
    value = object()
    assert team.ALONE.told("a", value) is value
    assert team.ALONE.collected("a", value) == [value]
    team.ALONE.check_same("settings", {"a": value}, "")
    with team.joined(None, lambda message: None, {}) as found:
        assert (found.count, found.is_chief) == (1, True)
        found.ask_to_stop("max_seconds=1 have passed")
    with team.joined(None, print, {}) as next_job:
        assert not next_job.asked


def test_hosts_that_differ_all_say_so():
    hosts_of, _, _ = teams(3)
    facts = [{"epochs": 3, "keras": "3.1"}, {"epochs": 3, "keras": "3.1"}, {"epochs": 4, "more": True}]
    failed = together(*(lambda one=one: one.check_same("settings", facts[one.index], "Cure") for one in hosts_of))
    for error in failed:
        assert isinstance(error, HostError)
        assert str(error) == (
            "Expected the same settings on all hosts. Received: epochs is 3 on host-0, 4 on host-2, keras is 3.1 on "
            "host-0, None on host-2, more is None on host-0, True on host-2. Cure."
        )


def waiting(one: team.Team, topic: str = "result") -> Callable[[], object]:
    return lambda: one.told(topic) if one.index else one.collected(topic, 0)


@pytest.mark.parametrize("lost", [0, 2])
def test_all_hosts_end_with_one_message_when_one_is_lost(lost):
    hosts_of, ended, sockets = teams(3)
    hosts_of[lost]._over.set()  # It says nothing more.
    for connection in sockets if lost == 0 else sockets[1:]:
        connection.shutdown(socket.SHUT_RDWR)  # As the kernel does when a process is killed.
    left = [one for one in hosts_of if one.index != lost]
    for failed in together(*(waiting(one) for one in left)):
        assert isinstance(failed, HostError)
        assert f"host-{lost}, host {lost + 1} of 3, was lost: " in str(failed)
    for one in left:
        assert [message.count(f"host-{lost}, host {lost + 1} of 3, was lost") for message in ended[one.index]] == [1]


def test_a_host_that_falls_silent_counts_as_lost_and_one_that_is_only_busy_does_not():
    (chief, other), ended, _ = teams(2, silence=0.5, beat=0.1)
    time.sleep(1.5)
    assert ended == [[], []]
    other._over.set()  # Its signs of life end.
    failed = together(waiting(chief))[0]
    assert isinstance(failed, HostError)
    assert "was lost: it was silent for 0.5 seconds" in str(failed)


def test_a_failure_of_one_host_is_the_message_of_all():
    hosts_of, ended, _ = teams(3)
    hosts_of[1].fail("host-1 failed: no space left")
    for failed in together(waiting(hosts_of[0]), waiting(hosts_of[2])):
        assert str(failed) == "host-1 failed: no space left"
    assert ended == [["host-1 failed: no space left"], [], ["host-1 failed: no space left"]]


def test_a_host_that_waits_for_the_result_passes_on_the_request_to_stop():
    (chief, other), _, _ = teams(2)

    def work() -> str:
        while not chief.asked:
            time.sleep(0.01)
        chief.told("result", {"ended_early": chief.asked})
        return chief.asked

    asked, result = together(work, lambda: other.awaited("result", lambda: "SIGTERM"))
    assert asked == "host-1: SIGTERM"
    assert result == {"ended_early": asked}


def clusters(count: int, seconds: float = 10.0) -> list[Cluster]:
    addresses = tuple(several.free_addresses(count))
    return [Cluster(addresses, index, seconds) for index in range(count)]


def test_hosts_find_each_other_whoever_comes_first_and_a_stranger_does_not_disturb_them():
    one, two, three = clusters(3)

    def late() -> object:
        time.sleep(0.3)
        return meeting.met(one, 20)

    def stranger() -> None:
        time.sleep(0.5)
        with socket.create_connection(one.meeting_place) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(100))
            connection.recv(1)

    met = together(late, lambda: meeting.met(three, 20), stranger, lambda: (time.sleep(0.8), meeting.met(two, 20))[1])
    assert list(met[0]) == [1, 2]
    met[0][2].send(HELLO, "to the third")
    assert met[1][0].receive() == (HELLO, "to the third")


def test_hosts_that_do_not_come_are_named_to_those_that_have():
    one, two, _ = clusters(3, seconds=1.0)
    began = time.monotonic()
    for failed in together(lambda: meeting.met(one, 20), lambda: meeting.met(two, 20)):
        assert isinstance(failed, HostError)
        assert f"1 of 3 hosts did not come within 1 seconds: {one.addresses[2]}. " in str(failed)
        assert f"ports {one.meeting_place[1] - 1} and {one.meeting_place[1]}" in str(failed)
    assert time.monotonic() - began < 8


def test_a_chief_that_does_not_come_is_named():
    _, two = clusters(2, seconds=1.0)
    host, port = two.meeting_place
    with pytest.raises(HostError, match=f"The first host, {host}, did not answer on port {port} within 1 seconds"):
        meeting.met(two, 20)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda cluster: {"index": 1}, "Two hosts say that they are number 1 of 3"),
        (lambda cluster: {"addresses": (*cluster.addresses[:2], "c:1")}, "Hosts disagree on who"),
    ],
)
def test_hosts_that_are_told_different_things_are_refused(change, said):
    one, two, three = clusters(3, seconds=5.0)
    strange = dataclasses.replace(three, **change(three))
    failed = together(
        lambda: meeting.met(one, 20), lambda: meeting.met(two, 20), lambda: (time.sleep(1.5), meeting.met(strange, 20))
    )
    assert all(said in str(error) for error in failed), failed


@pytest.mark.parametrize("broken", [0, 2])
def test_a_host_that_cannot_take_part_ends_all_at_once_also_those_that_come_later(broken):
    cluster = clusters(3, seconds=20.0)

    def decline() -> None:
        with hosts.declining(cluster[broken]):
            raise DataError("bad/data.csv line 3")

    def come(index: int) -> object:
        time.sleep(0.5 * index)
        return meeting.met(cluster[index], 20)

    began = time.monotonic()
    actions = [decline if index == broken else functools.partial(come, index) for index in range(3)]
    for index, failed in enumerate(together(*actions)):
        name = cluster[0].names[broken]
        said = "bad/data.csv line 3" if index == broken else f"{name} failed: bad/data.csv line 3"
        assert str(failed) == said
    assert time.monotonic() - began < 5


def test_a_host_that_is_alone_declines_nothing():
    with pytest.raises(DataError), hosts.declining(None):
        raise DataError("bad")


def test_jobs_with_other_settings_are_refused_on_all_hosts():
    cluster = clusters(2)

    def join(index: int) -> None:
        with team.joined(cluster[index], lambda message: None, {"epochs": index}):
            raise AssertionError("they should not have met")

    for failed in together(lambda: join(0), lambda: join(1)):
        assert isinstance(failed, HostError)
        assert "epochs is 0 on 127.0.0.1" in str(failed)


def test_the_environment_has_the_hosts_of_resourceconfig(tmp_path):
    folder = tmp_path / "input" / "config"
    folder.mkdir(parents=True)
    resources = {"current_host": "algo-2", "hosts": ["algo-1", "algo-2"]}
    (folder / "resourceconfig.json").write_text(json.dumps(resources))
    base = {"SAGEMAKER_BASE_DIR": str(tmp_path)}
    assert environment.read(base).cluster == Cluster(("algo-1:8890", "algo-2:8890"), 1)
    named = {**base, "SM_HOSTS": '["x", "y"]', "SM_CURRENT_HOST": "x"}
    assert environment.read(named).cluster == Cluster(("x:8890", "y:8890"), 0)
    inputs = {"test": {"TrainingInputMode": "File", "S3DistributionType": "ShardedByS3Key"}}
    (folder / "inputdataconfig.json").write_text(json.dumps(inputs))
    with pytest.raises(UsageError, match="channel test"):
        environment.read(base)
