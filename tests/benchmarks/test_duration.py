import json

import duration
from study.results import finished_results
from study.runs import FINAL_SEEDS, TUNING_SEEDS


def test_every_comparison_has_the_same_seeds_on_both_sides():
    planned = list(duration.plan_runs(finished_results()))
    assert not {*duration.SEEDS} & {*TUNING_SEEDS, *FINAL_SEEDS}
    assert len({(p.folder, p.run.key) for p in planned}) == len(planned)
    seeds = {}
    for row, run, epochs in planned:
        seeds.setdefault((run.task, epochs, run.rate), {}).setdefault(row, []).append(run.seed)
    assert len(seeds) == len(duration.TASKS) * len(duration.FACTORS)
    for rows in seeds.values():
        assert rows == {name: [*duration.SEEDS] for name in duration.NAMES}


def test_finished_runs_are_collected_by_epochs(tmp_path, monkeypatch):
    monkeypatch.setattr(duration, "FOLDER", tmp_path)
    planned = list(duration.plan_runs(finished_results()))
    for place, one in enumerate(planned[:4]):
        one.folder.mkdir(parents=True, exist_ok=True)
        record = {"machine": "here", "train_accuracy": 1.0, "test": {"balanced_accuracy": 0.1 * place}}
        (one.folder / f"{one.run.key}.json").write_text(json.dumps(record))
    found = duration.collect(planned)
    assert found["machine"] == "here"
    rows = found["tasks"][planned[0].run.task][str(planned[0].epochs)]
    assert [row["seeds"][str(planned[0].run.seed)]["balanced_accuracy"] for row in rows.values()] == [0.0, 0.1]
