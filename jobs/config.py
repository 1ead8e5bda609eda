"""Typed job configuration, and the command line made from it.

A job declares its settings once, as a frozen `JobConfig`. The flags, the ``key=value`` form, the TOML or YAML file,
``--help`` and the checks all come from that declaration. The command line overrides the file.
"""

from __future__ import annotations

import argparse
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn, TypeVar, Union

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from surveybridge.storage.positions import bounds, position_and_angle


class RequestError(ValueError):
    """An error of the request: the command line prints it as one line and exits with 2, before anything is written."""


class JobConfig(BaseModel):
    """Base class of every job's ``Config``: it is frozen and refuses unknown keys.

    Fields are scalars, paths, literals, or tuples of those, each with a ``Field(description=...)`` that names its unit.
    A tuple takes several values: ``--lsst g.fits r.fits i.fits`` or ``lsst=g.fits,r.fits,i.fits``. After a flag,
    numbers may be joined by commas, too (``--cone 150.1,2.2,10``).
    """

    # The validator is built for the first values: --help needs none, and building takes longer than all the rest of it.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    storage_options: Path | None = Field(
        None,
        description="TOML or YAML file of fsspec's options by protocol, such as [s3] profile = 'survey' (never logged)",
    )

    after_dashes: ClassVar[str | None] = None
    """Name of the field, a tuple of text, that takes everything after ``--`` on the command line, word for word."""

    bare_words: ClassVar[str | None] = None
    """Name of the field, a tuple of text, that takes the words that stand alone on the command line."""

    named_values: ClassVar[tuple[str, ...]] = ()
    """Fields, tuples of text such as NAME=VALUE, whose flag takes every word up to the next flag."""

    writes: ClassVar[tuple[str, ...]] = ()
    """Fields that name a folder or file to be written; the job is refused where one of them cannot be."""

    @property
    def destinations(self) -> tuple[str, ...]:
        """Paths or URLs of everything that the job will write."""
        return tuple(str(value) for name in self.writes if (value := getattr(self, name)) is not None)


Texts = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]
"""Several texts; in a file or in Python one may stand without its brackets."""

ConfigT = TypeVar("ConfigT", bound=JobConfig)

SkyCircle = Annotated[
    tuple[float, float, float] | None,
    BeforeValidator(lambda given: None if given is None else position_and_angle(given)),
]
"""A position, ICRS degrees, and an angle, arcsec, as `storage.positions` reads it: decimal or sexagesimal."""

SkyBox = Annotated[
    tuple[float, float, float, float] | None,
    BeforeValidator(lambda given: None if given is None else bounds(given)),
]
"""RAMIN, RAMAX, DECMIN and DECMAX, ICRS degrees, written as a `SkyCircle`'s position is."""


def parse_config(
    model: type[ConfigT], argv: Sequence[str], *, prog: str, about: str = "", examples: str = ""
) -> ConfigT:
    """Read a job's configuration from its command line.

    Parameters
    ----------
    model : type[JobConfig]
        The settings of the job.
    argv : sequence of str
        ``--field-name value``, ``field_name=value`` and ``--config FILE`` in any order. ``--help`` prints and exits 0.
    prog, about, examples : str
        The command's name, its description and its examples, for ``--help`` and for messages.

    Returns
    -------
    JobConfig
        An instance of `model`.

    Raises
    ------
    RequestError
        If a setting is unknown, repeated, missing or invalid, or a file cannot be read; one line, with the remedy.
    """
    argv, after = _split_dashes(model, argv)
    pairs, rest = _split_pairs(model, argv)
    flags, unknown = parser_of(model, prog, about, examples).parse_known_args(rest)
    given = vars(flags)
    if model.bare_words is not None:
        # argparse takes the first words that stand together, and leaves those after a flag
        words = [*given.get(model.bare_words, ()), *(word for word in unknown if not word.startswith("-"))]
        unknown = [word for word in unknown if word.startswith("-")]
        given |= {model.bare_words: words} if words else {}
    if unknown:
        raise RequestError(_unknown_argument(model, unknown[0]))
    config_file: Path | None = given.pop("config", None)
    repeated = sorted(pairs.keys() & given.keys())
    if repeated:
        name = repeated[0]
        raise RequestError(f"{_flag(name)} {given[name]!r} and {name}={pairs[name]} are both given; keep one")
    values = {name: _split_commas(model.model_fields[name], value) for name, value in (pairs | given).items()} | after
    from_file = read_config_file(config_file, model) if config_file else {}
    try:
        return model.model_validate(from_file | values)
    except ValidationError as error:
        origin = f" ({config_file})" if config_file else ""
        problems = [
            _problem(model, detail, origin if detail["loc"][:1] and detail["loc"][0] not in values else "")
            for detail in error.errors()
        ]
        raise RequestError(f"{'; '.join(problems)}; see {prog} --help") from None


def read_config_file(path: Path, model: type[JobConfig]) -> dict[str, Any]:
    """Read settings from a TOML or YAML file; RequestError unless it is a flat table of the model's own names."""
    values = read_table(path, "--config")
    settings = {str(key).replace("-", "_"): value for key, value in values.items()}
    for name in settings:
        if name not in model.model_fields:
            raise RequestError(f"--config {path}: unknown setting '{name}'{_suggest(name, model.model_fields)}")
    return settings


def read_storage_options(path: Path) -> dict[str, dict[str, Any]]:
    """Read fsspec's options by protocol from a TOML or YAML file; a RequestError about it quotes none of its values."""
    options = read_table(path, "--storage-options", secret=True)
    for protocol, values in options.items():
        if not isinstance(values, dict):
            raise RequestError(
                f"--storage-options {path}: {protocol} is not a table of options; write [s3], then one option per line"
            )
    return options


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the name in `known` that is most similar to `name`, or an empty string if none is similar."""
    import difflib

    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)), "")


# -- the command line --


class _Parser(argparse.ArgumentParser):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # Of themselves argparse's values are -3.5, but neither -3.5,-27.8,10 nor -02:10:30.
        self._negative_number_matcher = re.compile(r"[-\N{MINUS SIGN}]\.?\d")

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message}; see {self.prog} --help")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=110)


def parser_of(model: type[JobConfig], prog: str, about: str = "", examples: str = "") -> argparse.ArgumentParser:
    """Return the parser of a job's flags, with its help; the arguments are those of `parse_config`."""
    needed = [
        f"{_flag(name)} {_metavar(name, field)}{' ...' if _is_tuple(field) else ''}"
        for name, field in model.model_fields.items()
        if field.is_required() and name not in (model.after_dashes, model.bare_words)
    ]
    words = [] if model.bare_words is None else [f"{model.bare_words.upper()} ..."]
    dashes = [] if model.after_dashes is None else [f"-- {model.after_dashes.upper()} ..."]
    shown = textwrap.indent(textwrap.dedent(examples).strip("\n"), "  ")
    parser = _Parser(
        prog=prog,
        usage=" ".join([prog, *words, *needed, "[--config FILE] [--name VALUE ...] [name=value ...]", *dashes]),
        description=about.strip() or None,
        epilog=f"examples:\n{shown}" if shown else None,
        formatter_class=_Formatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    required, optional = parser.add_argument_group("required"), parser.add_argument_group("settings")
    for name, field in _own_first(model).items():
        if name == model.after_dashes:
            # Shown in --help only: `_split_dashes` has removed it before anything is parsed.
            required.add_argument("--", dest=name, nargs="+", metavar=name.upper(), help=field.description)
            continue
        if name == model.bare_words:
            required.add_argument(name, nargs="*", metavar=name.upper(), help=field.description)
            continue
        help_text = (field.description or "").replace("%", "%%")
        if field.is_required():
            group = required
        else:
            group = optional
            help_text += _default_note(field).replace("%", "%%")
        kind: dict[str, Any] = (
            {"action": argparse.BooleanOptionalAction} if _is_bool(field) else {"metavar": _metavar(name, field)}
        )
        if _is_tuple(field):
            kind["nargs"] = "+"
        group.add_argument(_flag(name), dest=name, help=help_text.strip(), **kind)
    optional.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="TOML or YAML file with settings under these same names; the command line overrides it",
    )
    return parser


def _split_dashes(model: type[JobConfig], argv: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Split off what follows ``--``, for the field that takes it."""
    if model.after_dashes is None or "--" not in argv:
        return list(argv), {}
    where = list(argv).index("--")
    return list(argv[:where]), {model.after_dashes: list(argv[where + 1 :])}


def _split_pairs(model: type[JobConfig], argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Take the ``name=value`` arguments out; one right after a flag is that flag's value (``--sql a=1``).

    After the flag of one of ``named_values`` all are.
    """
    takes_value = {_flag(name) for name, field in model.model_fields.items() if not _is_bool(field)} | {"--config"}
    pairs: dict[str, str] = {}
    rest: list[str] = []
    previous = flag = ""
    named = {_flag(name) for name in model.named_values}
    for argument in argv:
        flag = argument.partition("=")[0] if argument.startswith("--") else flag
        match = None if flag in named else re.match(r"([A-Za-z][\w-]*)=(.*)", argument, re.DOTALL)
        name = match[1].replace("-", "_") if match else ""
        if match and previous not in takes_value and name in model.model_fields:
            if name in pairs:
                raise RequestError(f"{name}={pairs[name]} and {name}={match[2]} are both given; keep one")
            pairs[name] = match[2]
        elif match and previous not in takes_value and name == "config":
            rest += ["--config", match[2]]
        else:
            rest.append(argument)
        previous = argument
    return pairs, rest


def _split_commas(field: FieldInfo, value: Any) -> Any:
    """Split a tuple's text at its commas; after a flag only if it holds numbers, since file names may have commas."""
    if not _is_tuple(field):
        return value
    if isinstance(value, str):
        return value.split(",")
    if {int, float} & set(_leaves(field.annotation)):
        return [part for text in value for part in text.split(",") if part]
    return value


def _unknown_argument(model: type[JobConfig], argument: str) -> str:
    name = argument.lstrip("-").partition("=")[0].replace("-", "_")
    if argument.startswith("--") or "=" in argument:
        return f"unknown setting '{argument.partition('=')[0]}'{_suggest(name, [*_own_first(model), 'config'])}"
    return f"unexpected argument '{argument}'; settings are given as --name value or name=value"


def _suggest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    nearest = suggestion(name, known)
    return f"; did you mean {_flag(nearest)}?" if nearest else f"; known: {', '.join(known)}"


def read_table(path: Path, flag: str, *, secret: bool = False) -> dict[str, Any]:
    """Read a TOML or YAML file that holds a table; errors do not quote the contents of a secret one."""
    try:
        values = _loads(path, path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"{flag} {path}: {getattr(error, 'strerror', None) or error}; give a TOML or YAML file"
        ) from None
    except ValueError as error:
        # YAML's messages quote the line that they complain about, which may hold a key
        said = "is not valid in the format of its ending" if secret else " ".join(str(error).split())
        raise RequestError(f"{flag} {path}: {said}") from None
    if not isinstance(values, dict):
        raise RequestError(
            f"{flag} {path}: holds a {type(values).__name__}, but must hold a table of settings (name: value)"
        )
    return values


def _loads(path: Path, text: str) -> Any:
    if path.suffix == ".toml":
        import tomllib

        return tomllib.loads(text)
    if path.suffix in (".yaml", ".yml"):
        import yaml

        class Loader(yaml.SafeLoader):
            def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
                # YAML 1.1 takes 10:00:24 for a number of seconds; here it is a position.
                if kind is yaml.ScalarNode and implicit[0] and re.fullmatch(r"[+-]?\d+(:\d+)+(\.\d*)?", value):
                    return "tag:yaml.org,2002:str"
                return super().resolve(kind, value, implicit)

        try:
            return yaml.load(text, Loader) or {}
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from None
    raise ValueError(f"has the ending '{path.suffix}', but must end in .toml, .yaml or .yml")


# -- messages, and the types behind them --


def _problem(model: type[JobConfig], detail: ErrorDetails, origin: str) -> str:
    """Describe in words what pydantic found wrong with one setting."""
    if not detail["loc"]:
        return detail["msg"].removeprefix("Value error, ")
    name = str(detail["loc"][0])
    label = {model.after_dashes: f"-- {name.upper()} ...", model.bare_words: f"{name.upper()} ..."}.get(
        name, _flag(name)
    )
    value = detail["input"]
    if detail["type"] == "missing" and len(detail["loc"]) == 1:
        return f"{label} is required"
    given = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if detail["type"] == "missing":
        message = f"more than {len(value)} values are required"
    return f"{label} {given}{origin}: {message}"


def _own_first(model: type[JobConfig]) -> dict[str, FieldInfo]:
    """Return the fields in the order of --help, where those that all jobs share come last."""
    fields = model.model_fields
    return {name: fields[name] for name in sorted(fields, key=lambda name: name in JobConfig.model_fields)}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _default_note(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if default is None or default in ("", ()):
        return ""
    text = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return f" (default: {text})"


def _metavar(name: str, field: FieldInfo) -> str:
    choices = [str(choice) for choice in _leaves(field.annotation, literals=True)]
    if choices:
        return "{" + ",".join(choices) + "}"
    leaves = set(_leaves(field.annotation))
    names: Mapping[type, str] = {int: "N", float: "X", Path: "PATH", str: "TEXT"}
    return next((label for kind, label in names.items() if kind in leaves), name.upper())


def _is_bool(field: FieldInfo) -> bool:
    return set(_leaves(field.annotation)) == {bool}


def _is_tuple(field: FieldInfo) -> bool:
    return any(typing.get_origin(arm) is tuple for arm in _arms(field.annotation))


def _arms(annotation: Any) -> list[Any]:
    """Return the members of a union, without None; a plain type is its own only member."""
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return [arm for arm in typing.get_args(annotation) if arm is not types.NoneType]
    return [annotation]


def _leaves(annotation: Any, literals: bool = False) -> list[Any]:
    """Return the scalar types inside an annotation, or with `literals` the values that its ``Literal``s allow."""
    leaves: list[Any] = []
    for arm in _arms(annotation):
        origin = typing.get_origin(arm)
        if origin is Literal:
            leaves += typing.get_args(arm) if literals else []
        elif origin is not None:
            for inner in typing.get_args(arm):
                leaves += _leaves(inner, literals) if inner is not Ellipsis else []
        elif not literals:
            leaves.append(arm)
    return leaves
