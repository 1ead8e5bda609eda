"""The command line: what it accepts, what it refuses and how, and that every documented command would be accepted."""

from __future__ import annotations

import functools
import importlib
import io
import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
from pydantic import Field, model_validator

from surveybridge import __main__ as command
from surveybridge import __version__
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.jobs.config import JobConfig, RequestError, SkyCircle, parse_config
from surveybridge.jobs.registry import available_jobs, module_of
from surveybridge.jobs.running.progress import progress, setup_logging
from surveybridge.storage.errors import StorageError

ROOT = Path(__file__).resolve().parents[2]


class Config(JobConfig):
    store: str = Field(description="tile store, folder or s3:// address")
    tile_size: int = Field(512, gt=0, description="core of a tile, pixels of 0.1 arcsec")
    lsst: tuple[str, str, str] = Field(("g", "r", "i"), description="one file a band")
    cone: SkyCircle = Field(None, description="ra, dec in degrees, radius in arcsec")
    direction: Literal["lsst->euclid", "euclid->lsst"] = Field("lsst->euclid", description="which survey is wanted")
    checkpoint: Path | None = Field(None, description="model; 100% of runs need one")
    ema: bool = Field(True, description="use the averaged weights")
    sql: str | None = Field(None, description="a query")

    @model_validator(mode="after")
    def _tile_holds_halo(self) -> Config:
        if self.tile_size % 64:
            raise ValueError(f"--tile-size {self.tile_size} is no multiple of 64")
        return self


def parse(*argv: str) -> Config:
    return parse_config(Config, argv, prog="surveybridge job", about="Does the work.", examples="  surveybridge job")


def test_flags_and_pairs_give_the_same_config():
    flags = parse("--store", "s3://b/p", "--tile-size", "256", "--lsst", "a", "b", "c", "--cone", "1,-2,3", "--no-ema")
    pairs = parse("store=s3://b/p", "tile_size=256", "lsst=a,b,c", "cone=1,-2,3", "ema=false")
    assert flags == pairs
    assert flags.cone == (1.0, -2.0, 3.0)
    assert parse("tile-size=256", "--store=x", "--cone", "1", "-2", "3").cone == (1.0, -2.0, 3.0)


@pytest.mark.parametrize(
    "words",
    [["-0.375,-7.5,12"], ["-0.375", "-7.5", "12"], ["-0.375, -7.5, 12"], ["-0:01:30", "-07:30:00", "12"],
     ["-0:01:30 -7:30:00 12"], ["-0h01m30s,-7d30m00s,12\""], ["-.375,-7.5", "12"], ["\N{MINUS SIGN}0.375,-7.5,12"]],
)  # fmt: skip
def test_a_position_may_be_negative_and_sexagesimal_after_a_flag_in_a_pair_and_in_a_file(tmp_path, words):
    argvs = [["--cone", *words], ["--cone", *words, "--tile-size", "64"]]
    if len(words) == 1:
        argvs += [[f"--cone={words[0]}"], [f"cone={words[0]}"]]
        quoted = words[0].replace('"', '\\"')
        (tmp_path / "a.toml").write_text(f'\ufeffcone = "{quoted}"\n', "utf-8")
        argvs += [["--config", str(tmp_path / "a.toml")]]
    (tmp_path / "b.yaml").write_text("cone:\n" + "".join(f"- {word}\n" for word in words), "utf-8")
    argvs += [["--config", str(tmp_path / "b.yaml")]]
    for argv in argvs:
        assert parse("store=x", *argv).cone == pytest.approx((-0.375, -7.5, 12.0))


@pytest.mark.parametrize("job", ["query", "vet", "export"])
@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["10:00:00", "-2:75:00", "5"], "--{flag} 10:00:00 -2:75:00 5: declination -2:75:00 has 75 minutes"),
        (["-3.5,-97.8,10"], "--{flag} -3.5 -97.8 10: declination -97.8 is -97.8 deg, outside -90..90"),
        (["10:00:00 -02:10:30"], "has 2 value(s) but needs 3; give RA,DEC,ARCSEC"),
        (["ten,-2,10"], "right ascension 'ten' is no angle"),
    ],
)
def test_positions_that_are_none_are_refused_by_every_job_that_takes_one(capsys, job, words, complaint):
    flag = "cutout" if job == "export" else "cone"
    rest = ["out=x.fits"] if job == "export" else []
    assert command.main([job, "run=nowhere", *rest, f"--{flag}", *words]) == 2
    said = capsys.readouterr().err
    assert complaint.format(flag=flag) in said and said.count("\n") == 1


def test_a_box_is_given_as_a_cone_is(capsys):
    wanted = importlib.import_module("surveybridge.jobs.query").Config(run="x", box=(-0.375, 0.5, -7.5, -7.25))
    for words in (["-0.375,0.5,-7.5,-7.25"], ["-0:01:30", "0:02:00", "-7:30:00", "-7d15m"], ["-0.375 0.5 -7.5 -7.25"]):
        config = parse_config(type(wanted), ["run=x", "--box", *words], prog="surveybridge query")
        assert config == wanted
    assert command.main(["query", "run=x", "--box", "-0.375,0.5,-7.5"]) == 2
    assert "has 3 value(s) but needs 4; give RAMIN,RAMAX,DECMIN,DECMAX" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("job.toml", 'store = "from-file"\ntile_size = 128\nlsst = ["a", "b", "c"]\n'),
        ("job.yaml", "store: from-file\ntile-size: 128\nlsst: [a, b, c]\n"),
    ],
)
def test_command_line_overrides_file(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    config = parse("--config", str(tmp_path / name), "tile_size=256")
    assert (config.store, config.tile_size, config.lsst) == ("from-file", 256, ("a", "b", "c"))
    assert parse(f"config={tmp_path / name}").tile_size == 128


def test_text_that_looks_like_a_pair_stays_a_flags_value():
    config = parse(
        "--sql", "store=1", "--store", "x=y", "--lsst", "tract=1/g", "tract=1/r", "tract=1/i", "tile_size=64"
    )
    assert (config.sql, config.store, config.tile_size) == ("store=1", "x=y", 64)
    assert config.lsst == ("tract=1/g", "tract=1/r", "tract=1/i")


def test_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        parse("store=x").tile_size = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), ["--store is required", "surveybridge job --help"]),
        (("store=x", "--tile-sise", "3"), ["unknown setting '--tile-sise'", "did you mean --tile-size?"]),
        (("store=x", "tilesize=3"), ["unknown setting 'tilesize'", "did you mean --tile-size?"]),
        (("store=x", "zzz=3"), ["unknown setting 'zzz'", "known: store, tile_size"]),
        (("store=x", "stray"), ["unexpected argument 'stray'"]),
        (("store=x", "tile_size=0"), ["--tile-size 0", "greater than 0"]),
        (("store=x", "tile_size=many"), ["--tile-size many", "valid integer"]),
        (("store=x", "tile_size=65"), ["--tile-size 65 is no multiple of 64"]),
        (("store=x", "tile_size=64", "--tile-size", "128"), ["--tile-size '128' and tile_size=64 are both given"]),
        (("store=x", "store=y"), ["store=x and store=y are both given"]),
        (("store=x", "--lsst", "a", "b"), ["--lsst", "required"]),
        (("store=x", "--cone", "1,nan,2"), ["--cone", "declination 'nan' is no angle"]),
        (("store=x", "--direction", "lsst-"), ["--direction lsst-", "'lsst->euclid' or 'euclid->lsst'"]),
        (("store=x", "--tile-size"), ["--tile-size", "expected one argument"]),
        (("--config", "absent.toml"), ["--config absent.toml: No such file"]),
    ],
)
def test_wrong_request_is_one_line_that_names_the_remedy(argv, said):
    with pytest.raises(RequestError) as caught:
        parse(*argv)
    assert "\n" not in str(caught.value)
    for words in said:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("job.toml", "tile_sice = 3\n", "unknown setting 'tile_sice'; did you mean --tile-size?"),
        ("job.toml", "tile_size = = 3\n", "Invalid value"),
        ("job.yaml", "- a\n- b\n", "holds a list, but must hold a table"),
        ("job.yaml", "a: [1\n", "expected"),
        ("job.ini", "a=1\n", "has the ending '.ini', but must end in .toml, .yaml or .yml"),
        ("job.toml", 'store = "x"\ntile_size = -1\n', "--tile-size -1 ("),
    ],
)
def test_wrong_file_is_named(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(RequestError) as caught:
        parse("--config", str(tmp_path / name))
    assert said in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_help_shows_description_defaults_and_examples(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for words in (
        "Does the work.",
        "core of a tile, pixels of 0.1 arcsec (default: 512)",
        "(default: g r i)",
        "100% of runs",
    ):
        assert words in shown
    assert shown.index("--store") < shown.index("--tile-size")
    assert shown.rstrip().endswith("surveybridge job")


class WorkerError(StorageError):
    """What Ray raises: an error that is also of the original's class, and keeps the original as its cause."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("ray::worker()\n  Traceback ...")
        self.cause = cause


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RequestError("a\n  b"), 2, "surveybridge query: error: a b\n"),
        (StorageError("no store"), 2, "surveybridge query: error: no store\n"),
        (BridgeError("no model"), 2, "surveybridge query: error: no model\n"),
        (WorkerError(StorageError("no tile")), 2, "surveybridge query: error: no tile\n"),
        (KeyboardInterrupt(), 130, "surveybridge query: interrupted\n"),
    ],
)
def test_errors_become_exit_codes(monkeypatch, capsys, error, code, said):
    def run(config: Config) -> int:
        raise error

    plant_query(monkeypatch, run)
    assert command.main(["query", "store=x"]) == code
    assert capsys.readouterr().err == said


def test_other_errors_keep_their_traceback(monkeypatch):
    def run(config: Config) -> int:
        raise ValueError("a bug of ours")

    plant_query(monkeypatch, run)
    with pytest.raises(ValueError, match="a bug of ours"):
        command.main(["query", "store=x"])


def test_jobs_exit_code_is_the_commands(monkeypatch):
    plant_query(monkeypatch, lambda config: 3 if config.tile_size == 64 else 0)
    assert command.main(["query", "store=x", "tile_size=64"]) == 3
    assert command.main(["query", "store=x"]) == 0


def plant_query(monkeypatch, run):
    module = SimpleNamespace(Config=Config, run=run, EXAMPLES="", __doc__="Planted.")
    monkeypatch.setattr("importlib.import_module", lambda name: module)


def test_unknown_job_is_refused_with_the_nearest(capsys):
    assert command.main(["quary"]) == 2
    assert capsys.readouterr().err == "surveybridge: error: unknown job 'quary'; did you mean query?\n"


def test_command_without_a_job_lists_jobs(capsys):
    assert command.main([]) == 0
    shown = capsys.readouterr().out
    for name in available_jobs():
        first_line = (importlib.import_module(f"surveybridge.jobs.{module_of(name)}").__doc__ or "").partition("\n")[0]
        assert re.search(rf"^  {name} +{re.escape(first_line)}$", shown, re.MULTILINE), name


def test_version_is_printed(capsys):
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"surveybridge {__version__}\n"


LOADED = """
import runpy, sys
code = "did not end by itself"
try:
    runpy.run_module("surveybridge", run_name="__main__", alter_sys=True)
except SystemExit as end:
    code = end.code
print(*sys.modules)
sys.exit(code)
"""
"""As `python -m surveybridge`, and then what is loaded."""

HELP_NEEDS = {
    "surveybridge", "pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection",
}  # fmt: skip

HEAVY = {"asyncio", "csv", "difflib", "email", "importlib.metadata", "socket", "tempfile", "zipfile"}
"""Python's own modules that take milliseconds each, and that only a run needs."""


@pytest.mark.parametrize("arguments", [(), *((job, "--help") for job in available_jobs())], ids=" ".join)
def test_help_loads_nothing_but_pydantic(arguments):
    loaded = set(help_of(*arguments)[0].splitlines()[-1].split()) - modules_of_python()
    packages = {name.split(".")[0] for name in loaded if not name.startswith("_")}
    assert packages - set(sys.stdlib_module_names) <= HELP_NEEDS
    assert not loaded & HEAVY


@functools.cache
def modules_of_python() -> set[str]:
    return set(run_python("-c", "import sys; print(*sys.modules)").stdout.split())


@functools.cache
def help_of(*arguments: str) -> tuple[str, float]:
    """What `LOADED` prints, and its processor time: two tests look at the same processes."""
    return run_and_count("-c", LOADED, *arguments)


def test_every_help_takes_little_more_time_than_importing_what_settings_are_declared_and_read_with():
    # `import pydantic` alone loads nothing that anyone uses
    imports = ["-c", "import yaml; from pydantic import BaseModel, Field, ValidationError"]
    commands = {job: ["-m", "surveybridge", job, "--help"] for job in available_jobs()}
    slow: dict[str, float] = {}
    for rounds in (0, 5, 20, 60):  # those that were too slow are tried again, in case that the machine was busy
        if rounds:
            taken = processor_seconds({"": imports} | {job: commands[job] for job in slow}, rounds)
        else:
            taken = processor_seconds({"": imports}, 1) | {job: help_of(job, "--help")[1] for job in commands}
        slow = {job: seconds / taken[""] for job, seconds in taken.items() if seconds >= 1.3 * taken[""]}
        if not slow:
            return
    raise AssertionError(f"times as long as `{imports[1]}`: {slow}")


def processor_seconds(commands: dict[str, list[str]], rounds: int) -> dict[str, float]:
    """Least processor time that Python takes for each command, which others only add to; they take turns."""
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, arguments in commands.items():
            taken[name].append(run_and_count(*arguments)[1])
    return {name: min(values) for name, values in taken.items()}


def run_and_count(*arguments: str) -> tuple[str, float]:
    """What Python prints, and its processor time."""
    with subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, arguments
    return printed, used.ru_utime + used.ru_stime


def test_the_settings_of_every_job_can_be_validated():
    # `JobConfig` builds its validator late, so that importing the job does not show it.
    for job in available_jobs():
        module = importlib.import_module(f"surveybridge.jobs.{module_of(job)}")
        assert module.Config.model_rebuild(force=True), job


def test_module_and_exit_code_work_as_a_process():
    result = run_python("-m", "surveybridge", "translate", "--stroe", "x", check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("surveybridge translate: error: unknown setting '--stroe'")
    assert len(result.stderr.splitlines()) == 1


def run_python(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, check=check, capture_output=True, text=True, timeout=60
    )


# -- what every job owes, and what the documents promise --


@pytest.mark.parametrize("job", available_jobs())
def test_job_keeps_the_form_of_jobs(job):
    module = importlib.import_module(f"surveybridge.jobs.{module_of(job)}")
    assert issubclass(module.Config, JobConfig)
    assert callable(module.run)
    for name, field in module.Config.model_fields.items():
        assert field.description, f"{job} --{name} has no description"
        assert name != "config", "--config is the settings file"


def documented_commands() -> list[tuple[str, str]]:
    """Every `surveybridge JOB ...` line of the jobs' EXAMPLES and of the code blocks of README and docs (not notes)."""
    texts = {
        f"jobs/{module_of(job)}.py": importlib.import_module(f"surveybridge.jobs.{module_of(job)}").EXAMPLES
        for job in available_jobs()
    }
    pages = [page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent.name != "notes"]
    for path in [ROOT / "README.md", *pages]:
        texts[path.relative_to(ROOT).as_posix()] = "\n".join(
            re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
        )
    found = []
    for where, text in texts.items():
        for line in re.sub(r"\\\n\s*", " ", text).splitlines():
            if match := re.search(r"(?:^|[ /])(?:surveybridge|python -m surveybridge) +([a-z].*)", line):
                found.append((where, re.split(r";\s|\s&\s|\s\|\s", match[1])[0]))  # without the rest of the script
    return found


def test_every_documented_command_parses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for page in (ROOT / "docs").glob("*.md"):  # the files that the commands name
        for name, text in re.findall(r"^```toml\n# (\S+)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            (tmp_path / name).write_text(text)
    commands = documented_commands()
    assert len(commands) >= len(available_jobs())
    for where, line in commands:
        job, *argv = shlex.split(line, comments=True)
        assert ">" not in re.sub(r"'[^']*'|\"[^\"]*\"", "", line), f"{where}: unquoted > in: {line}"
        module = importlib.import_module(f"surveybridge.jobs.{module_of(job)}")
        try:
            parse_config(module.Config, [item for item in argv if item != "--help"], prog=f"surveybridge {job}")
        except RequestError as error:
            assert "--help" in argv and "is required" in str(error), f"{where}: surveybridge {line}: {error}"
            continue


def test_every_test_that_the_promises_name_exists():
    page = (ROOT / "docs" / "promises.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", page)
    assert named
    for line in page.splitlines():
        if line.startswith("| ") and line != "| promise | test |":
            paths = re.findall(r"`(tests/[\w/.]+)(?:::test_\w+)?` \|$", line)
            assert len(paths) == 1 and (ROOT / paths[0]).exists(), f"no test holds: {line}"
    missing = [f"{path}::{name}" for path, name in named if f"def {name}(" not in read_if_there(ROOT / path)]
    assert missing == []


def read_if_there(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


# -- how a job speaks --


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal_and_lines_in_a_log():
    terminal, log = Terminal(), io.StringIO()
    assert list(progress([1, 2], "translate", stream=terminal)) == [1, 2]
    assert list(progress(iter([1, 2]), "translate", 2, every=0.0, stream=log)) == [1, 2]
    assert terminal.getvalue().count("\n") == 1
    assert "[########################] 2/2 tiles" in terminal.getvalue()
    assert re.fullmatch(r"translate: 1/2 tiles in 0:00, 0:00 left\n(translate: 2/2 tiles in 0:00\n){2}", log.getvalue())


def test_progress_reports_how_far_it_came_when_interrupted():
    log = io.StringIO()
    with pytest.raises(RuntimeError, match="tile 2"):
        for tile in progress(range(1, 5), "translate", stream=log):
            if tile == 2:
                raise RuntimeError("tile 2")
    assert "translate: 1/4 tiles" in log.getvalue()


def test_logging_prints_plain_lines(monkeypatch):
    stream, root = io.StringIO(), logging.getLogger()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    try:
        setup_logging()
        logging.getLogger("surveybridge.storage.ingest").info("wrote tile t0001")
        logging.getLogger("somebody.else").info("chatter")
    finally:
        root.setLevel(level)
    assert re.fullmatch(r"\d\d:\d\d:\d\d INFO surveybridge.storage.ingest: wrote tile t0001\n", stream.getvalue())
