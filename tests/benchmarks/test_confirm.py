import json

import confirm
import pytest
from study.results import finished_results
from study.runs import FINAL_SEEDS, TUNING_SEEDS

FINISHED = finished_results()


@pytest.mark.parametrize("task", FINISHED)
def test_the_chosen_settings_are_repeated_on_fresh_seeds(task):
    result = FINISHED[task]
    assert not {*confirm.SEEDS} & {*TUNING_SEEDS, *FINAL_SEEDS}
    recorded = {json.dumps(record["run"], sort_keys=True) for record in result["runs"]}
    for runs in confirm.plan_runs(result).values():
        assert [run.seed for run in runs] == list(confirm.SEEDS)
        again = [json.dumps(runs[0]._replace(seed=seed).values(), sort_keys=True) for seed in FINAL_SEEDS]
        assert recorded >= {*again}, "the same run, but for the seed, is in the evidence"


def test_finished_seeds_are_collected_row_by_row(tmp_path):
    result = FINISHED["wordnet"]
    best, weights = (confirm.plan_runs(result)[short][:2] for short in ("best", "weights"))
    for run, recall in zip((*best, weights[0]), (0.5, 0.6, 0.4), strict=True):
        record = {"run": run.values(), "machine": "here", "test": {"balanced_accuracy": recall}}
        (tmp_path / f"{run.key}.json").write_text(json.dumps(record))
    rows = confirm.collect(result, tmp_path)["rows"]
    found = {short: [metrics["balanced_accuracy"] for metrics in row["seeds"].values()] for short, row in rows.items()}
    assert found == {"best": [0.5, 0.6], "weights": [0.4]}
    assert rows["best"]["row"] == "momentum-SAM"
