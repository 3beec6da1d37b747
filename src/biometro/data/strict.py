"""Frozen dataclasses from what a YAML file says, nothing more and nothing else.

    mapping ─▶ unknown keys? missing ones? values of another type? ─▶ the dataclass, which checks what values mean

A key that is misspelt and passed over would change what is measured without a word, so it is an error that names the
file, the key and the nearest key there is.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from biometro.errors import UserError

T = TypeVar("T")


def build(cls: type[T], found: Any, where: str, key: str = "") -> T:
    """An instance of a dataclass from a mapping.

    Args:
        cls: a dataclass whose fields are text, numbers, truth values, literals, lists, mappings of text to text, or
            dataclasses; or unions of these with None.
        found: what stands in the file.
        where: the file, for errors.
        key: where in the file, such as `labels`; empty at its top.

    Raises UserError for a key that is unknown or missing, a value of another type, and what the dataclass refuses.
    """
    place = key or "it"
    if not isinstance(found, Mapping):
        raise UserError(f"{where}: {place} must map keys to values")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    prefix = f"{key}." if key else ""
    for name in found:
        if name not in fields:
            raise UserError(f"{where}: there is no key {prefix + str(name)!r}{nearest(str(name), list(fields))}")
    for name, field in fields.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and name not in found:
            raise UserError(f"{where}: the key {prefix + name!r} is missing")
    hints = typing.get_type_hints(cls)
    values = {name: _value(hints[name], value, where, prefix + name) for name, value in found.items()}
    try:
        return cls(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def nearest(name: str, known: list[str]) -> str:
    """`; did you mean ...?`, or all there are where none is near."""
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"


def _value(hint: Any, value: Any, where: str, key: str) -> Any:
    """The value as its type wants it. Raises UserError where it is of another."""
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where, key)  # type: ignore[arg-type]
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        whole = [option for option in typing.get_args(hint) if dataclasses.is_dataclass(option)]
        if whole and value is not None:
            return build(whole[0], value, where, key)  # type: ignore[arg-type]
    if not _fits(hint, value):
        raise UserError(f"{where}: {key} is {str(value)[:60]!r}; it must be {_said(hint)}")
    return float(value) if hint is float else value


def _fits(hint: Any, value: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return isinstance(value, str | int) and value in inner
    if origin in (typing.Union, types.UnionType):
        return any(_fits(option, value) for option in inner)
    if origin is list:
        return isinstance(value, list) and all(_fits(inner[0], item) for item in value)
    if origin in (dict, Mapping) or getattr(origin, "__name__", "") == "Mapping":
        return isinstance(value, dict) and all(_fits(inner[0], k) and _fits(inner[1], v) for k, v in value.items())
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is type(None):
        return value is None
    return isinstance(hint, type) and isinstance(value, hint)


def _said(hint: Any) -> str:
    """A type in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_said(option) for option in inner)
    if origin is list:
        return f"a list of {_said(inner[0])}"
    if origin is not None:
        return "a mapping"
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "nothing"}
    return names.get(hint, "a value")
