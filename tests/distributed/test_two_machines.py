"""Two machines: two connected network namespaces, with `accelerate launch` and the committed config in each."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import assert_same_bits
from tests.recipes.conftest import TINY_VIT

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "recipes" / "accelerate" / "multi_node.yaml"
NETWORKS = itertools.count()


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)


def switch_off(machine):
    """Kill all processes of a machine: launcher, workers, data loaders."""
    for pid in ip("netns", "pids", machine).stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


@pytest.fixture
def machines():
    """The names of two namespaces and of their network interfaces, with addresses 10.77.0.1 and 10.77.0.2."""
    if shutil.which("ip") is None:
        pytest.skip("the command `ip` is not installed (Debian: iproute2)")
    number = f"{os.getpid()}x{next(NETWORKS)}"
    names = [f"hf_sharp_{number}_{i}" for i in range(2)]
    cables = [f"hs{number}{end}"[-15:] for end in "ab"]
    try:
        with contextlib.ExitStack() as stack:
            for name in names:
                ip("netns", "add", name)
                stack.callback(ip, "netns", "del", name)
                stack.callback(switch_off, name)
            ends = [["name", cable, "netns", name] for cable, name in zip(cables, names, strict=True)]
            ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
            for i, (name, cable) in enumerate(zip(names, cables, strict=True)):
                ip("-n", name, "addr", "add", f"10.77.0.{i + 1}/24", "dev", cable)
                ip("-n", name, "link", "set", cable, "up")
                ip("-n", name, "link", "set", "lo", "up")
            yield list(zip(names, cables, strict=True))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")


def launch(machines, out, *options):
    """Start the recipe on both machines."""
    started = []
    for rank, (name, cable) in enumerate(machines):
        command = ["ip", "netns", "exec", name, str(Path(sys.executable).parent / "accelerate"), "launch"]
        command += ["--config_file", str(CONFIG), "--num_processes", "2", "--machine_rank", str(rank)]
        command += ["--main_process_ip", "10.77.0.1", "recipes/image_classification.py", "--output_dir", str(out)]
        command += ["--dataset", "digits", "--imbalance_factor", "20", "--model_config", TINY_VIT, "--use_cpu"]
        command += ["--report_to", "none", "--disable_tqdm", "true", "--ddp_timeout", "45", *options]
        environment = os.environ | {
            "ACCELERATE_USE_CPU": "true",
            "GLOO_SOCKET_IFNAME": cable,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        log = (out.parent / f"machine_{rank}.log").open("w")
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
    return started


def log_of(out, rank):
    return (out.parent / f"machine_{rank}.log").read_text()


def test_training_on_two_machines_loses_one_and_resumes(machines, tmp_path):
    options = ["--max_steps", "300", "--save_strategy", "steps", "--save_steps", "25", "--sharpness", "focal_sam"]
    options += ["--ascent_sync", "global", "--per_device_train_batch_size", "8", "--learning_rate", "1e-3"]
    whole = tmp_path / "whole" / "out"
    lost = tmp_path / "lost" / "out"
    for folder in (whole, lost):
        folder.parent.mkdir()
    for rank, process in enumerate(launch(machines, whole, *options)):
        assert process.wait() == 0, log_of(whole, rank)[-3000:]
    assert json.loads((whole / "all_results.json").read_text())["machine"]

    first, second = launch(machines, lost, *options)
    while not (lost / "checkpoint-50" / "trainer_state.json").exists():  # until training is under way
        assert first.poll() is None, log_of(lost, 0)[-3000:]
        time.sleep(0.1)
    switch_off(machines[1][0])
    assert first.wait() != 0, "a machine left alone ends, and does not report success"
    second.wait()
    assert "Error" in log_of(lost, 0)
    assert not (lost / "all_results.json").exists()

    for rank, process in enumerate(launch(machines, lost, *options, "--resume_from_checkpoint", "true")):
        assert process.wait() == 0, log_of(lost, rank)[-3000:]
    assert_same_bits(load_file(lost / "model.safetensors"), load_file(whole / "model.safetensors"))
