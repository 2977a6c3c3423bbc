"""Common parts of the entry points: the command line, the exit code of bad input, and a Ray session.

The options of a command are the fields of its settings, a frozen dataclass. Settings that inherit from `Trained` have
every leaf of `TrainingConfig` as an option too, by its dotted path and with the recipe's own value as its default.
"""

import atexit
import dataclasses
import gc
import hashlib
import itertools
import logging
import os
import re
import shlex
import signal
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

import tyro

from llip import recipes, storage
from llip.config import TrainingConfig
from llip.fields import NONE, Leaf, field_docs, is_union, leaves, override, to_toml, value_of
from llip.runs.stopping import GaveUpError, NonFiniteError, StoppedError
from pipelines import logs

# Ray reads it when it is imported: else every worker of a command that `uv run` started makes the environment again.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

Settings = TypeVar("Settings")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Settings of a command that trains: a recipe, and values in place of its own."""

    recipe: str = recipes.DEFAULT
    """Configuration to start from: a recipe's name (`python -m llip.recipes` lists them), module:function, a .toml
    file, or the folder of a run to repeat."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Values in place of the recipe's, by dotted path or short spelling. A command may have some where none are given;
    its help shows them."""

    def training(self) -> TrainingConfig:
        """The recipe with `overrides`. Raises ValueError for an unknown setting and for what contradicts itself."""
        return override(recipes.load(self.recipe), self.overrides)

    def run_name(self) -> str:
        """A name that says what is trained: the recipe's, what differs of what is learned, and the seed."""
        base, config = recipes.load(self.recipe), self.training()
        changed = [leaf for leaf in leaves(TrainingConfig) if not leaf.operational and leaf.path != "seed"]
        pieces = [
            f"{leaf.short or leaf.path.rpartition('.')[2]}{brief(value_of(config, leaf.path))}"
            for leaf in changed
            if value_of(config, leaf.path) not in (None, value_of(base, leaf.path))
        ]
        whole = "-".join([brief_recipe(self.recipe), *pieces])
        if len(whole) > LONGEST_NAME:
            whole = f"{whole[:LONGEST_NAME]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
        return f"{whole}-seed{config.seed}"


LOG_LEVEL = "--log-level"
LONGEST_NAME = 80
"""Characters of a run's name before its seed; a longer one ends in a digest."""


def brief_recipe(source: str) -> str:
    """Name of a recipe, function, file or folder, as a part of a name."""
    name = source.rstrip("/").rpartition("/")[2].rpartition(":")[2].removesuffix(".toml")
    return re.sub(r"-seed\d+$", "", name)  # of a run's folder


def brief(value: Any) -> str:
    """A value as a part of a name."""
    if isinstance(value, tuple):
        return "_".join(map(brief, value))
    if value is None:
        return NONE
    text = f"{value:g}" if isinstance(value, float) else str(value).rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.+]+", "_", text)


REFUSED, GAVE_UP, STOPPED = 2, 3, 128 + signal.SIGTERM
FINAL = (0, REFUSED, GAVE_UP, STOPPED, 128 + signal.SIGINT)
"""Exit codes after which the same command would only end the same way, or should not go on."""
RESUBMITTED = "LLIP_RESUBMITTED"
"""Environment variable of a process that another one starts again."""


def run(settings: type[Settings], main: Callable[[Settings], object], description: str) -> None:
    """Parse the command line into `settings` and call `main`.

    Exit codes: 2 for a mistake that the user can mend, with one line that says how; 1 for a storage that does not
    answer; 3 for a run that no restart helps; 143 for a run that SIGTERM stopped.
    """
    atexit.register(gc.freeze)  # else the interpreter looks for cycles in PyTorch and Ray for two seconds as it ends
    level: Any = _given(LOG_LEVEL, sys.argv[1:]) or logs.DEFAULT
    try:
        parsed = parse(settings, sys.argv[1:], description)
        logs.configure(level)
        _refuse_a_relative_output_in_a_job(parsed)
        main(parsed)
    except (ValueError, *storage.FAILURES) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1 if storage.is_transient(error) else REFUSED)
    except (GaveUpError, NonFiniteError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(GAVE_UP)
    except StoppedError as error:
        print(error, file=sys.stderr)
        sys.exit(STOPPED)
    except Exception as error:
        if level == "debug":
            raise
        print(f"error: {_last_line(error)}\n{LOG_LEVEL} debug shows where", file=sys.stderr)
        sys.exit(1)


def _last_line(error: Exception) -> str:
    """An error in one line. Ray puts whole tracebacks of other processes into its own, the cause last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    return last if re.match(r"[\w.]+(Error|Exception)\b", last) else f"{type(error).__name__}: {last}"


def _refuse_a_relative_output_in_a_job(settings: Any) -> None:
    output = getattr(settings, "output", None)
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and output is not None and storage.absolute(output) != output:
        raise ValueError(
            f"--output {output} is relative: a job runs in a copy of the code that Ray throws away; "
            "name an absolute path that every node sees, or s3://…"
        )


def parse(settings: type[Settings], arguments: Sequence[str], description: str = "") -> Settings:
    """The settings that a command line gives. Raises ValueError for values that they cannot have."""
    if not issubclass(settings, Trained):
        parsed = tyro.cli(_options(settings), args=arguments, description=description)
        return settings(**_own(settings, parsed))
    source = _given("--recipe", arguments) or settings.recipe
    base = recipes.load(source)
    start = override(base, _default_overrides(settings))
    parsed = tyro.cli(_options(settings, start), args=arguments, description=description)
    values = {path: value for group in _GROUPS for path, value in vars(getattr(parsed, group)).items()}
    named = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
    given = {
        leaf.path: value
        for leaf in leaves(TrainingConfig)
        if (value := values[_attribute(leaf)]) != _shown(leaf, start) or _spellings(leaf) & named
    }
    cleared = {other for leaf in leaves(TrainingConfig) if leaf.path in given for other in leaf.excludes}
    kept = {p: v for p, v in _default_overrides(settings).items() if p not in cleared}
    overrides = kept | given
    if parsed.print_config:
        print(f'recipe = "{source}"' if source in recipes.RECIPES else f"# from {source}")
        print(to_toml(override(base, overrides), base), end="")
        sys.exit(0)
    return settings(**_own(settings, parsed), overrides=overrides)


def _default_overrides(settings: Any) -> Mapping[str, Any]:
    """The overrides of a command where none are given."""
    default: Any = next(f.default_factory for f in dataclasses.fields(settings) if f.name == "overrides")
    found: Mapping[str, Any] = default()
    return found


def _spellings(leaf: Leaf) -> set[str]:
    """The options of a leaf as they are written: one may be given the value that it has anyway."""
    head, dot, last = leaf.path.replace("_", "-").rpartition(".")
    short = (leaf.short.replace("_", "-"),) if leaf.short else ()
    return {f"--{name}" for name in (f"{head}{dot}{last}", f"{head}{dot}no-{last}", *short)}


def written(program: str, options: Mapping[str, Any]) -> str:
    """The command line that gives options, settings by their paths; `parse` reads the same from it."""
    words = []
    for name, value in options.items():
        head, dot, last = name.replace("_", "-").rpartition(".")
        if isinstance(value, bool):
            words.append(f"--{head}{dot}{'' if value else 'no-'}{last}")
        else:
            words += [f"--{head}{dot}{last}", *map(str, value if isinstance(value, tuple) else (value,))]
    return f"{program} {shlex.join(words)}"


def repeating(program: str, settings: Trained) -> str:
    """The command line that does the same: what is not as it is by default, with absolute places."""
    own = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings) if f.name != "overrides"}
    fields = {f.name: f for f in dataclasses.fields(settings)}
    changed = {
        name: value for name, value in own.items() if name in ("recipe", "output") or value != fields[name].default
    }
    for name, value in changed.items():
        if fields[name].metadata.get("metavar") == "FOLDER":
            changed[name] = tuple(map(storage.absolute, value)) if isinstance(value, tuple) else storage.absolute(value)
    return written(program, changed | dict(settings.overrides))


def _own(settings: type[Any], parsed: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(settings)
    values = {f.name: getattr(parsed, f.name) for f in dataclasses.fields(settings) if f.name != "overrides"}
    return {
        name: hints[name](**_own(hints[name], value)) if dataclasses.is_dataclass(hints[name]) else value
        for name, value in values.items()
    }


def _given(option: str, arguments: Sequence[str]) -> str | None:
    """The value of an option that has to be known first: the recipe's values are the defaults of the others."""
    for argument, following in itertools.pairwise([*arguments, ""]):
        name, _, value = argument.partition("=")
        if name.replace("_", "-") == option:
            return value or following
    return None


_GROUPS: dict[str, tuple[str, Callable[[Leaf], bool]]] = {
    "common": ("The settings that are changed most.", lambda leaf: leaf.short is not None),
    "run": ("How long and how it trains.", lambda leaf: "." not in leaf.path),
    "optimizer": ("AdamW and its schedule.", lambda leaf: leaf.path.startswith("optimizer.")),
    "objective": ("The loss, and how it is computed.", lambda leaf: leaf.path.startswith("objective.")),
    "data": ("What a step reads.", lambda leaf: leaf.path.startswith("data.")),
    "model": ("Towers and head.", lambda leaf: leaf.path.startswith("model.")),
}
"""Groups of the configuration's options, by what belongs to them; a leaf belongs to the first that takes it."""


def _options(settings: Any, base: TrainingConfig | None = None) -> Any:
    """A dataclass whose fields are the options of a command, made for tyro."""
    fields = _own_options(settings)
    told = tyro.conf.arg(help="Least level of what is logged; debug also shows where an error is from.")
    fields.append(("log_level", Annotated[logs.Level, told], field(default=logs.DEFAULT)))
    if base is not None:
        printed = tyro.conf.arg(help="Write the whole configuration as TOML, what differs marked, and stop.")
        fields.append(("print_config", Annotated[tyro.conf.FlagCreatePairsOff[bool], printed], field(default=False)))
        rest = list(leaves(TrainingConfig))
        for name, (title, belongs) in _GROUPS.items():
            taken = [leaf for leaf in rest if belongs(leaf)]
            rest = [leaf for leaf in rest if leaf not in taken]
            options = [_leaf_option(leaf, base) for leaf in taken]
            group: Any = make_dataclass(name, options, frozen=True, kw_only=True)
            group.__doc__ = title
            fields.append((name, Annotated[group, tyro.conf.OmitArgPrefixes], field(default_factory=group)))
    return make_dataclass(settings.__name__, fields, frozen=True, kw_only=True)


def _own_options(settings: Any) -> list[tuple[str, Any, Any]]:
    """The options of a dataclass of settings, and of those inside it."""
    hints, docs = typing.get_type_hints(settings, include_extras=True), field_docs(settings)
    found: list[tuple[str, Any, Any]] = []
    for f in dataclasses.fields(settings):
        if f.name == "overrides":
            continue
        inner: Any = _bare(hint := hints[f.name])
        if dataclasses.is_dataclass(inner):
            group: Any = make_dataclass(f.name, _own_options(inner), frozen=True, kw_only=True)
            group.__doc__ = inner.__doc__
            annotated = group if hint is inner else Annotated[group, *hint.__metadata__]
            found.append((f.name, annotated, field(default_factory=group)))
        else:
            found.append((f.name, _option(hint, docs.get(f.name, ""), f), _field(f)))
    return found


def _field(f: "dataclasses.Field[Any]") -> Any:
    if f.default_factory is not dataclasses.MISSING:
        return field(default_factory=f.default_factory)
    return field(default=f.default) if f.default is not dataclasses.MISSING else field()


def _bare(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _option(hint: Any, doc: str, f: "dataclasses.Field[Any]") -> Any:
    metavar = f.metadata.get("metavar") or _metavar(hint)
    return Annotated[
        hint, tyro.conf.arg(help=doc, metavar=metavar, help_behavior_hint="" if f.default is None else None)
    ]


def _attribute(leaf: Leaf) -> str:
    return leaf.path.replace(".", "__")


def _shown(leaf: Leaf, base: TrainingConfig) -> Any:
    """The value of a leaf as its option has it: a switch is on or off, also where nothing is decided yet."""
    value = value_of(base, leaf.path)
    return bool(value) if bool in typing.get_args(leaf.hint) else value


def _leaf_option(leaf: Leaf, base: TrainingConfig) -> tuple[str, Any, Any]:
    value = value_of(base, leaf.path)
    hint = bool if bool in typing.get_args(leaf.hint) else leaf.hint
    name = leaf.path.replace("_", "-")
    short = leaf.short and leaf.short.replace("_", "-")
    option = tyro.conf.arg(
        name=name,
        aliases=(f"--{short}",) if short and short != name else (),
        help=leaf.doc,
        metavar=_metavar(hint),
        help_behavior_hint="(default: none)" if value is None else None,
    )
    return _attribute(leaf), Annotated[hint, option], field(default=_shown(leaf, base))


def _metavar(hint: Any) -> str | None:
    """A type as help shows it; None for a switch, which takes no value."""
    hint = _bare(hint)
    if is_union(hint):
        members = [_metavar(member) for member in typing.get_args(hint) if member is not types.NoneType]
        return next((member for member in reversed(members) if member), None)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "|".join(map(str, arguments))
    if origin is tuple:
        first = _metavar(arguments[0]) or "VALUE"
        return f"{first} [{first} ...]" if arguments[-1] is Ellipsis else " ".join([first] * len(arguments))
    return {int: "INT", float: "FLOAT", str: "TEXT", bool: None}.get(hint, "VALUE")


def start_ray() -> None:
    """Join the cluster that this job was submitted to, or start one on this machine for as long as the program runs."""
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get(
        "RAY_ADDRESS", "local"
    )  # a bare ray.init() would try a stale cluster of another user of this machine
    start = partial(ray.init, address=address, log_to_driver=True, logging_level=logging.WARNING)
    try:
        start()
    except Exception as error:  # Ray gives a node of its own 30 s to start, however busy the machine
        if "timed out during startup" not in str(error):
            raise
        ray.shutdown()
        start()
