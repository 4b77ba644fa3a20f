import json

import confirm
import pytest
from study.claims import confirmation
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


def test_any_finished_row_can_be_repeated_by_its_name():
    rows = confirm.rows_of(FINISHED["foldoc"])
    assert [*rows][:5] == [*confirm.USUAL]
    assert rows["ImbSAM"] == "ImbSAM"
    assert len({*rows.values()}) == len(rows), "no row is repeated twice"
    options = dict(confirm.plan_runs(FINISHED["foldoc"])["ImbSAM"][0].options)
    assert options == {"loss": "logit_adjusted", "sharpness": "imbsam", "rho": 0.15}


def test_every_row_stands_against_the_best_and_against_logit_adjustment():
    def row(name, *values):
        seeds = {str(seed): {"balanced_accuracy": value, "few_accuracy": value} for seed, value in enumerate(values)}
        return {"row": name, "seeds": seeds}

    rows = {"best": row("momentum-SAM", 0.6, 0.7), "default": row("plain", 0.5, 0.6), "ImbSAM": row("ImbSAM", 0.4, 0.5)}
    *_, best, plain, imbsam = confirmation([{"task": "wordnet", "few_classes": [1], "rows": rows}]).splitlines()
    gains = [[cell.strip(" *")[:5] for cell in line.split("|")[4:8]] for line in (best, plain, imbsam)]
    assert gains == [["", "", "+10.0", "+10.0"], ["+10.0", "+10.0", "", ""], ["+20.0", "+20.0", "-10.0", "-10.0"]]
