"""The wheel is complete and works without the repository."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import hf_sharp

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_every_file_of_the_package_is_in_the_wheel(wheel):
    tracked = subprocess.run(["git", "ls-files", "hf_sharp"], cwd=ROOT, capture_output=True, text=True, check=True)
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert set(tracked.stdout.split()) <= inside
    assert "hf_sharp/py.typed" in inside
    assert {"hf_sharp/model_card_template.md", "hf_sharp/accelerate/ddp.yaml"} <= inside
    assert any(name.endswith("licenses/LICENSE") for name in inside)


def test_the_wheel_works_installed_elsewhere(wheel, tmp_path):
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    code = (
        "import hf_sharp, sys; from hf_sharp.datasets import digits, long_tail\n"
        f"assert hf_sharp.__file__.startswith({str(site)!r}), hf_sharp.__file__\n"
        "from hf_sharp import SharpTrainer, ClassFrequencies; import hf_sharp.recipe\n"
        "print(ClassFrequencies.from_dataset(long_tail(digits()['train'], 50)).counts[-1])"
    )
    environment = os.environ | {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "2"


def test_public_names():
    assert set(hf_sharp.__all__) <= set(dir(hf_sharp))
    assert all(getattr(hf_sharp, name).__name__ == name for name in hf_sharp.__all__)
    with pytest.raises(AttributeError, match="no attribute 'SharperTrainer'"):
        _ = hf_sharp.SharperTrainer


def test_losses_and_metrics_do_not_import_the_trainer():
    code = "import sys, hf_sharp.losses, hf_sharp.sharpness; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def pins(file):
    lines = (ROOT / file).read_text().splitlines()
    return {name.lower().replace("_", "-"): version for name, version in (x.split("==") for x in lines if "==" in x)}


def ranges():
    """Every range in pyproject.toml, but for the extras that others include."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    return [found for found in map(Requirement, texts) if found.name != "hf-sharp"]


@pytest.mark.parametrize("requirement", ranges(), ids=str)
def test_the_tested_versions_are_pinned_and_inside_the_ranges(requirement):
    version = pins("constraints.txt")[requirement.name.lower().replace("_", "-")]
    assert requirement.specifier.contains(version)


@pytest.mark.parametrize("requirement", ranges(), ids=str)
def test_the_lowest_version_of_every_range_is_the_one_that_ci_installs(requirement):
    (lowest,) = [part.version for part in requirement.specifier if part.operator == ">="]
    name = requirement.name.lower().replace("_", "-")
    if name == "pytorch-optimizer":  # of the benchmarks, which the tests do without
        return
    version = pins("constraints-lowest.txt")[name]
    assert requirement.specifier.contains(version)
    stated = Version(lowest).release
    assert Version(version).release[: len(stated)] == stated, f"{requirement} is not what {version} shows"


def test_ci_installs_the_lowest_versions():
    assert "-c constraints-lowest.txt" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_the_version_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text()
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {hf_sharp.__version__}" in citation
    assert f"## {hf_sharp.__version__}" in changelog
    assert (
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["version"]["path"]
        == "hf_sharp/__init__.py"
    )
