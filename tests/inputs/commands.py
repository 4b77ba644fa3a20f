"""Runs commands in this process, as a shell would, and gives back what they print."""

import os
import re
import sys

import pytest

from hf_sharp import cli
from hf_sharp.recipe.boundary import run_recipe


def said_by(capsys, run):
    """What a run prints to stderr, its message included; it must fail, in at most 6 lines and without a traceback."""
    capsys.readouterr()
    try:
        status = run()
    except SystemExit as end:
        status = end.code
    assert status not in (0, None), "the exit status says that it failed"
    printed = capsys.readouterr().err + (f"{status}\n" if isinstance(status, str) else "")
    lines = [line for part in printed.splitlines() for line in part.split("\r") if line.strip()]
    lines = [
        line for line in lines if not re.search(r"%\||/s\]|\?it", line)
    ]  # progress bars, as often as they are drawn
    assert "Traceback" not in printed
    assert len(lines) <= 6, printed
    return "\n".join(lines)


def command(capsys, *words):
    """What `hf-sharp` says of a mistake."""
    return said_by(capsys, lambda: cli.main(list(map(str, words))))


def recipe(capsys, train, *words):
    """What a recipe says of a mistake; `train` is `train_images` or `train_texts`."""
    return said_by(capsys, lambda: run_recipe(lambda: train(list(map(str, words)))))


@pytest.fixture
def no_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["hf-sharp"])
    yield
    os.environ.pop("HF_SHARP_TRACEBACK", None)
