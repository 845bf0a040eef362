"""The sdist and the wheel build, and an installed wheel finds all of its bundled files."""

import importlib.util
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import mmrlhf

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def run(*command, cwd, **env):
    """Run a command without the repository on the import path, and return its output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | env
    completed = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout


def source_files(folder):
    """Return a folder's files, relative to it, without bytecode."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in files if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def hatchling_path(tmp_path_factory):
    """Return the PYTHONPATH for hatchling: empty if it is installed, else a download's folder."""
    if importlib.util.find_spec("hatchling"):
        return ""
    folder = tmp_path_factory.mktemp("hatchling")
    options = ["--quiet", "--disable-pip-version-check", "--retries", "0", "--timeout", "5", "--target", str(folder)]
    installed = subprocess.run([sys.executable, "-m", "pip", "install", *options, "hatchling"], capture_output=True)
    if installed.returncode:
        pytest.skip("hatchling is not installed and cannot be downloaded, so no package can be built")
    return str(folder)


@pytest.fixture(scope="module")
def sdist(hatchling_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT, PYTHONPATH=hatchling_path)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(sdist, hatchling_path, tmp_path_factory):
    """Build the wheel from the sdist, as an installer that finds no wheel does."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "dist", cwd=source, PYTHONPATH=hatchling_path)
    (path,) = (folder / "dist").iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Install the wheel into a new environment with this one's dependencies; return its bin."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True, with_pip=False)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    # Paths in a .pth file are searched last, and .pth files in those paths are not read, so an
    # editable install of this repository has no effect.
    dependencies = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site_packages / "dependencies.pth").write_text("\n".join(dependencies))
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    run(sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", *options, wheel, cwd=folder)
    return folder / "bin"


def test_sdist_has_sources_and_tests(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "mmrlhf/cli/app.py", "tests/conftest.py", "docs/metrics.md"} <= names
    assert not [name for name in names if name.endswith(".pyc") or name.startswith((".venv", "runs"))]


def test_wheel_has_every_file_of_the_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {f"mmrlhf/{name}" for name in source_files(ROOT / "mmrlhf")}
    for folder in ("configs", "data", "eval"):
        expected |= {f"mmrlhf/_content/{folder}/{name}" for name in source_files(ROOT / folder)}
    assert expected - names == set()
    assert {"mmrlhf/py.typed", "mmrlhf/claims/words.txt", "mmrlhf/report/page.html.j2"} <= names
    assert not [name for name in names if name.endswith(".pyc")]


def test_installed_wheel_finds_its_content(installed, tmp_path):
    script = (
        "import mmrlhf; from mmrlhf.files import bundled; print(mmrlhf.__file__);"
        "names = [('data', 'tiny_vlm'), ('data', 'samples'), ('configs', 'demo/sft'), ('eval', 'pope')];"
        "print(*(bundled.find(*name) for name in names), sep='\\n')"
    )
    package_file, *paths = run(installed / "python", "-c", script, cwd=tmp_path).split()
    package = Path(package_file).parent
    assert not package.is_relative_to(ROOT)
    content = package / "_content"
    assert [Path(path) for path in paths] == [
        content / "data/tiny_vlm",
        content / "data/samples",
        content / "configs/demo/sft.yaml",
        content / "eval/pope.py",
    ]
    assert (content / "data/tiny_vlm/model.safetensors").is_file()
    checked = run(installed / "mmrlhf", "data", "check", content / "data/samples/trl_preference.jsonl", cwd=tmp_path)
    assert "TRL preference pairs" in checked


def test_installed_wheel_runs_commands(installed, tmp_path):
    assert mmrlhf.__version__ in run(installed / "mmrlhf", "--version", cwd=tmp_path)
    assert "--model" in run(installed / "mmrlhf", "eval", "pope", "--help", cwd=tmp_path)
