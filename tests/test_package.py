"""The package: what a wheel holds, and that the installed command works far from any checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.conftest import ROOT
from tests.environments import bare_environment, outside

LIBRARIES = ("bridge_core", "cluster", "jobs", "kernels", "storage")
PARTS = (*LIBRARIES, "surveybridge", "pyproject.toml", "README.md", "LICENSE")


def run(*command: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=cwd, env=outside(**variables), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done


def build_wheel(source: Path, into: Path) -> Path:
    """Build offline, with the setuptools that is here."""
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        str(source),
        "--no-deps",
        "--no-build-isolation",
        "-w",
        into,
    ]
    run(*command, cwd=into.parent)
    (wheel,) = into.glob("*.whl")
    return wheel


def files_in(wheel: Path) -> dict[str, bytes]:
    with ZipFile(wheel) as package:
        return {name: package.read(name) for name in package.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A checkout without what is not built from, so that a build leaves nothing in ours."""
    folder = tmp_path_factory.mktemp("package") / "checkout"
    folder.mkdir()
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(
                source, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".build-*")
            )
        else:
            shutil.copy(source, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(copy) -> Path:
    return build_wheel(copy, copy.parent / "wheels")


def test_the_libraries_are_links_that_any_place_of_the_checkout_follows():
    for name in LIBRARIES:
        link = ROOT / "surveybridge" / name
        assert link.is_symlink() and str(link.readlink()) == f"../{name}"


@pytest.mark.slow
def test_a_wheel_holds_every_file_of_the_package_and_one_name_to_import(wheel):
    packed = files_in(wheel)
    wanted = {
        f"surveybridge/{file.relative_to(ROOT)}": file.read_bytes()
        for library in LIBRARIES
        for file in (ROOT / library).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and file.parent != ROOT / "cluster" / "deploy"
        if file.suffix != ".so"  # built for this machine, and never packed
    }
    wanted |= {
        f"surveybridge/{file.name}": file.read_bytes() for file in (ROOT / "surveybridge").iterdir() if file.is_file()
    }
    assert sorted(packed) == sorted(wanted)
    assert packed == wanted
    with ZipFile(wheel) as package:
        tops = {name.split("/")[0] for name in package.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"surveybridge"} and len(tops) == 2


@pytest.mark.slow
def test_a_source_distribution_has_no_links_and_builds_the_same_wheel(copy, wheel):
    folder = copy.parent / "sdist"
    folder.mkdir()
    run(sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})", cwd=copy)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as package:
        assert not [member.name for member in package if member.issym() or member.islnk()]
    assert files_in(build_wheel(archive, folder / "wheels")) == files_in(wheel)


@pytest.fixture(scope="module")
def installed(tmp_path_factory, wheel) -> Path:
    """`bin` of an environment with the wheel."""
    return bare_environment(tmp_path_factory.mktemp("installed") / "env", wheel)


@pytest.mark.slow
def test_an_installation_is_one_name_to_import(installed, tmp_path):
    where = run(installed / "python", "-c", "import surveybridge; print(surveybridge.__file__)", cwd=tmp_path).stdout
    assert Path(where).is_relative_to(installed.parent)
    tried = f"""
import importlib
for name in {LIBRARIES}:
    try:
        importlib.import_module(name)
        print(name, "is there")
    except ModuleNotFoundError:
        importlib.import_module("surveybridge." + name)
"""
    assert run(installed / "python", "-c", tried, cwd=tmp_path).stdout == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code"),
    [("--version", 0), ("status --help", 0), ("status", 2), ("statos", 2), ("query --run none", 2)],
)
def test_the_command_and_the_module_are_the_same(installed, tmp_path, arguments, code):
    command, module = (
        subprocess.run([*start, *arguments.split()], cwd=tmp_path, env=outside(), capture_output=True, text=True)
        for start in ([installed / "surveybridge"], [installed / "python", "-m", "surveybridge"])
    )
    assert (command.returncode, command.stdout, command.stderr) == (code, module.stdout, module.stderr)
    assert module.returncode == code and (command.stdout or command.stderr)


@pytest.mark.slow
def test_the_installed_command_runs_a_demo_far_from_any_checkout(installed, tmp_path):
    pytest.importorskip("galsim", reason="needs the sim extra")
    small = ["--size", "300", "--lenses", "0", "--samples", "2", "--steps", "1", "--workers", "1"]
    ray = tempfile.mkdtemp(prefix="pkg", dir="/tmp")  # Ray's sockets need a short path
    try:
        done = run(installed / "surveybridge", "demo", "--out", "demo", *small, cwd=tmp_path, RAY_TMPDIR=ray)
    finally:
        shutil.rmtree(ray, ignore_errors=True)
    assert "demo/demo.png: both surveys" in done.stdout
    assert (tmp_path / "demo" / "demo.png").is_file()
