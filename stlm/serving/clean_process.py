"""Two rules for a process that shall behave like a server with nothing else on it: no pickle, no other packages.

Both hold until the process ends; neither can be lifted.
"""

import importlib.abc
import importlib.machinery
import importlib.metadata
import re
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

__all__ = ["RUNTIME", "allow_only", "forbid_pickle"]

RUNTIME = ("numpy", "onnxruntime", "pillow")
"""Distributions that serving an exported file needs; they bring what they require."""
_BUILD_SETTINGS = "_sysconfigdata_"
"""A module of the standard library that is named after the machine."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def forbid_pickle() -> None:
    """From now on an unpickler that names a class or a function raises ``RuntimeError``, whoever runs it."""

    def refuse(event: str, args: tuple[Any, ...]) -> None:
        if event == "pickle.find_class":
            raise RuntimeError(f"a pickle that wants {args[0]}.{args[1]} was opened, which is forbidden")

    sys.addaudithook(refuse)


def allow_only(distributions: Iterable[str], *, packages: Iterable[str]) -> None:
    """From now on only the standard library, some packages, and some distributions with what they need, are there.

    Args:
        distributions: Installed distributions; what they require comes with them.
        packages: Further packages by import name.
    """
    allowed = set(sys.stdlib_module_names) | set(packages) | {"__main__"}
    for name in _closure(distributions):
        allowed |= _import_names(name)
    sys.meta_path.insert(0, _Fence(frozenset(allowed)))


class _Fence(importlib.abc.MetaPathFinder):
    def __init__(self, allowed: frozenset[str]) -> None:
        self._allowed = allowed

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        top = fullname.partition(".")[0]
        if top in self._allowed or top.startswith(_BUILD_SETTINGS):
            return None  # the finders after this one look for it
        raise ModuleNotFoundError(f"No module named {fullname!r} among what serving needs", name=fullname)


def _closure(names: Iterable[str]) -> set[str]:
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # required on another platform
        found.add(name)
        waiting += [match[0] for line in requires if "extra ==" not in line and (match := _NAME.match(line))]
    return found


def _import_names(distribution: str) -> set[str]:
    files = importlib.metadata.files(distribution) or []
    tops = {file.parts[0] for file in files if file.suffix in {".py", ".so", ".pyd"}}
    return {top.partition(".")[0] for top in tops}
