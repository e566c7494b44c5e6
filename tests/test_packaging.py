from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distributions, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import affinity_lib

ROOT = Path(affinity_lib.__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDED = [
    Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
]
NAMES_IN_CONDA = {"pytorch-cpu": "torch"}
ONLY_IN_CONDA = {"python", "pip", "cxx-compiler"}


def pins(lines: list[str]) -> dict[str, str]:
    found = {}
    for line in lines:
        if not line.startswith(("#", "-e")):
            name, version = re.fullmatch(r"([\w.-]+)==?([\w.]+)", line).groups()
            found[canonicalize_name(name)] = version
    return found


@pytest.fixture(scope="module")
def constraints() -> dict[str, str]:
    return pins((ROOT / "constraints.txt").read_text(encoding="utf-8").split("\n")[:-1])


@pytest.fixture(scope="module")
def conda() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("needed", NEEDED, ids=str)
def test_constraints_pin_a_version_that_the_project_accepts(needed, constraints):
    assert needed.specifier.contains(constraints[canonicalize_name(needed.name)])


def test_conda_environment_has_exactly_the_projects_packages_at_the_pinned_versions(
    constraints, conda
):
    *plain, by_pip = conda["dependencies"]
    versions = pins([line for line in plain if line not in ONLY_IN_CONDA] + by_pip["pip"])
    python = versions.pop("python")
    versions = {NAMES_IN_CONDA.get(name, name): version for name, version in versions.items()}
    names = {canonicalize_name(needed.name) for needed in NEEDED}
    assert versions == {name: constraints[name] for name in names}
    assert f"{python}.0" in Requirement(f"python{PROJECT['requires-python']}").specifier


def test_conda_environment_becomes_one_with_a_gpu_by_the_command_that_it_names():
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    (old, new), *more = re.findall(r"sed s/([\w-]+)/([\w-]+)/ environment\.yml", text)
    packages = [line for line in text.split("\n") if not line.startswith("#") and old in line]
    assert (old, new, more, len(packages)) == ("pytorch-cpu", "pytorch-gpu", [], 1)


def test_conda_environment_uses_conda_forge_alone(conda):
    assert conda["channels"] == ["conda-forge", "nodefaults"]


def test_constraints_leave_out_what_only_some_platforms_have(constraints):
    assert not [name for name in constraints if name.startswith(("nvidia", "cuda", "triton"))]


def test_the_versions_that_run_these_tests_are_the_pinned_ones(constraints):
    if Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        pytest.skip("not in the environment that make builds")
    assert {n.name: version(n.name) for n in NEEDED} == {
        n.name: constraints[canonicalize_name(n.name)] for n in NEEDED
    }


@pytest.mark.parametrize("environment", [".venv", ".site"])
def test_every_pinned_package_takes_the_oldest_python(environment):
    """Debian 12 has Python 3.11.2."""
    oldest = f"{PROJECT['requires-python'].removeprefix('>=').partition(',')[0]}.0"
    places = [str(place) for place in ROOT.glob(f"{environment}/lib/python*/site-packages")]
    if not places:
        pytest.skip(f"{environment} is not made")
    needed = {one.name: one.metadata["Requires-Python"] for one in distributions(path=places)}
    refuse = {n: v for n, v in needed.items() if v and oldest not in SpecifierSet(v)}
    assert len(needed) > 20 and not refuse


def test_an_installed_library_has_what_a_runs_page_is_made_of(tmp_path):
    pytest.importorskip("setuptools", minversion="77")  # as [build-system] asks for
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "affinity_lib", tmp_path / "affinity_lib")
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"
    done = subprocess.run(
        [sys.executable, "-c", build], check=True, cwd=tmp_path, capture_output=True, text=True
    )
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        files = {"affinity_lib/showing/report.html", "affinity_lib/showing/walk.js"}
        assert files <= set(wheel.namelist())


def test_version_of_the_package_is_the_librarys():
    assert "version" in PROJECT["dynamic"] and affinity_lib.__version__


def make(
    folder: Path, *words: str, path: str = os.environ["PATH"], **variables: str
) -> subprocess.CompletedProcess:
    for name in ("Makefile", "pyproject.toml", "constraints.txt", ".ci/environment"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    environment = {**os.environ, "PATH": path, "MAKEFLAGS": "", "MAKELEVEL": "0", **variables}
    return subprocess.run(
        [shutil.which("make"), "--no-print-directory", *words],
        check=False,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_make_lists_every_target_when_asked_for_help(tmp_path):
    shown = make(tmp_path, "help").stdout
    for target in re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE):
        assert f"make {target} " in shown


@pytest.mark.parametrize("target", ["run", "test"])
def test_make_refuses_an_unsupported_python_in_one_sentence(tmp_path, target):
    python = tmp_path / "python9"
    python.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.13.1 && exit 0\nexit 1\n')
    python.chmod(0o755)
    done = make(tmp_path, target, f"PYTHON={python}")
    sentence, end = done.stderr.strip().split("\n")
    assert sentence.startswith("Python 3.11 or 3.12 is needed") and "Python 3.13.1" in sentence
    assert end.startswith("make: ***") and done.returncode != 0
    assert not (tmp_path / ".venv").exists()


def test_make_says_when_there_is_no_such_python(tmp_path):
    done = make(tmp_path, "run", "PYTHON=python-that-is-not-there")
    assert "There is no 'python-that-is-not-there' here" in done.stderr and done.returncode != 0


PYTHON = """#!/bin/sh
# A Python that notes what it is asked to do and makes environments of itself.
case "$*" in
    *version_info*) [ VERSION != 3.13 ]; exit;;
    *Python.h*) [ HEADERS = yes ]; exit;;
    *ensurepip*|"-m pip --version") exit 0;;
    *pydensecrf*) [ -e .built ]; exit;;
    "-m venv --clear .venv") rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python;;
    -V) echo Python VERSION; exit;;
esac
echo NAME "$@" >>log
"""
UV = """#!/bin/sh
echo uv "$@" >>log
mkdir -p .venv/bin
cp python-of-uv .venv/bin/python
"""


@pytest.fixture
def machine(tmp_path) -> Path:
    """A folder that stands for a machine: tools and a C++ compiler, but no Python yet."""
    (tmp_path / "bin").mkdir()
    for tool in ("sh", "mkdir", "cp", "rm", "touch", "id", "sed", "expand", "cat"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    add(tmp_path, "c++", "#!/bin/sh\n")
    return tmp_path


def add(machine: Path, name: str, script: str) -> None:
    path = machine / "bin" / name
    path.unlink(missing_ok=True)
    path.write_text(script)
    path.chmod(0o755)


def python(version: str, name: str = "", headers: str = "yes") -> str:
    text = PYTHON.replace("VERSION", version).replace("HEADERS", headers)
    return text.replace("NAME", name or f"python{version}")


def made_by(machine: Path, *words: str, **variables: str) -> str:
    """What the tools of a machine noted while make built the environment."""
    done = make(machine, ".venv/.ready", *words, path=str(machine / "bin"), **variables)
    assert done.returncode == 0, done.stderr
    assert (machine / ".venv" / ".ready").exists()
    log = (machine / "log").read_text().splitlines()
    assert log[-1].endswith(
        "-m pip install --quiet --disable-pip-version-check --use-pep517 -c constraints.txt -e .[test]"
    )
    return log[0]


def refused(machine: Path, *words: str, **variables: str) -> str:
    """The one sentence with which make ends on a machine, having made nothing."""
    done = make(machine, ".venv/.ready", *words, path=str(machine / "bin"), **variables)
    sentence, end = done.stderr.strip().split("\n")
    assert end.startswith("make: ***") and done.returncode != 0
    assert not (machine / ".venv").exists() and not (machine / "log").exists()
    return sentence


@pytest.mark.parametrize(
    "there, chosen",
    [
        ({"python3": "3.11"}, "3.11"),
        ({"python3": "3.12"}, "3.12"),
        ({"python3": "3.13", "python3.11": "3.11"}, "3.11"),
        ({"python3": "3.11", "python3.11": "3.11", "python3.12": "3.12"}, "3.12"),
    ],
)
def test_make_takes_the_newest_python_that_is_supported(machine, there, chosen):
    for name, release in there.items():
        add(machine, name, python(release))
    assert made_by(machine) == f"python{chosen} -m venv --clear .venv"


def test_make_passes_over_a_python_without_headers(machine):
    add(machine, "python3.12", python("3.12", headers="no"))
    add(machine, "python3.11", python("3.11"))
    assert made_by(machine).startswith("python3.11 -m venv")


def test_make_asks_uv_where_no_python_is_supported(machine):
    add(machine, "python3", python("3.13"))
    add(machine, "uv", UV)
    (machine / "python-of-uv").write_text(python("3.12"))
    (machine / "python-of-uv").chmod(0o755)
    assert made_by(machine) == "uv venv --quiet --python 3.12 --seed .venv"


def test_make_says_what_to_install_where_nothing_can_make_an_environment(machine):
    add(machine, "python3", python("3.13"))
    sentence = refused(machine)
    assert sentence.startswith("There is no Python 3.11 or 3.12 here") and "or uv" in sentence


def test_make_takes_the_python_that_it_is_given(machine):
    add(machine, "python3.12", python("3.12"))
    add(machine, "mine", python("3.11", "mine"))
    assert made_by(machine, "PYTHON=mine") == "mine -m venv --clear .venv"


def test_make_says_that_a_given_python_does_not_start(machine):
    add(machine, "mine", "#!/bin/sh\necho 'mine: command\nnot found' >&2\nexit 127\n")
    assert refused(machine, "PYTHON=mine").startswith("There is no 'mine' here")


def test_make_says_that_a_given_python_has_no_headers(machine):
    add(machine, "python3.11", python("3.11"))
    add(machine, "mine", python("3.12", headers="no"))
    assert refused(machine, "PYTHON=mine").startswith("'mine' has no ensurepip or no Python.h")


@pytest.mark.parametrize("headers, built", [("yes", False), ("no", True)])
def test_an_environment_stays_whichever_python_has_made_it(machine, headers, built):
    add(machine, "python3.12", python("3.12"))
    (machine / ".venv" / "bin").mkdir(parents=True)
    own = machine / ".venv" / "bin" / "python"
    own.write_text(python("3.11", "own", headers))
    own.chmod(0o755)
    if built:
        (machine / ".built").touch()
    assert made_by(machine).startswith("own -m pip install")


@pytest.mark.parametrize("old", ["gone", "3.13"])
def test_an_environment_whose_python_is_gone_or_too_new_is_made_anew(machine, old):
    add(machine, "python3.12", python("3.12"))
    (machine / ".venv" / "bin").mkdir(parents=True)
    own = machine / ".venv" / "bin" / "python"
    if old == "gone":
        own.symlink_to(machine / "gone")
    else:
        own.write_text(python(old))
        own.chmod(0o755)
    assert made_by(machine).startswith("python3.12 -m venv")


@pytest.mark.parametrize("name", ["c++", "g++", "clang++", "my-c++"])
def test_make_needs_one_of_the_usual_compilers_or_the_one_it_is_given(machine, name):
    add(machine, "python3.12", python("3.12"))
    (machine / "bin" / "c++").unlink()
    sentence = refused(machine)
    assert sentence.startswith("There is no C++ compiler here") and "g++" in sentence
    add(machine, name, "#!/bin/sh\n")
    made_by(machine, **({"CXX": "my-c++"} if name == "my-c++" else {}))


def test_make_refuses_a_given_compiler_that_is_not_there(machine):
    add(machine, "python3.12", python("3.12"))
    assert refused(machine, CXX="my-c++").startswith("There is no C++ compiler here")


def test_ci_runs_the_tests_without_a_terminal():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    long, test = script.read_text().rstrip().split("\n")[-2:]
    assert long == "make --no-print-directory long"
    assert test == "exec make --no-print-directory test"
