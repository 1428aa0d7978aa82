"""Threads that work through any number of tasks, a few ahead at a time."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

LEAD = 4  # Tasks per worker that are read ahead of it.
Task = TypeVar("Task")
Result = TypeVar("Result")


def results(
    work: Callable[[Task, threading.Event], Result], tasks: Iterable[Task], workers: int
) -> Generator[Result, None, None]:
    """Yields what `work` returns for each task, as they get ready, not in order.

    The tasks are read as they are needed, in the caller's thread. The workers are daemons: unlike those of
    `concurrent.futures` they keep no process alive that has failed elsewhere.

    Args:
        work: Is given a task and an event that is set when its result is no longer wanted: after the first error, or
            when the caller closes the generator.
        tasks: Any number.
        workers: Threads.

    Raises:
        Exception: The first that `work` raises; the rest is not begun.
    """
    todo: queue.SimpleQueue[Any] = queue.SimpleQueue()
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stop = threading.Event()

    def serve() -> None:
        while (task := todo.get()) is not None:
            try:
                if not stop.is_set():
                    done.put((work(task[0], stop), None))
            except BaseException as error:  # It is raised where the results are read.
                done.put((None, error))

    for _ in range(workers):
        threading.Thread(target=serve, daemon=True, name="tf-finetune-s3").start()
    source, pending = iter(tasks), 0
    try:
        while True:
            for task in itertools.islice(source, workers * LEAD - pending):
                todo.put((task,))
                pending += 1
            if not pending:
                return
            result, error = done.get()
            pending -= 1
            if error is not None:
                raise error
            yield result
    finally:
        stop.set()
        for _ in range(workers):
            todo.put(None)
