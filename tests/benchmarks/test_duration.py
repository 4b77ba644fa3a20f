import json

import duration
import pytest
from study.claims import shorter_trainings
from study.results import finished_results
from study.runs import FINAL_SEEDS, TUNING_SEEDS


def test_every_comparison_has_the_same_seeds_on_both_sides():
    planned = list(duration.plan_runs(finished_results()))
    assert not {*duration.SEEDS} & {*TUNING_SEEDS, *FINAL_SEEDS}
    assert len({(p.folder, p.run.key) for p in planned}) == len(planned)
    seeds = {}
    for one in planned:
        seeds.setdefault((one.run.task, one.epochs, one.run.rate), {}).setdefault(one.row, []).append(one.run.seed)
    assert len(seeds) == len(duration.TASKS) * sum(map(len, duration.FACTORS.values()))
    for rows in seeds.values():
        assert rows == {name: [*duration.SEEDS] for name in duration.NAMES}


def test_finished_runs_are_collected_by_epochs(tmp_path, monkeypatch):
    monkeypatch.setattr(duration, "FOLDER", tmp_path)
    planned = list(duration.plan_runs(finished_results()))
    first = planned[0]
    alike = [
        one
        for one in planned
        if (one.run.task, one.epochs, one.multiple) == (first.run.task, first.epochs, first.multiple)
    ]
    for place, one in enumerate(alike):
        one.folder.mkdir(parents=True, exist_ok=True)
        test = {"balanced_accuracy": 0.01 * place, "few_accuracy": 0.5}
        record = {"machine": "here", "train_accuracy": 1.0, "test": test}
        (one.folder / f"{one.run.key}.json").write_text(json.dumps(record))
    found = duration.collect(planned)
    assert found["machine"] == "here"
    (training,) = found["trainings"]
    assert (training["task"], training["epochs"], training["multiple"]) == (first.run.task, first.epochs, 1)
    values = {
        name: [run["balanced_accuracy"] for run in row["seeds"].values()] for name, row in training["rows"].items()
    }
    seeds = len(duration.SEEDS)
    assert values == {
        name: pytest.approx([0.01 * (2 * i + place) for i in range(seeds)]) for place, name in enumerate(duration.NAMES)
    }
    (line,) = shorter_trainings(found).splitlines()[2:]
    assert "| 4.0 / 50.0 | 100.0 | 5.0 / 50.0 | **+1.0** (+1.0 … +1.0) | +0.0 (+0.0 … +0.0) | 5 |" in line
