"""Several processes that train one model, as ``torchrun`` starts them: each does its share of every batch.

All draw the same batch with the same generator, each computes the gradients of its own rows, and their sum is the
gradient of the whole batch: weights stay equal without ever being sent. A process by itself is a world of one.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["add_up", "any_of", "average", "is_first", "one_first", "rank", "size", "wait_for_all"]

ResultT = TypeVar("ResultT")


def rank() -> int:
    """Which of the processes this is, from 0."""
    return dist.get_rank() if size() > 1 else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes files."""
    return rank() == 0


def wait_for_all() -> None:
    """Return when every process has come here."""
    if size() > 1:
        dist.barrier()


def one_first(call: Callable[[], ResultT]) -> ResultT:
    """Call in the first process, and when it has done so, in the others: what it leaves on disk is there for them."""
    if is_first():
        result = call()
        wait_for_all()
    else:
        wait_for_all()
        result = call()
    return result


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace tensors of one device by their sums over the processes, in one exchange."""
    if size() > 1 and tensors:
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, total in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))


def average(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their means over the processes."""
    add_up(tensors)
    if size() > 1:
        for tensor in tensors:
            tensor.div_(size())


def any_of(flags: Iterable[bool], device: torch.device) -> list[bool]:
    """Each flag: whether it is raised in any of the processes."""
    if size() == 1:
        return list(flags)
    raised = torch.tensor([float(flag) for flag in flags], device=device)
    add_up([raised])
    return [bool(value) for value in raised.tolist()]
