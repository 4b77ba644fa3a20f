"""The cards of models that were changed after training: the new name, what was done, and no figure of another model."""

import contextlib
import json
import re
import shlex
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoModelForSequenceClassification

from hf_sharp import cli
from hf_sharp.model.records import RECORD, TEMPERATURE
from hf_sharp.recipe import train_images, train_texts
from hf_sharp.recipe.decisions import DECISIONS
from hf_sharp.reports.card_changes import PREDICTIONS, PROBABILITIES, changed_results, notice
from tests.inputs.commands import command, no_traceback  # noqa: F401
from tests.recipes.conftest import QUICK, TINY_VIT, pixels, save_bert, texts

LEARN = [*QUICK, "--max_steps", "60", "--learning_rate", "1e-2", "--sharpness", "none", "--loss", "cross_entropy"]
LEARN += ["--validation_fraction", "0.3"]
TABLE = '{"gamma": {"alpha": 50}}'
# Folder to the command that makes it; each has another model than the one before.
MADE = {
    "mails_adjusted": ["adjust", "outputs/mails", "--strength", "0.7"],
    "animals_adjusted": ["adjust", "outputs/animals", "--strength", "0.7"],
    "mails_moved": ["shift", "outputs/mails", "new.txt", "--bootstrap", "40"],
    "mails_costly": ["adjust", "outputs/mails", "--cost", '{"gamma": 5}'],
    "adjusted_sure": ["calibrate", "outputs/animals_adjusted"],
    "moved_sure": ["calibrate", "outputs/mails_moved"],
}
# Those that predict what the trained model predicts.
SAME = {
    "mails_sure": ["calibrate", "outputs/mails"],
    "animals_sure": ["calibrate", "outputs/animals", "--balanced"],
    "mails_table": ["adjust", "outputs/mails_sure", "--cost", TABLE],
    "mails_0": ["adjust", "outputs/mails", "--strength", "0"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a model of texts and one of images, and with all that the commands make of them."""
    root, rng = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    with contextlib.chdir(root):
        bert = save_bert(root)
        Path("mails").mkdir()
        for split, counts, seed in (("train", (80, 40, 20), 0), ("test", (9, 8, 7), 1)):
            datasets.Dataset.from_dict(texts(counts, seed)).to_csv(f"mails/{split}.csv")
            for label, (name, count) in enumerate(zip(("cat", "dog", "emu"), counts, strict=True)):
                Path("images", split, name).mkdir(parents=True)
                for i in range(count):
                    Image.fromarray(pixels(label, rng)).convert("RGB").save(f"images/{split}/{name}/{i}.png")
        Path("new.txt").write_text("\n".join(texts((5, 10, 45), 2)["text"]) + "\n")
        Image.new("RGB", (8, 8)).save("picture.png")
        train_texts(["--dataset", "mails", "--model_name_or_path", bert, *LEARN, "--output_dir", "outputs/mails"])
        train_images(["--dataset", "images", "--model_config", TINY_VIT, *LEARN, "--output_dir", "outputs/animals"])
        assert cli.main(["card", "outputs/mails", "--licence", "mit", "--tags", "post"]) == 0
        for name, words in (MADE | SAME).items():
            assert cli.main([*words, "--output_dir", f"outputs/{name}"]) == 0, name
    return root


@pytest.fixture
def here(made, monkeypatch):
    monkeypatch.chdir(made)
    return Path("outputs")


def card_of(folder):
    return ModelCard.load(Path(folder) / "README.md")


def trained_as(name):
    return Path("outputs", "animals" if "animals" in name or name == "adjusted_sure" else "mails")


def results_of(folder):
    return json.loads((Path(folder) / "all_results.json").read_text())


@pytest.mark.parametrize("name", [*MADE, *SAME])
def test_the_card_is_about_the_new_model(name, here):
    card, trained = card_of(here / name), trained_as(name)
    what = "unchanged" if name == "mails_0" else "changed after training"
    assert card.text.strip().startswith(f"# {name}\n\n> **This is `{trained}`, {what}.**")
    use = re.search(r"```python\n(.*?)```", card.text, re.S)[1]
    assert f'"outputs/{name}"' in use
    answers = []
    exec(use, {"print": answers.append})
    assert answers[0][0]["label"] in ("alpha", "beta", "gamma", "cat", "dog", "emu")
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", card.text):
        assert (here / name / picture).is_file(), picture
    if trained == Path("outputs/mails"):
        assert card.data.license == "mit", "what the authors said stays"
        assert "post" in card.data.tags


@pytest.mark.parametrize("name", MADE)
def test_a_model_that_predicts_other_classes_has_no_figure_of_the_one_before(name, here):
    card, results = card_of(here / name), results_of(here / name)
    assert card.data.eval_results is None
    assert not {"model_name", "metrics"} & card.data.to_dict().keys()
    assert "test examples" not in card.text
    if "adjusted" not in name:
        assert "There are no figures of it here" in card.text
        assert "per_class_recall" not in results["report"]
        assert not re.search(r"recall_by_count|confusion_matrix|\| accuracy", card.text)
        return
    measured = json.loads((here / f"{trained_as(name).name}_adjusted" / "validation" / "report.json").read_text())
    assert f"its own, on {sum(measured['per_class_support'])} validation examples." in card.text
    assert results["report"]["per_class_recall"] == measured["per_class_recall"]
    assert "corrected in favour of rare classes" in card.text
    assert ("Calibration.**" in card.text) == (name != "adjusted_sure"), "the temperature changes it"
    assert ("validation/reliability.png" in card.text) == (name != "adjusted_sure")


@pytest.mark.parametrize("name", SAME)
def test_a_model_that_predicts_the_same_has_the_same_figures_but_those_of_its_probabilities(name, here):
    card, report = card_of(here / name), results_of(trained_as(name))["report"]
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert card.data.model_name == name
    assert values["balanced_accuracy"] == round(report["balanced_accuracy"], 4)
    assert ("Calibration.**" in card.text) == (name == "mails_0")
    assert ("](reliability.png)" in card.text) == (name == "mails_0")
    assert "](confusion_matrix.png)" in card.text


@pytest.mark.parametrize("name", [*MADE, *SAME])
def test_the_card_is_written_again_from_the_results(name, here, tmp_path, capsys):
    folder = shutil.copytree(here / name, here / "again" / name)
    written = card_of(here / name).text
    assert cli.main(["card", str(folder)]) == 0
    assert card_of(folder).text == written.replace(f"outputs/{name}", f"outputs/again/{name}")
    assert cli.main(["card", str(folder), "--repo_id", "ann/rare"]) == 0
    text = card_of(folder).text.strip()
    assert text.startswith("# rare\n\n> **This is `outputs/")
    assert ', "ann/rare")\n' in text
    assert f"outputs/again/{name}" not in text
    for line in re.findall("`(hf-sharp predict .*?)`", text):
        assert line.startswith("hf-sharp predict ann/rare DATA")


@pytest.mark.parametrize("name", ["mails_sure", "animals_sure", "adjusted_sure", "moved_sure", "mails_table"])
def test_the_commands_in_the_card_work_as_written(name, here, tmp_path, capsys):
    data = "new.txt" if name.startswith("m") else "images/test"
    lines = re.findall("`hf-sharp (predict .*? DATA.*?)`", card_of(here / name).text)
    assert len(lines) == 2
    for i, line in enumerate(lines):
        words = [data if word == "DATA" else word for word in shlex.split(line)]
        assert cli.main([*words, "--output_dir", str(tmp_path / str(i))]) == 0, line
    assert ("--abstain saved" in " ".join(lines)) == (name != "mails_table"), "thresholds are for the likeliest class"


@pytest.fixture
def again(here, request):
    """A copy of one of the models, to be written to."""
    folder = shutil.copytree(here / request.param, here / "tested" / request.param)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("again", ["mails", "mails_adjusted", "mails_costly", "animals_sure"], indirect=True)
def test_figures_of_the_test_data_go_into_the_card(again, here, tmp_path, capsys):
    assert cli.main(["evaluate", str(again), "--card", "--output_dir", str(tmp_path / "out")]) == 0
    assert f"card     {again / 'README.md'}" in capsys.readouterr().out
    measured, trained = json.loads((tmp_path / "out" / "report.json").read_text()), results_of(trained_as(again.name))
    card, results = card_of(again), results_of(again)
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values["balanced_accuracy"] == round(measured["balanced_accuracy"], 4)
    assert f"{sum(measured['per_class_support'])} test examples" in card.text or again.name in ("mails", "animals_sure")
    assert "alidation examples" not in card.text.partition("## Results")[2]
    assert (card.data.license == "mit") == (trained_as(again.name) == Path("outputs/mails"))
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", card.text):
        assert (again / picture).is_file(), picture
    # Costs in the head: what the pipeline gives are no probabilities, and were not measured.
    assert ("Calibration.**" in card.text) == (again.name != "mails_costly")
    assert results.keys() <= trained.keys() | {"changes"}
    if again.name == "mails":
        error = pytest.approx(trained["report"]["calibration_error"])
        assert results["report"] == trained["report"] | {"calibration_error": error}
    assert cli.main(["card", str(again)]) == 0
    assert values == {result.metric_type: result.metric_value for result in card_of(again).data.eval_results}


@pytest.mark.usefixtures("no_traceback")
@pytest.mark.parametrize(
    ("again", "flags", "said"),
    [
        ("mails_adjusted", ["--split", "validation"], "a card has the figures of the test data, not of 'validation'"),
        ("animals_adjusted", ["--tta", "five_crop"], "figures of one view of each picture, not of 'five_crop'"),
        ("mails_table", [], "a card has the figures of pipeline(), which does not use the costs saved beside"),
        (
            "mails_adjusted",
            ["--validation_fraction", "0.5"],
            "class counts of this data are not those of the training",
        ),
        ("mails_adjusted", ["--dataset", "other"], "the figures are of dataset 'mails', but they are of 'other'"),
    ],
    indirect=["again"],
)
def test_figures_that_are_not_the_cards_are_refused(again, flags, said, capsys):
    before = (again / "README.md").read_text()
    assert said in command(capsys, "evaluate", again, "--card", *flags)
    assert (again / "README.md").read_text() == before


def test_figures_of_other_data_than_the_strength_was_chosen_on_are_not_called_high():
    change = {"command": "adjust", "model": "m", "effect": PREDICTIONS, "chosen": True, "method": "tau_norm"}
    report = {"accuracy": 0.5, "per_class_support": [5, 3]}
    assert "expect slightly lower ones" in notice([change], report, "validation")
    assert notice([change], report, "test").endswith("The figures below are its own, on 8 test examples.")


def test_a_strength_chosen_on_the_validation_data_is_told(here, tmp_path):
    assert cli.main(["adjust", "outputs/animals", "--method", "tau_norm", "--output_dir", str(tmp_path / "out")]) == 0
    text = card_of(tmp_path / "out").text
    strength = results_of(tmp_path / "out")["changes"][0]["strength"]
    assert ("on which the strength was chosen: expect slightly lower ones" in text) == (strength > 0)
    assert ("found no strength of `tau_norm` above 0 better" in text) == (strength == 0)


def test_figures_on_examples_of_another_training_set_are_left_out(here, tmp_path):
    words = ["adjust", "outputs/mails", "--strength", "1", "--validation_fraction", "0.5"]
    assert cli.main([*words, "--output_dir", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "validation" / "report.json").is_file()
    assert "There are no figures of it here" in card_of(tmp_path / "out").text, "it was trained on some of them"


@pytest.mark.usefixtures("no_traceback")
@pytest.mark.parametrize("key", [RECORD, TEMPERATURE])
def test_a_model_that_was_changed_in_place_gets_no_card(key, here, tmp_path, capsys):
    folder = shutil.copytree(here / "mails", tmp_path / "mails")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: {"method": "tau_norm", "strength": 1.0}}))
    said = command(capsys, "card", folder)
    assert f"config.json says that the model was changed after training ({key}), but all_results.json does not" in said
    changed = shutil.copytree(here / ("mails_adjusted" if key == RECORD else "mails_sure"), tmp_path / "changed")
    (changed / "config.json").write_text(json.dumps(config))
    assert f"all_results.json says that the model was changed after training ({key})" in command(
        capsys, "card", changed
    )


def test_what_was_saved_for_the_old_head_is_left_out_with_a_warning(here, tmp_path, caplog):
    assert cli.main(["adjust", "outputs/mails_sure", "--strength", "1", "--output_dir", str(tmp_path / "new")]) == 0
    assert "saved with the model belong to its old head, and are left out" in caplog.text
    assert not (tmp_path / "new" / DECISIONS).exists()
    assert "## Confidence" not in card_of(tmp_path / "new").text
    assert cli.main(["adjust", "outputs/mails_sure", "--strength", "0", "--output_dir", str(tmp_path / "old")]) == 0
    assert (tmp_path / "old" / DECISIONS).read_text() == (here / "mails_sure" / DECISIONS).read_text()
    assert "## Confidence" in card_of(tmp_path / "old").text


def test_weights_of_few_bits_may_predict_other_classes_after_a_temperature(here, tmp_path):
    folder = shutil.copytree(here / "mails", tmp_path / "mails")
    AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    assert cli.main(["calibrate", str(folder), "--output_dir", str(tmp_path / "sure")]) == 0
    assert "There are no figures of it here" in card_of(tmp_path / "sure").text


FOREIGN = """---
license: other
license_name: mine
base_model: user/bert
model-index:
- name: letters
  results:
  - task: {type: text-classification}
    dataset: {name: letters, type: letters}
    metrics: [{type: accuracy, value: 0.9}]
---
# Letters

Accuracy 90 %.

<details>all</details>
"""


def test_a_model_of_another_origin_keeps_its_card_as_that_of_the_model_before(here, tmp_path):
    folder = shutil.copytree(here / "mails", tmp_path / "letters")
    (folder / "all_results.json").unlink()
    (folder / "README.md").write_text(FOREIGN)
    words = ["mails", "--validation_fraction", "0.3", "--output_dir"]
    assert cli.main(["adjust", str(folder), *words, str(tmp_path / "fair"), "--strength", "1"]) == 0
    assert cli.main(["calibrate", str(folder), *words, str(tmp_path / "sure")]) == 0
    for name in ("fair", "sure"):
        card = card_of(tmp_path / name)
        assert card.text.strip().startswith(f"# {name}\n\n> **This is `letters`, changed after training.**")
        assert (card.data.license_name, card.data.base_model) == ("mine", "user/bert")
        assert card.data.eval_results is None
        own, _, old = card.text.partition(
            "\n\n## The model before\n\nThe rest of this card is that of the model before.\n"
        )
        assert f'"{name}")' in own
        assert old.strip() == "Accuracy 90 %.\n\n<details>all</details>"
        assert ("| accuracy |" in own) == (name == "fair")
        for picture in re.findall(r"!\[.*?\]\((.*?)\)", card.text):
            assert (tmp_path / name / picture).is_file(), picture
    (folder / "README.md").unlink()
    assert cli.main(["adjust", str(folder), "--cost", '{"gamma": 5}', "--output_dir", str(tmp_path / "new")]) == 0
    assert "## The model before" not in card_of(tmp_path / "new").text


def test_what_depends_on_the_predictions_is_left_out_of_the_results():
    report = {"class_counts": [9, 3], "accuracy": 0.5, "calibration_error": 0.1, "rare_threshold": 20}
    results = {"report": report, "tta": {}, "pictures": ["reliability.png"], "over_seeds": {}, "options": {"seed": 1}}
    new = changed_results(results, {"effect": PREDICTIONS})
    assert new["report"] == {"class_counts": [9, 3], "rare_threshold": 20}
    assert new.keys() == {"report", "options", "changes"}
    new = changed_results(results, {"effect": PROBABILITIES})
    assert new["report"] == {"class_counts": [9, 3], "accuracy": 0.5, "rare_threshold": 20}
    assert (new["pictures"], new["tta"]) == ([], {})
    assert results["report"] == report, "nothing is changed in place"
