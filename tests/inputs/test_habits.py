"""Processes end together, a folder is named alike everywhere, and few seeds are not evidence."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from transformers import ViTImageProcessor

from hf_sharp import cli
from hf_sharp.commands import compare, train
from hf_sharp.commands.compare import seeds_needed, verdict
from hf_sharp.recipe.boundary import run_recipe
from hf_sharp.recipe.saved import new_folder
from hf_sharp.reports.pairs import paired
from tests.conftest import make_vit
from tests.inputs.commands import command, no_traceback  # noqa: F401
from tests.recipes.conftest import QUICK, TINY_VIT, image_folder  # noqa: F401

ROOT = Path(__file__).parents[2]

# `hf-sharp train` with a stand-in for accelerate: a process that starts another one, and both wait.
STAND_IN = """
import sys
from hf_sharp.commands import train
training = '''
import signal, subprocess, sys, time
{ignore}
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(worker.pid, flush=True)
time.sleep(600)
'''
train._command = lambda *_: [sys.executable, "-c", training]
train._GRACE = 1
train.launch(None, [])
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition):
    """Waits; a condition that never comes true ends with the test's own timeout."""
    while not condition():
        time.sleep(0.1)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("ignore", ["", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"], ids=["willing", "stubborn"])
@pytest.mark.parametrize("number", train._SIGNALS, ids=lambda number: number.name)
def test_a_training_ends_with_the_command_that_started_it(number, ignore):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    code = STAND_IN.format(ignore=ignore)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    worker = int(process.stdout.readline())
    process.send_signal(number)
    assert process.wait() == 128 + number
    wait_for(lambda: not alive(worker))


def test_a_training_ends_with_its_workers_on_windows(monkeypatch):
    for owner, name in ((signal, "SIGHUP"), (signal, "SIGKILL"), (os, "killpg")):
        monkeypatch.delattr(owner, name, raising=False)
    spec = importlib.util.spec_from_file_location("train_on_windows", train.__file__)
    on_windows = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(on_windows)
    assert [number.name for number in on_windows._SIGNALS] == ["SIGINT", "SIGTERM"]
    wait = "import time; time.sleep(600)"
    code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {wait!r}]).pid, flush=True); {wait}"
    training = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    worker = psutil.Process(int(training.stdout.readline()))
    assert on_windows._stop(training, signal.SIGINT) == 128 + signal.SIGINT
    assert training.poll() is not None
    wait_for(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)


def test_ctrl_c_on_a_training_is_one_line(image_folder, tmp_path):  # noqa: F811
    words = ["--dataset", image_folder, "--model_config", TINY_VIT, "--output_dir", str(tmp_path / "out"), *QUICK]
    words += ["--max_steps", "100000", "--save_strategy", "steps", "--save_steps", "5", "--save_total_limit", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_sharp.cli", "train", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    wait_for(lambda: any((tmp_path / "out").glob("checkpoint-*")) or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 128 + signal.SIGINT
    assert "Traceback" not in said
    assert said.strip().splitlines()[-1].startswith("interrupted: --resume_from_checkpoint true continues from")
    assert not (tmp_path / "out" / "all_results.json").exists()


# Where Ctrl-C hits a command, after it has written something where it writes at all.
INTERRUPTED = {
    "counts {data}": "commands.counts.load",
    "evaluate {model} {data} --output_dir {out}": "recipe.showing.draw_evaluation",
    "adjust {model} {data} --output_dir {out} --strength 1": "recipe.changed.keep_record",
    "calibrate {model} {data} --output_dir {out} --validation_fraction 0.3": "commands.calibrate.plot_reliability",
    "sharpness {model} {data} --output_dir {out} --hessian_examples 4": "commands.sharpness.plot_loss_along",
    "shift {model} {data}/test --dataset {data} --split test --output_dir {out}": "commands.shift.plot_shares",
    "predict {model} {data}/test --output_dir {out} --batch_size 2": "recipe.outputs._Lines.close",
    "card {model}": "commands.card.read_results",
}


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
@pytest.mark.parametrize("words", INTERRUPTED, ids=lambda words: words.split()[0])
def test_ctrl_c_on_a_command_saves_nothing_half_and_says_so(words, there, image_folder, tmp_path, monkeypatch, capsys):  # noqa: F811
    model, out = make_vit(num_labels=3, num_channels=3), tmp_path / "results" / "out"
    model.config.id2label = dict(enumerate(("cat", "dog", "emu")))
    model.save_pretrained(tmp_path / "model")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "model")
    if there:
        out.mkdir(parents=True)
    written = []

    def interrupt(*_, **__):
        written.extend(out.rglob("*"))
        raise KeyboardInterrupt

    monkeypatch.setattr(f"hf_sharp.{INTERRUPTED[words]}", interrupt)
    where = {"model": tmp_path / "model", "data": image_folder, "out": out}
    assert cli.main([word.format(**where) for word in words.split()]) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == "interrupted: nothing was saved"
    assert bool(written) == ("{out}" in words)
    assert out.is_dir() == there
    assert not list(out.rglob("*"))


def test_ctrl_c_leaves_what_an_earlier_command_wrote(tmp_path):
    new_folder(str(tmp_path / "out")).mkdir()  # called from Python, as a part of something else
    (tmp_path / "out" / "report.json").write_text("{}")
    assert cli.main(["card", str(tmp_path)]) != 130

    def interrupt():
        raise KeyboardInterrupt

    assert run_recipe(interrupt) == 130
    assert (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize("name", ["compare", "tune"])
def test_ctrl_c_on_a_search_says_that_the_same_command_goes_on(name, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"hf_sharp.commands.{name}.main", interrupt)
    assert cli.main([name]) == 130
    assert "interrupted: the same command goes on" in capsys.readouterr().err


# ---- words of the command line -------------------------------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch):
    calls = []
    monkeypatch.setattr(train, "launch", lambda config, flags, accelerate: calls.append((config, flags, accelerate)))
    return calls


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a.yaml", "--rho", "0.1"], ("a.yaml", ["--rho", "0.1"], "single_gpu")),
        (["a.yaml", "--accelerate", "ddp", "--rho", "0.1"], ("a.yaml", ["--rho", "0.1"], "ddp")),
        (["--dataset", "photos/"], (None, ["--dataset", "photos/"], "single_gpu")),
        (["--accelerate", "ddp", "--dataset", "photos/"], (None, ["--dataset", "photos/"], "ddp")),
        (["--config", "a.yaml", "--use_cpu"], (None, ["--config", "a.yaml", "--use_cpu"], "single_gpu")),
    ],
    ids=str,
)
def test_the_value_of_a_flag_is_no_config(words, expected, launched, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("loss: vs\n")
    train.main(words)
    assert launched == [expected]


@pytest.mark.usefixtures("no_traceback")
def test_train_without_anything_says_what_to_name(launched, capsys):
    assert "name a config" in command(capsys, "train")
    assert launched == []


@pytest.mark.parametrize("flag", ["--output_dir", "--output-dir", "--output"])
@pytest.mark.parametrize("name", ["evaluate", "adjust", "sharpness"])
@pytest.mark.usefixtures("no_traceback")
def test_every_command_takes_output_dir_and_output_and_overwrites_nothing(flag, name, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    more = ["--strength", "1"] if name == "adjust" else []
    said = command(capsys, name, "m", "digits", flag, tmp_path, *more)
    assert f"the output folder {str(tmp_path)!r} is not empty" in said
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("flag", ["--output_dir", "--output"])
def test_compare_writes_where_it_is_told_to(flag, tmp_path, monkeypatch, capsys):
    configs = []
    for name in ("plain", "sharp"):
        configs.append(tmp_path / f"{name}.yaml")
        options = {"model_config": json.loads(TINY_VIT), "use_cpu": True, "sharpness": "none"}
        options |= {"peft": "lora", "augment": "none"}  # options of the recipes, too
        configs[-1].write_text(yaml.safe_dump(options))
    folders = []

    def launch(config, flags, accelerate):
        folders.append(Path(flags[flags.index("--output_dir") + 1]))
        assert flags.count("--output_dir") == 1
        raise SystemExit(3)

    monkeypatch.setattr(compare, "launch", launch)
    with pytest.raises(SystemExit):
        cli.main(["compare", *map(str, configs), flag, str(tmp_path / "here")])
    assert folders == [tmp_path / "here" / "sharp" / "seed_0"], "the second config is checked first"


# ---- few seeds -----------------------------------------------------------------------------------------------------


def said_of(first, second):
    return verdict(("a", "b"), {"balanced accuracy": paired(first, second)}, 2.0, len(first))


@pytest.mark.parametrize(
    ("first", "second", "needed"),
    [([0.5, 0.5], [0.1, 0.7], 72), ([0.5, 0.5], [0.6, 0.62], 3), ([0.5, 0.5], [0.52, 0.56], 5)],
)
def test_two_seeds_cannot_tell_and_the_verdict_says_how_many_could(first, second, needed):
    said = said_of(first, second)
    assert said.startswith("2 seeds cannot tell: b is ")
    assert "±" not in said
    assert seeds_needed(paired(first, second)["difference"], paired(first, second)["deviation"]) == needed
    assert f"about {needed} could" in said


def test_one_seed_and_no_difference_at_all():
    assert "one seed cannot tell from chance" in said_of([0.5], [0.6])
    assert "even 1000 could not" in said_of([0.5, 0.5], [0.4, 0.6])


def test_the_number_of_seeds_is_the_smallest_whose_interval_leaves_out_zero():
    from scipy import stats

    for difference, deviation in ((0.02, 0.02), (0.01, 0.05), (0.3, 0.1)):
        n = seeds_needed(difference, deviation)
        half = [float(stats.t.ppf(0.975, m - 1)) * deviation / m**0.5 for m in (n - 1, n) if m > 1]
        assert half[-1] < abs(difference)
        assert n == 3 or half[0] >= abs(difference)
