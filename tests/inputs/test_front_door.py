"""What a newcomer gets wrong first. The message says what was meant, and what to type."""

import logging
import re
import shutil
import sys

import datasets
import numpy as np
import pytest
from PIL import Image
from transformers import BertConfig

from hf_sharp import SharpTrainingArguments, cli
from hf_sharp.data.loading import load, prepare_splits
from hf_sharp.data.long_tail import long_tail
from hf_sharp.data.repeats import repeats
from hf_sharp.data.split import split_validation
from hf_sharp.few_shot.domain import make_domain
from hf_sharp.losses import build_loss
from hf_sharp.recipe import RecipeParser, run_recipe
from hf_sharp.recipe.arguments import load_splits
from hf_sharp.recipe.boundary import UserError
from hf_sharp.recipe.kind import recipe_for
from hf_sharp.recipe.models import class_for
from hf_sharp.recipe.options import OPTIONS
from hf_sharp.recipe.texts import TextArguments, prepare_texts, train_texts
from tests.inputs.commands import command, no_traceback  # noqa: F401
from tests.recipes.conftest import bert_folder  # noqa: F401


@pytest.mark.parametrize(
    ("flag", "meant"),
    [("lr", "learning_rate"), ("epochs", "num_train_epochs"), ("labels", "label_column"), ("los", "loss")],
)
def test_flags_of_other_programs_are_known(flag, meant):
    with pytest.raises(ValueError, match=f"unknown flag: '{flag}'. Did you mean '{meant}'"):
        RecipeParser(OPTIONS, [f"--{flag}", "1"])


def test_the_nearest_name_is_named():
    assert cli.main(["count"]).endswith(" Did you mean 'counts'?")
    with pytest.raises(ValueError, match=r"unknown loss 'crossentropy'; .* Did you mean 'cross_entropy'"):
        build_loss("crossentropy", [2, 1])
    with pytest.raises(ValueError, match=r"unknown sampler 'Square-root'; .* Did you mean 'square_root'"):
        SharpTrainingArguments("out", sampler="Square-root", report_to="none")


@pytest.mark.parametrize(("name", "meant"), [("baselin", "baseline"), ("plian.yaml", "plain.yaml")])
def test_a_config_that_does_not_exist_is_compared_with_those_that_do(name, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.yaml").write_text("loss: focal\n")
    with pytest.raises(ValueError, match=f"config file '{name}' does not exist. Did you mean '{meant}'"):
        RecipeParser(OPTIONS, []).read(name)


def test_a_command_says_every_warning_once(caplog, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    logger = logging.getLogger("hf_sharp.option_checks")

    def main():
        for count in (1, 1, 2, 1):
            logger.warning("%d runs", count)
            logging.getLogger("mine").warning("mine")

    for _ in range(2):
        caplog.clear()
        assert run_recipe(main) is None
        assert [text for text in caplog.messages if text != "mine"] == ["1 runs", "2 runs"]
        assert caplog.messages.count("mine") == 4


@pytest.mark.parametrize(
    "name", ["nope.csv", "nope.csv.gz", "new picss", "./nope", "/nope", "~/nope", "a/b/c", "nope/", "photo.jpg"]
)
def test_what_can_only_be_here_is_not_looked_up_on_the_hub(name, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", None)
    with pytest.raises(ValueError, match=f"the file or folder '{name}' does not exist. Expected 'digits'"):
        load(name)
    with pytest.raises(ValueError, match=f"the file or folder '{name}' does not exist. Expected a model's folder"):
        class_for(None, name)


def test_the_most_similar_file_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my data").mkdir()
    (tmp_path / "my data" / "mails.csv").write_text("text,label\na,b\n")
    with pytest.raises(ValueError, match=r"'my data/mials.csv' does not exist. Did you mean 'my data/mails.csv'"):
        load("my data/mials.csv")
    with pytest.raises(UserError, match=r"the model 'my_data' cannot be loaded: .* Did you mean 'my data'"):
        recipe_for(["--model_name_or_path", "my_data"])


def test_the_folder_of_a_comparison_names_its_models(tmp_path, capsys, no_traceback):  # noqa: F811
    (tmp_path / "out 1").mkdir()
    for run in ("logit_adjusted", "baseline"):
        (tmp_path / "out 1" / run).mkdir()
        BertConfig().save_pretrained(tmp_path / "out 1" / run)
    for words in (["predict"], ["evaluate"], ["adjust", "--output_dir", tmp_path / "new"]):
        said = command(capsys, *words, tmp_path / "out 1", "digits")
        assert "out 1' holds the models 'baseline', 'logit_adjusted': name one of them, as '" in said
        assert said.endswith("out 1/baseline'.")
    said = command(capsys, "predict", tmp_path / "out 1" / "baselin", "digits")
    assert "out 1/baselin' does not exist. Did you mean '" in said
    assert "out 1/baseline'?" in said


@pytest.mark.parametrize("option", ["test_fraction", "validation_fraction"])
def test_a_percentage_is_told_as_a_share(option):
    with pytest.raises(ValueError, match=rf"--{option} must be a number > 0 and <= 0.5, got 20.0. For 20 % write 0.2."):
        RecipeParser(OPTIONS, ["--model_config", '{"model_type": "bert"}', f"--{option}", "20"]).build()
    with pytest.raises(ValueError, match=r"rho_validation_fraction must be .* For 20 % write 0.2."):
        SharpTrainingArguments("out", sharpness="sam", rho_schedule="learned", rho_validation_fraction=20)


def test_what_is_too_small_for_a_test_set_is_called_that(caplog):
    rows = datasets.Dataset.from_dict({"text": list("abcdefg"), "label": ["ham"] * 6 + ["spam"]})
    prepare_splits(datasets.DatasetDict(train=rows), test_fraction=0.5)
    assert caplog.messages == ["1 class is too small for a test example: 'spam'."]
    with pytest.raises(ValueError, match=r"a test fraction of 0\.01 holds out no example: the largest class has 6"):
        prepare_splits(datasets.DatasetDict(train=rows), test_fraction=0.01)


def test_a_column_called_labels_is_found(tmp_path, capsys):
    file = tmp_path / "mails.csv"
    file.write_text("text,labels\n" + "one,ham\ntwo,spam\n" * 4)
    splits = load_splits(TextArguments(dataset=str(file), test_fraction=0.5), "label")
    assert splits["test"].features["label"].names == ["ham", "spam"]
    assert cli.main(["counts", str(file)]) == 0
    assert "8 examples, 2 classes" in capsys.readouterr().out
    assert make_domain(load(str(file))["train"], "mails").class_names == ["ham", "spam"]


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("Text,Label", "the columns are 'Text', 'Label'. Did you mean --label_column Label?"),
        ("text,my label", "Did you mean --label_column 'my label'?"),
        ("how are you today,b", "If these are cells of the first row, the header line is missing"),
        ("body,category", "the columns are 'body', 'category'. Name the right one with --label_column."),
    ],
)
def test_a_column_that_is_not_there(header, said, tmp_path, capsys, no_traceback):  # noqa: F811
    file = tmp_path / "mails.csv"
    file.write_text(f"{header}\na,ham\nb,spam\n")
    assert said in command(capsys, "counts", file)
    with pytest.raises(ValueError, match=re.escape(said)):
        load_splits(TextArguments(dataset=str(file), test_fraction=0.5), "label")


def test_a_text_column_in_other_capitals_is_named():
    rows = datasets.DatasetDict(train=datasets.Dataset.from_dict({"Text": ["a"], "label": [0]}))
    with pytest.raises(ValueError, match=r"Did you mean --text_column Text\? Pictures are for"):
        prepare_texts(rows, None, TextArguments(), "label")
    with pytest.raises(ValueError, match=r"there is no column 'Group'; the columns are .* mean group_column='group'\?"):
        split_validation(datasets.Dataset.from_dict({"group": [0], "label": [0]}), group_column="Group")


def test_splits_are_chosen_with_flags():
    rows = datasets.Dataset.from_dict({"label": [0, 1]})
    with pytest.raises(ValueError, match="Choose with --train_split, --test_split and --validation_split"):
        prepare_splits(datasets.DatasetDict(train=rows))


def test_rows_that_are_not_of_a_csv_file_have_no_header(tmp_path):
    (tmp_path / "mails.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": null}\n')
    with pytest.raises(ValueError, match="split 'train', row 2: there is no label"):
        load_splits(TextArguments(dataset=str(tmp_path / "mails.jsonl"), test_fraction=0.5), "label")


def test_texts_of_the_training_split_in_the_test_split_are_told_once(tmp_path, caplog):
    for split, texts in {"train": "abcdef", "test": ["a ", "g", "b", "h"]}.items():
        rows = "".join(f"{text},{'xy'[i % 2]}\n" for i, text in enumerate(texts))
        (tmp_path / f"{split}.csv").write_text(f"text,label\n{rows}")
    said = "2 of 4 test rows are training rows too (the same text): a report on them is too good. Remove them from one"
    load_splits(TextArguments(dataset=str(tmp_path)), "label")
    assert [said in text for text in caplog.messages] == [True]
    caplog.clear()
    load_splits(TextArguments(dataset=str(tmp_path), check_data="off"), "label")
    assert not caplog.messages


def test_repeats_in_what_is_held_out_can_be_left_out(tmp_path, caplog):
    (tmp_path / "mails.csv").write_text("text,label\n" + "a,x\nb,y\n" * 4)
    load_splits(TextArguments(dataset=str(tmp_path / "mails.csv"), test_fraction=0.5), "label")
    assert caplog.messages == [
        "4 of 4 test rows are training rows too (the same text): a report on them is too good. --unique_column text "
        "leaves repeats out."
    ]


@pytest.mark.parametrize("stored", ["files", "bytes"])
def test_the_same_picture_under_another_name_is_a_repeat(stored, tmp_path):
    rng, paths = np.random.default_rng(0), []
    for i in range(6):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8)).save(paths[-1])
    for copy in ("copy.png", "again.png"):
        paths.append(str(shutil.copy(paths[0], tmp_path / copy)))
    rows = datasets.Dataset.from_dict({"image": paths, "text": [1] * 8}).cast_column("image", datasets.Image())
    if stored == "bytes":
        rows.to_parquet(str(tmp_path / "rows.parquet"))
        rows = load(str(tmp_path / "rows.parquet"))["train"]
    assert repeats(rows.select([0, 3, 5]), rows.select([1, 6, 2, 7]), "image") == 2
    assert repeats(rows.select([3, 5]), rows.select([1, 6]), "image") == 0
    assert repeats(rows, rows, "text") == repeats(rows, rows, "no column") == 0


def test_a_table_that_cannot_be_read_ends_in_a_sentence(tmp_path):
    (tmp_path / "mails.csv").write_text('text,label\na,x\n"b,y\n')
    with pytest.raises(
        ValueError, match=r"line 3 cannot be read: unexpected end of data\. A text that .* needs quotes"
    ):
        load(str(tmp_path / "mails.csv"))
    (tmp_path / "mails.jsonl").write_text('{"text": "a"}\n{"text": "b')
    with pytest.raises(ValueError, match=r"line 2: Unterminated string starting at character 10. Correct or remove"):
        load(str(tmp_path / "mails.jsonl"))


def test_a_tail_of_small_classes_names_the_one_that_limits_it():
    rows = datasets.Dataset.from_dict({"label": [0] * 60 + [1] * 2 + [2] * 40})
    with pytest.raises(ValueError, match=r"without examples: class '1' has only 2, so that the largest .* 13"):
        long_tail(rows, 20)


def test_a_library_loaded_before_the_command_is_silent_too(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.delenv("DATASETS_VERBOSITY", raising=False)
    datasets.logging.set_verbosity_error()
    assert run_recipe(lambda: None) is None
    assert datasets.logging.get_verbosity() == logging.CRITICAL


def test_counts_asks_whether_the_column_holds_labels(tmp_path, capsys, caplog, no_traceback):  # noqa: F811
    file = tmp_path / "mails.csv"
    file.write_text("id,label\n" + "".join(f"{i},c{i}\n" for i in range(40)))
    asked = "column 'label' has 40 different values in {} rows. Is it the column with the labels?"
    assert asked.format(40) in command(capsys, "counts", file)
    file.write_text(file.read_text() + "41,c1\n")
    assert cli.main(["counts", str(file)]) == 0
    assert asked.format(41) in caplog.text
    caplog.clear()
    file.write_text(file.read_text() * 2)
    assert cli.main(["counts", str(file), "--skip_broken"]) == 0
    assert "Is it the column" not in caplog.text


def test_counts_leaves_out_what_the_training_leaves_out(tmp_path, capsys):
    file = tmp_path / "mails.csv"
    file.write_text("text,label\nsame,\nsame,x\na,x\nb,y\nc,y\n")
    assert cli.main(["counts", str(file), "--unique_column", "text", "--skip_broken"]) == 0
    assert "4 examples, 2 classes" in " ".join(capsys.readouterr().out.split())
    data = TextArguments(str(file), test_fraction=0.5, unique_column="text", skip_broken=True)
    assert sum(map(len, load_splits(data, "label").values())) == 4


def test_a_check_says_that_nothing_is_wrong(bert_folder, tmp_path, capsys):  # noqa: F811
    (tmp_path / "mails.csv").write_text("text,label\n" + "".join(f"word {i},{'xyz'[i % 3]}\n" for i in range(24)))
    argv = [
        "--dataset",
        tmp_path / "mails.csv",
        "--test_fraction",
        "0.25",
        "--model_name_or_path",
        bert_folder,
        "--use_cpu",
        "true",
    ]
    argv += ["--output_dir", tmp_path / "out", "--compare_with", "baseline", "--check_only", "true"]
    assert train_texts(list(map(str, argv))) == {}
    printed = capsys.readouterr().out
    assert re.search(r"2 runs; texts: 18 train, 6 test; 3 classes: nothing wrong found\n$", printed)
