"""`hf-sharp tune --backend ray` on a Ray cluster of two machines, both here."""

import json
import logging
import os

import pytest

import hf_sharp
from hf_sharp import cli
from tests.recipes.conftest import image_folder  # noqa: F401
from tests.recipes.test_tune import config, no_pictures  # noqa: F401

ray = pytest.importorskip("ray", reason="pip install 'ray[tune]'")
pytest.importorskip("optuna", reason="pip install optuna")


@pytest.fixture
def machines(monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else a busy machine never gets to the workers
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(cluster.address, logging_level=logging.ERROR, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("machines", "no_pictures")
def test_two_machines_share_the_runs(config, tmp_path, capsys):  # noqa: F811
    folder, place = tmp_path / "search", os.getcwd()
    words = ["tune", str(config), "--output_dir", str(folder), "--backend", "ray"]
    with pytest.raises(ValueError, match="no machine of the Ray cluster has 2 cores for a run; the most is 1"):
        hf_sharp.tune(config, "1run", output_dir=tmp_path / "other", backend="ray", cpus_per_run=2)
    assert cli.main([*words, "--budget", "3runs"]) == 0
    assert cli.main([*words, "--budget", "5runs"]) == 0, "goes on"
    result = json.loads((folder / "tuning.json").read_text())
    assert [run["number"] for run in result["runs"]] == [0, 1, 2, 3, 4]
    assert len({run["machine"] for run in result["runs"]}) == 2
    assert not (folder / "ray").exists()
    assert os.getcwd() == place
    alone = hf_sharp.tune(config, "5runs", output_dir=tmp_path / "alone")
    mine, theirs = ([(run["params"], run["report"]) for run in runs["runs"]] for runs in (alone, result))
    assert mine == theirs, "every method once, as on one machine"
    config.write_text(config.read_text().replace("learning_rate: 0.01", "learning_rate: 1.0e+30"))
    with pytest.raises(ValueError, match=r"a run failed on .*: training stopped at step"):
        hf_sharp.tune(config, "3runs", output_dir=tmp_path / "broken", backend="ray")
