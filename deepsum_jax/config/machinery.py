"""What configuration sections are made of: frozen dataclasses that check, store and override.

Sections are plain data: hashable, comparable, and written to JSON by `to_dict` and read back,
strictly, by `from_dict`.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from types import NoneType
from typing import Any, Literal, TypeVar

T = TypeVar("T", bound="Section")
_LARGEST = 1e300  # of any number; beyond, arithmetic with it overflows


class Settings(Mapping[str, Any]):
    """An immutable, hashable mapping of plain values, for fields whose names are declared
    elsewhere. Raises ValueError for values that are not plain."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self._values = {
            k: tuple(v) if isinstance(v, list) else v for k, v in sorted((values or {}).items())
        }
        for name, value in self._values.items():
            for one in value if isinstance(value, tuple) else (value,):
                if not isinstance(one, (str, int, float, NoneType)):
                    raise ValueError(  # noqa: TRY004 (one kind of error for a wrong file)
                        f"{name}: found {shown(value)}, expected a plain value"
                    )

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __repr__(self) -> str:
        return repr(self._values)


def shown(value: Any) -> str:
    """A value as messages show it: briefly, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, lists without end
        return f"an endless {type(value).__name__}"
    return text if len(text) <= 400 else f"{text[:380]} …"


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for an error message: the valid name nearest to a wrong one, or all of them."""
    names = list(valid)
    close = difflib.get_close_matches(name[:100], names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(names)}"


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; an int passes for a float."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in args
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, args[0]) for v in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " | ".join(repr(a) for a in args)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_describe(a) for a in args)
    if origin is tuple:
        return f"a list of {_describe(args[0])}"
    return "null" if hint is type(None) else hint.__name__


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the configuration whose fields are checked against their types."""

    MOVED: typing.ClassVar[Mapping[str, str]] = types.MappingProxyType({})
    """Names that a field once had, and where to find what it said."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, field.name, value)
            if hints[field.name] is Settings and isinstance(value, Mapping):
                value = Settings(value)
                object.__setattr__(self, field.name, value)
            if not _fits(value, hints[field.name]):
                raise ValueError(
                    f"{type(self).__name__}.{field.name}: found {shown(value)}, "
                    f"expected {_describe(hints[field.name])}"
                )
            values = value if isinstance(value, tuple) else (value,)
            if any(isinstance(v, (int, float)) and not -_LARGEST < v < _LARGEST for v in values):
                raise ValueError(
                    f"{type(self).__name__}.{field.name}: found {shown(value)}, expected finite "
                    f"numbers below {_LARGEST:g}"
                )
        self.check()

    def check(self) -> None:
        """Raises ValueError where a value is outside its range."""

    def _require(self, condition: bool, field: str, expected: str) -> None:
        if not condition:
            found = shown(getattr(self, field))
            raise ValueError(f"{type(self).__name__}.{field}: found {found}, expected {expected}")

    def _require_within(self, ranges: Mapping[str, tuple[float, float]]) -> None:
        """Requires fields to lie within their ranges; pairs are two rising numbers there."""
        for field, (low, high) in ranges.items():
            value = getattr(self, field)
            if isinstance(value, tuple):
                fits = len(value) == 2 and low <= value[0] <= value[1] <= high
                self._require(fits, field, f"two rising numbers in {low} to {high}")
            else:
                self._require(low <= value <= high, field, f"{low} to {high}")

    def to_dict(self) -> dict[str, Any]:
        """Nested plain data that JSON can hold."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {
            name: v.to_dict() if isinstance(v, Section) else dict(v) if type(v) is Settings else v
            for name, v in values.items()
        }

    @classmethod
    def migrated(cls, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Stored values of an earlier version under the names of this one."""
        return data

    @classmethod
    def from_dict(cls: type[T], data: Mapping[str, Any]) -> T:
        """The inverse of `to_dict`. Fields left out take their defaults.

        Raises:
          ValueError: an unknown field (naming the nearest valid one) or a value of a wrong type.
        """
        if not isinstance(data, Mapping):
            raise ValueError(  # noqa: TRY004 (one kind of error for a wrong file)
                f"{cls.__name__}: found {shown(data)}, expected a mapping"
            )
        hints = typing.get_type_hints(cls)
        names = [f.name for f in dataclasses.fields(cls)]
        values = {}
        for key, value in cls.migrated(data).items():
            if key not in names:
                raise ValueError(f"{cls.__name__} has no field {shown(key)}; {nearest(key, names)}")
            hint = hints[key]
            if isinstance(hint, type) and issubclass(hint, Section):
                value = hint.from_dict(value)
            values[key] = value
        return cls(**values)


def _parse(text: str, hint: Any) -> Any:
    """The value that a command-line text means for a field of type `hint`."""
    args = typing.get_args(hint) or (hint,)
    if str in args or (typing.get_origin(hint) is Literal and text in args):
        return text
    lowered = text.lower()
    if (bool in args or hint is object) and lowered in ("true", "false"):
        return lowered == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    whole = isinstance(value, float) and value.is_integer()
    return int(value) if whole and hint is int else value


def override(config: T, assignments: Iterable[str]) -> T:
    """Applies `section.field=value` texts, as `--set` takes them.

    Raises:
      ValueError: no '=', an unknown section or field (naming the nearest valid one), a section
        given whole, or a value of a wrong type or range.
    """
    values = config.to_dict()
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set {assignment}: expected section.field=value")
        path = path.strip()
        _assign(type(config), values, path.split("."), text.strip(), path)
    # Checked once, so that fields which depend on each other may come in any order.
    return type(config).from_dict(values)


def _assign(
    section: type[Section], values: dict[str, Any], keys: list[str], text: str, path: str
) -> None:
    """Puts a text's value in its place among a section's plain values."""
    hints = {f.name: typing.get_type_hints(section)[f.name] for f in dataclasses.fields(section)}
    key, rest = keys[0], keys[1:]
    if key not in hints:
        hint = section.MOVED.get(key) or nearest(key, hints)
        raise ValueError(f"--set {path}: no field {key!r}; {hint}")
    hint = hints[key]
    if hint is Settings:
        if len(rest) != 1:
            raise ValueError(f"--set {path}: expected one option of the system, as {path}.NAME=…")
        values[key] = {**values[key], rest[0]: _parse(text, object)}
    elif isinstance(hint, type) and issubclass(hint, Section):
        if not rest:
            first = dataclasses.fields(hint)[0].name
            raise ValueError(f"--set {path}: expected one of its fields, as {path}.{first}=…")
        _assign(hint, values[key], rest, text, path)
    elif rest:
        raise ValueError(f"--set {path}: {key!r} has no fields")
    else:
        values[key] = _parse(text, hint)
