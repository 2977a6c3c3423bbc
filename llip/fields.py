"""Configurations as trees of frozen dataclasses: walked, changed, compared, read and written by dotted paths.

The path of a leaf, such as `optimizer.learning_rate`, is its name everywhere: on a command line, in a file, in an
error, as MLflow's parameter and as the axis of a sweep. A field says at its own place, with `setting`, what else is to
be known of it.
"""

import ast
import dataclasses
import difflib
import inspect
import itertools
import json
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar, cast

Config = TypeVar("Config")
NONE = "none"
"""Spelling of None in a file and in a sweep."""


def setting(
    default: Any = dataclasses.MISSING,
    *,
    short: str | None = None,
    operational: bool = False,
    excludes: Sequence[str] = (),
    metavar: str | None = None,
) -> Any:
    """A dataclass field with properties.

    `short` is a second spelling of its option, and `metavar` stands for its value in help. `operational` fields change
    nothing of what is learned, so a run may go on with other values. `excludes` names sibling fields of which only one
    can be given: giving this one clears them.
    """
    metadata = {"short": short, "operational": operational, "excludes": tuple(excludes), "metavar": metavar}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One setting of a configuration."""

    path: str
    hint: Any
    """Its type, as annotated."""
    doc: str
    short: str | None
    operational: bool
    excludes: tuple[str, ...]
    """Paths that giving this one clears."""


def leaves(kind: Any, prefix: str = "") -> tuple[Leaf, ...]:
    """The leaves of a configuration type, in the order of their fields; nested types are walked in place."""
    return _leaves(kind, prefix)


def _walked(kind: Any, prefix: str) -> tuple[Leaf, ...]:
    hints, docs, found = typing.get_type_hints(kind), field_docs(kind), list[Leaf]()
    for field in dataclasses.fields(kind):
        hint, path = hints[field.name], prefix + field.name
        if dataclasses.is_dataclass(hint):
            found += leaves(hint, f"{path}.")
            continue
        leaf = Leaf(
            path=path,
            hint=hint,
            doc=docs.get(field.name, ""),
            short=field.metadata.get("short"),
            operational=field.metadata.get("operational", False),
            excludes=tuple(prefix + name for name in field.metadata.get("excludes", ())),
        )
        found.append(leaf)
    return tuple(found)


_leaves: Callable[[Any, str], tuple[Leaf, ...]] = cache(_walked)


@cache
def field_docs(kind: Any) -> dict[str, str]:
    """The docstrings that stand below the fields of a dataclass, those of its bases included, by field."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(cast(Any, base)):
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
            for field, text in itertools.pairwise(body):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    docs[cast(ast.Name, field.target).id] = " ".join(ast.literal_eval(text.value).split())
    return docs


def find_leaf(kind: Any, name: str) -> Leaf:
    """The leaf of a dotted path or of a short spelling. Raises ValueError for another, with those that come near it."""
    known = {leaf.path: leaf for leaf in leaves(kind)} | {leaf.short: leaf for leaf in leaves(kind) if leaf.short}
    if (wanted := name.replace("-", "_")) in known:
        return known[wanted]
    near = difflib.get_close_matches(wanted, known, n=3) or [p for p in known if p.endswith(f".{wanted}")]
    raise ValueError(f"there is no setting {name!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))


def value_of(config: Any, path: str) -> Any:
    """The value at a dotted path."""
    for name in path.split("."):
        config = getattr(config, name)
    return config


def flat(config: Any) -> dict[str, Any]:
    """All values by dotted path."""
    return {leaf.path: value_of(config, leaf.path) for leaf in leaves(type(config))}


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with other values at some paths (or short spellings); text is read as a value of the field.

    Everything is checked once, at the end. Raises ValueError for an unknown path, a value of another type and for what
    contradicts itself, naming the path and what would be right.
    """
    kind = type(config)
    given = {
        (leaf := find_leaf(kind, name)).path: convert(leaf.hint, value, leaf.path) for name, value in values.items()
    }
    cleared = {
        other: None
        for leaf in leaves(kind)
        if given.get(leaf.path) is not None
        for other in leaf.excludes
        if other not in given
    }
    return _rebuilt(config, cleared | given)


def _rebuilt(config: Config, values: Mapping[str, Any], prefix: str = "") -> Config:
    """New objects along the paths that change, so that each checks itself once all of its values are there."""
    if not any(path.startswith(prefix) for path in values):
        return config
    new = {}
    for field in dataclasses.fields(cast(Any, config)):
        path, value = prefix + field.name, getattr(config, field.name)
        new[field.name] = (
            _rebuilt(value, values, f"{path}.") if dataclasses.is_dataclass(value) else values.get(path, value)
        )
    return type(config)(**new)


def is_union(hint: Any) -> bool:
    """Whether a type is one of several: `X | None`, of which `typing` makes an object of its own for a Literal X."""
    return typing.get_origin(hint) in (types.UnionType, typing.Union)


def convert(hint: Any, value: Any, path: str) -> Any:
    """A value of a file or of a command as one of the type `hint`. Raises ValueError naming `path` for another."""
    try:
        return _converted(hint, value)
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is {value!r}; it has to be {expected(hint)}") from None


def _converted(hint: Any, value: Any) -> Any:
    if is_union(hint):
        if value is None or (isinstance(value, str) and value.lower() == NONE):
            return None
        (hint,) = (member for member in typing.get_args(hint) if member is not types.NoneType)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return arguments[[str(argument) for argument in arguments].index(str(value))]
    if origin is tuple:
        parts = value.split("/") if isinstance(value, str) else list(value)
        members = [arguments[0]] * len(parts) if arguments[-1] is Ellipsis else arguments
        return tuple(_converted(member, part) for member, part in zip(members, parts, strict=True))
    if hint is bool:
        return {"true": True, "false": False}[str(value).lower()]
    if isinstance(value, bool) or (hint is str and not isinstance(value, str)):
        raise TypeError
    if hint is int and isinstance(value, float) and not value.is_integer():
        raise ValueError
    return hint(value)


def expected(hint: Any) -> str:
    """A type in words."""
    if is_union(hint):
        return " or ".join(NONE if member is types.NoneType else expected(member) for member in typing.get_args(hint))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin is tuple:
        count = "several numbers" if arguments[-1] is Ellipsis else f"{len(arguments)} numbers"
        return f"{count} (on a command line of a sweep with / between them)"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(hint, str(hint))


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested dictionaries of JSON values."""
    return dataclasses.asdict(config)


def from_dict(kind: type[Config], values: Mapping[str, Any], where: str = "") -> Config:
    """A configuration from nested dictionaries, values as JSON and TOML have them.

    Raises ValueError, naming the path, for an unknown key, for one that is missing and for a value of another type.
    """
    hints, prefix = typing.get_type_hints(kind), f"{where}." if where else ""
    fields = {field.name: field for field in dataclasses.fields(cast(Any, kind))}
    if unknown := sorted(set(values) - set(fields)):
        near = difflib.get_close_matches(unknown[0], fields, n=1)
        meant = f"did you mean {near[0]}?" if near else f"{where or kind.__name__} has {', '.join(sorted(fields))}"
        raise ValueError(f"there is no setting {prefix}{unknown[0]}; {meant}")
    new: dict[str, Any] = {}
    for name, value in values.items():
        hint, path = hints[name], prefix + name
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise ValueError(f"{path} is {value!r}; it has to be a table of settings")
            new[name] = from_dict(cast(type, hint), value, path)
        else:
            new[name] = convert(hint, value, path)
    missing = dataclasses.MISSING
    for name, field in fields.items():
        if name not in new and field.default is missing and field.default_factory is missing:
            raise ValueError(f"{prefix}{name} is missing")
    return kind(**new)


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as values by dotted path."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flattened(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def to_toml(config: Any, base: Any | None = None) -> str:
    """A configuration as TOML, one `path = value` a line; where `base` has another value, a comment tells it."""
    lines = []
    for path, value in flat(config).items():
        line = f"{path} = {_toml(value)}"
        if base is not None and (before := value_of(base, path)) != value:
            line += f"  # recipe: {_toml(before)}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """JSON and TOML write numbers, text, booleans and lists of numbers alike."""
    return json.dumps(NONE if value is None else value, ensure_ascii=False)


def differences(left: Any, right: Any, where: str = "") -> list[str]:
    """Differences of two configurations, as lines `path: left → right`."""
    a, b = (to_dict(c) if dataclasses.is_dataclass(c) else c for c in (left, right))
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            line
            for key in sorted(a.keys() | b.keys())
            for line in differences(a.get(key), b.get(key), f"{where}.{key}".lstrip("."))
        ]
    same = a == b or (isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and list(a) == list(b))
    return [] if same else [f"{where}: {a!r} → {b!r}"]


def check(condition: bool, field_name: str, value: object, expected: str) -> None:
    """Raise ValueError that names a field, its value and what would be right, unless the condition holds."""
    if not condition:
        raise ValueError(f"{field_name} is {value!r}; it has to be {expected}")
