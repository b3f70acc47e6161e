"""The outermost edge, where stores and MLflow are changed: to watch it, to step in, to die and to race there."""

import contextlib
import functools
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from unittest import mock

from mlflow import MlflowClient

from components.adapters.storage.local import LocalStorage
from components.adapters.storage.s3 import S3Storage

__all__ = ["DIED", "at_once", "dies_before_change", "watched"]

DIED = 77
"""Exit status of a process that died where it was told to."""
_CHANGES: dict[type, tuple[str, ...]] = {
    LocalStorage: ("put", "put_if_absent", "put_if_match"),
    S3Storage: ("put", "put_if_absent", "put_if_match"),
    MlflowClient: (
        "create_experiment",
        "create_model_version",
        "create_registered_model",
        "create_run",
        "delete_model_version",
        "delete_registered_model_alias",
        "delete_registered_model_tag",
        "log_artifacts",
        "log_batch",
        "set_model_version_tag",
        "set_registered_model_alias",
        "set_registered_model_tag",
        "set_tag",
    ),
}

Hook = Callable[[str, tuple[Any, ...]], None]
T = TypeVar("T")


@contextlib.contextmanager
def watched(*, before: Hook | None = None, after: Hook | None = None) -> Iterator[None]:
    """Call hooks around every change of a store or of MLflow, with its name and its positional arguments."""
    inside = threading.local()

    def around(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(real)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if getattr(inside, "change", False):  # one change that is made of others
                return real(self, *args, **kwargs)
            if before is not None:
                before(name, args)
            inside.change = True
            try:
                result = real(self, *args, **kwargs)
            finally:
                inside.change = False
            if after is not None:
                after(name, args)
            return result

        return call

    with contextlib.ExitStack() as stack:
        for owner, names in _CHANGES.items():
            for name in names:
                stack.enter_context(mock.patch.object(owner, name, around(getattr(owner, name), name)))
        yield


def dies_before_change(number: int, action: Callable[[], object]) -> bool:
    """Run ``action`` in a process of its own that is gone, without a word, where it would make its n-th change.

    Args:
        number: Which change, from 1.
        action: What to do there; it must open its own connections.

    Returns:
        True if it died there; False if it went through with fewer changes.

    Raises:
        AssertionError: It failed in another way.
    """
    left = number

    def count_down(name: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os._exit(DIED)

    child = os.fork()
    if child == 0:
        try:
            with watched(before=count_down):
                action()
            os._exit(0)
        except BaseException:  # noqa: BLE001  the parent's tests must not run on in the child
            traceback.print_exc(file=sys.__stderr__)
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, DIED), f"the process ended with {status}"
    return status == DIED


def at_once(count: int, action: Callable[[int], T]) -> list[T]:
    """Run ``action`` with 0, 1, ... in as many processes, all beginning at the same moment.

    Args:
        count: How many processes.
        action: What each does with its number; it must open its own connections, and return little.

    Returns:
        What each returned, in the order of the numbers.

    Raises:
        AssertionError: One of them failed.
    """
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(count), context.SimpleQueue()

    def work(number: int) -> None:
        barrier.wait(120)
        answers.put((number, action(number)))

    processes = [context.Process(target=work, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * count
    told = dict(answers.get() for _ in processes)
    return [told[number] for number in range(count)]
