"""Dataclasses to JSON and back, strictly: an unknown, missing or mistyped field is an error that names the place.

Only the standard library is imported here.
"""

import dataclasses
import enum
import hashlib
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["canonical_json", "digest_of", "from_json", "to_json"]

ContractT = TypeVar("ContractT")


def to_json(value: Any) -> Any:
    """Plain JSON values of a contract: dataclasses to dicts, enums to their values, paths to strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def canonical_json(value: Any) -> str:
    """One spelling for one value: sorted keys, no spaces, no NaN."""
    return json.dumps(
        to_json(value),
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
        ensure_ascii=False,
    )


def digest_of(value: Any) -> str:
    """Hex sha256 of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def from_json(kind: type[ContractT], value: Any, *, where: str = "") -> ContractT:
    """Build ``kind`` from plain JSON; unknown, missing or mistyped fields are errors that name the place.

    Args:
        kind: A dataclass of this module, or any dataclass made of such, of scalars, tuples and dicts.
        value: What ``json.loads`` returned.
        where: Prefix for messages, such as a file name.

    Returns:
        The checked value.

    Raises:
        ValueError: The JSON does not fit; the message names field, expected and got.
    """
    return typing.cast("ContractT", _read(kind, value, where or kind.__name__))


def _read(kind: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _read_union(kind, value, where)
    if origin is typing.Literal:
        if value not in typing.get_args(kind):
            raise ValueError(f"{where}: expected one of {list(typing.get_args(kind))}, got {value!r}")
        return value
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}: expected a list, got {value!r}")
        args = typing.get_args(kind)
        if origin is tuple and args and args[-1] is not Ellipsis:
            if len(args) != len(value):
                raise ValueError(f"{where}: expected {len(args)} items, got {len(value)}")
            return tuple(_read(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
        return origin(_read(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected an object, got {value!r}")
        item_kind = typing.get_args(kind)[1]
        return {str(k): _read(item_kind, v, f"{where}.{k}") for k, v in value.items()}
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, where)
    return _read_scalar(kind, value, where)


def _read_union(kind: Any, value: Any, where: str) -> Any:
    options = typing.get_args(kind)
    if value is None and types.NoneType in options:
        return None
    errors = []
    for option in options:
        if option is types.NoneType:
            continue
        try:
            return _read(option, value, where)
        except ValueError as error:
            errors.append(str(error))
    raise ValueError("; ".join(errors))


def _read_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, got {value!r}")
    hints = typing.get_type_hints(kind)
    names = {f.name for f in dataclasses.fields(kind)}
    required = {
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    problems = [f"unknown field {name!r}" for name in sorted(set(value) - names)]
    problems += [f"missing field {name!r}" for name in sorted(required - set(value))]
    if problems:
        raise ValueError(f"{where}: {', '.join(problems)}; known fields: {', '.join(sorted(names))}")
    fields = {name: _read(hints[name], item, f"{where}.{name}") for name, item in value.items()}
    try:
        return kind(**fields)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _read_scalar(kind: Any, value: Any, where: str) -> Any:
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        try:
            return kind(value)
        except ValueError:
            raise ValueError(f"{where}: expected one of {[m.value for m in kind]}, got {value!r}") from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(kind, type) or type(value) is not kind:
        raise ValueError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {value!r}")
    return value
