"""Stages: each runs once, is written whole, and is not mixed with other options."""

import json

import pytest

from hf_sharp.few_shot.arguments import FewShotArguments, values_by_key
from hf_sharp.few_shot.stages import resume_stage


def test_a_stage_runs_once_and_refuses_other_options(tmp_path):
    file = tmp_path / "a" / "stage.json"
    runs = []
    for _ in range(2):
        results = resume_stage(file, {"seed": 0, "names": ("x",)}, lambda: runs.append(1) or {"loss": 0.5})
        assert results == {"options": {"seed": 0, "names": ["x"]}, "loss": 0.5} == json.loads(file.read_text())
    assert len(runs) == 1
    assert [path.name for path in file.parent.iterdir()] == ["stage.json"]
    with pytest.raises(ValueError, match=r"stage.json' was written with other options \(seed: 0 then, 1 now, names: "):
        resume_stage(file, {"seed": 1}, dict)


def test_a_stage_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        resume_stage(tmp_path / "stage.json", {}, lambda: {"loss": 1 / 0})
    with pytest.raises(TypeError):
        resume_stage(tmp_path / "stage.json", {}, lambda: {"loss": object()})
    assert list(tmp_path.iterdir()) == []


def test_values_for_everything_and_by_key(tmp_path):
    folder = tmp_path / "loss=vs"
    folder.mkdir()
    read = values_by_key("pretrained", [str(folder), "digits=user/name"], ["digits"])
    assert read == {"": str(folder), "digits": "user/name"}, "a folder's name may hold an equals sign"
    with pytest.raises(ValueError, match="'digit' is not one of digits, emoji"):
        values_by_key("rho", ["digit=0.1"], ["digits", "emoji"])
    with pytest.raises(ValueError, match=r"--rho has two values for digits: '0\.1' and '0\.2'"):
        values_by_key("rho", ["digits=0.1", "digits=0.2"], ["digits"])


def test_the_published_protocol_is_the_default():
    arguments = FewShotArguments()
    assert (arguments.fusion, arguments.parc_on, arguments.parc_components) == (["per_domain"], "episode", 0)
    assert arguments.validation_fraction > 0
