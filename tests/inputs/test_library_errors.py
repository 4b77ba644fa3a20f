"""What libraries raise for a user's mistake is told in one or two lines, with a non-zero exit status."""

import json
import os
import shutil
import sys
from pathlib import Path

import datasets
import pytest
import yaml

from hf_sharp import cli
from hf_sharp.recipe.boundary import UserError, run_recipe, stage
from hf_sharp.recipe.images import train_images
from hf_sharp.recipe.texts import train_texts
from tests.inputs.commands import command, no_traceback, recipe, said_by  # noqa: F401
from tests.recipes.conftest import QUICK, TINY_VIT, bert_folder, image_folder, texts, vit_folder  # noqa: F401

pytestmark = pytest.mark.usefixtures("no_traceback")


@pytest.fixture
def csv_file(tmp_path):
    file = tmp_path / "mails.csv"
    datasets.Dataset.from_dict(texts((20, 8, 4))).to_csv(str(file))
    return file


def write(tmp_path, name, content):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path / name


# ---- data ----------------------------------------------------------------------------------------------------------

TABLES = {
    "empty.csv": ("", "is empty"),
    "header.csv": ("text,label\n", "has a header but no rows"),
    "latin1.csv": ("text,label\ncaf\xe9,a\nb,b\n".encode("latin-1"), "is not UTF-8 text. Convert it: iconv"),
    "utf16.csv": ("text,label\na,a\nb,b\n".encode("utf-16"), "is not UTF-8 text. Convert it: iconv"),
    "utf16le.csv": ("text,label\na,a\nb,b\n".encode("utf-16-le"), "is not UTF-8 text. Convert it: iconv"),
    "wide_first.csv": ("text,label\na,b,c\nd,e\n", "line 2: 3 cells, but the header has 2"),
    "wide_later.csv": ("text,label\na,b\nc,d,e\n", "Expected 2 fields in line 3, saw 3"),
    "open_quote.csv": ('text,label\na,b\n"c,d\n', "cannot be read"),
    "broken.json": ('{"text": "a", "label": ', "line 1: Expecting value at character 24"),
    "one_document.json": ('{\n"text": 1,\n"label": {"a": [1, "b"]}\n}', ""),
    "list.json": ("[1, 2, 3]", ""),
    "broken.parquet": (b"PAR1 this is not parquet PAR1", "cannot be loaded: "),
    "table.xlsx": (b"PK", "expected one of .csv"),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_that_cannot_be_read(name, tmp_path, capsys):
    content, message = TABLES[name]
    said = command(capsys, "counts", write(tmp_path, name, content))
    assert message in said
    assert name in said or not message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nosuchdata"], "the dataset 'nosuchdata' cannot be loaded: "),
        (["user/nosuchdata"], "the dataset 'user/nosuchdata' cannot be loaded: "),
        (["./nowhere"], "'./nowhere' does not exist"),
        (["photos/"], "'photos/' does not exist"),
        (["digits", "--imbalance_factor", "big"], "argument --imbalance_factor: invalid float value: 'big'"),
        (["digits", "--imbalance_factor", "0"], "imbalance_factor must be a finite number >= 1"),
        (["digits", "--train_split", "tran"], "there is no split 'tran'; the splits are 'train', 'test'"),
        (["digits", "--label_column", "y"], "there is no label column 'y'; the columns are 'image', 'label'"),
        (["digits", "--class_names", "a", "b"], "got 2 class_names for 10 classes"),
        (["digits", "--picture", "/proc/nowhere.png"], "the picture '/proc/nowhere.png' cannot be written"),
        (["digits", "--labl", "x"], "unknown flag: 'labl'"),
        (["digits", "and", "more"], "unexpected arguments on the command line: and more"),
        ([], "the following arguments are required: DATASET"),
    ],
    ids=str,
)
def test_mistakes_of_counts(words, message, capsys):
    assert message in command(capsys, "counts", *words)


def test_columns_that_differ_by_split(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", "train.csv", "text,label\na,b\nc,d\n")
    write(tmp_path / "data", "test.csv", "text,klass\na,b\n")
    said = command(capsys, "counts", tmp_path / "data")
    assert "'text', 'klass'" in said
    assert "all files of a dataset need the same columns" in said


# ---- options -------------------------------------------------------------------------------------------------------


RESNET = '{"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}'


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--per_device_train_batch_size", "0"], "per_device_train_batch_size must be an integer >= 1, got 0"),
        (["--per_device_eval_batch_size", "0"], "per_device_eval_batch_size must be an integer >= 1, got 0"),
        (["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps must be an integer >= 1, got 0"),
        (["--gradient_accumulation_steps", "-2"], "gradient_accumulation_steps must be an integer >= 1, got -2"),
        (["--warmup_steps", "-5"], "warmup_steps"),
        (["--learning_rate", "-1"], "learning_rate must be a finite number >= 0, got -1.0"),
        (["--learning_rate", "nan"], "learning_rate must be a finite number >= 0, got nan"),
        (["--learning_rate", "fast"], "argument --learning_rate/--learning-rate: invalid float value: 'fast'"),
        (["--max_steps", "1.5"], "invalid int value: '1.5'"),
        (["--lr_scheduler_type", "wavy"], "wavy"),
        (["--eval_strategy", "sometimes"], "sometimes"),
        (["--save_strategy", "never"], "never"),
        (["--optim", "adamx"], "adamx"),
        (["--use_cpu", "perhaps"], "perhaps"),
        (["--loss", "focall"], "unknown loss 'focall'"),
        (["--sharpness", "sam", "--rho", "-0.5"], "rho must be a finite number >= 0"),
        (
            ["--load_best_model_at_end", "--eval_strategy", "no", "--save_strategy", "epoch"],
            "the options do not fit together: ",
        ),
        (["--check_data", "all"], "unknown check_data 'all'; expected one of full, fast, off"),
        (["--test_fraction", "0.9"], "fraction"),
        (["--model_config", "{vit}"], "model_config is neither JSON"),
        (["--model_config", "[1]"], "model_config must be a mapping"),
        (["--picture_range", "5"], "picture_range must be a lower and a higher value"),
        (["--report_to", "wandb"], "wandb"),
        (["--optim", "adamw_bnb_8bit"], "bitsandbytes"),
        (["--optim", "adamw_apex_fused"], "apex"),
        (["--seed", "-1"], "seed must be an integer >= 0 and < 4294967296, got -1"),
        (["--data_seed", "99999999999"], "data_seed must be an integer >= 0 and < 4294967296, got 99999999999"),
        (["--lr_scheduler_kwargs", '{"x": 1}'], "the trainer cannot be created: get_linear_schedule_with_warmup() got"),
        (["--class_names", "a", "a", "b"], "class_names has 'a' more than once"),
        (["--validation_split", "train"], "--validation_split and --train_split are both 'train'"),
        (["--test_split", "train"], "the model would be tested on its training data"),
        (["--max_steps", "0", "--num_train_epochs", "0"], "nothing would be trained"),
        (
            ["--model_config", TINY_VIT.replace('"patch_size": 4', '"patch_size": 16')],
            "the model cannot take the images",
        ),
        (["--model_config", RESNET, "--gradient_checkpointing", "true"], "does not support gradient_checkpointing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_of_a_training(words, message, image_folder, tmp_path, capsys):  # noqa: F811
    quick = [word for word in QUICK if word != "--use_cpu"]
    argv = ["--dataset", image_folder, "--model_config", TINY_VIT, "--output_dir", tmp_path / "out", *quick]
    argv += ["--use_cpu"] if "--use_cpu" not in words else []
    said = recipe(capsys, train_images, *argv, *words)
    assert message in said
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("command_name", ["evaluate", "adjust", "sharpness", "compare", "card", "train"])
def test_commands_without_words(command_name, capsys):
    assert len(command(capsys, command_name).splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "m", "digits", "--batch_size", "many"],
        ["evaluate", "m", "digits", "--batch_size", "0"],
        ["sharpness", "m", "digits", "--output_dir", "o", "--split", "trian"],
        ["sharpness", "m", "digits"],
        ["adjust", "m", "digits", "--output_dir", "o", "--method", "magic"],
        ["compare", "a.yaml", "b.yaml", "--seeds", "few"],
        ["compare", "a.yaml", "b.yaml", "--seeds", "0"],
        ["compare", "a.yaml"],
        ["card", "folder", "--licence"],
        ["train", "a.yaml", "--accelerate", "tpu"],
    ],
    ids=" ".join,
)
def test_wrong_types_and_choices_are_at_most_three_lines(words, capsys):
    assert len(command(capsys, *words).splitlines()) <= 3


# ---- models --------------------------------------------------------------------------------------------------------


def broken(folder, kind):
    if kind == "truncated weights":
        file = next(f for f in os.listdir(folder) if f.endswith(".safetensors"))
        os.truncate(f"{folder}/{file}", 1000)
    elif kind == "no weights":
        os.unlink(f"{folder}/model.safetensors")
    elif kind == "no config":
        os.unlink(f"{folder}/config.json")
    elif kind == "broken config":
        Path(folder, "config.json").write_text("{")
    elif kind == "no such folder":
        shutil.rmtree(folder)
    elif kind == "a misspelt name":
        return "bert-bose-uncased"
    return folder


KINDS = ["truncated weights", "no weights", "no config", "broken config", "no such folder", "a misspelt name"]


@pytest.mark.parametrize("kind", KINDS)
def test_models_that_cannot_be_loaded_for_training(kind, csv_file, bert_folder, tmp_path, capsys):  # noqa: F811
    name = broken(bert_folder, kind)
    argv = ["--dataset", csv_file, "--test_fraction", "0.25", "--model_name_or_path", name, *QUICK]
    said = recipe(capsys, train_texts, *argv, "--output_dir", tmp_path / "out")
    assert ("does not exist" if kind == "no such folder" else "cannot be loaded") in said
    assert str(name) in said


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command_name", ["evaluate", "adjust"])
def test_models_that_cannot_be_loaded_by_commands(kind, command_name, image_folder, vit_folder, tmp_path, capsys):  # noqa: F811
    name = broken(vit_folder, kind)
    more = ["--output_dir", tmp_path / "out", *(["--strength", "1"] if command_name == "adjust" else [])]
    said = command(capsys, command_name, name, image_folder, *more)
    assert ("does not exist" if kind == "no such folder" else "cannot be loaded") in said
    assert str(name) in said
    assert not (tmp_path / "out").exists()


# ---- output --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["file", "file/inside"])
def test_output_that_cannot_be_written(name, image_folder, tmp_path, capsys):  # noqa: F811
    write(tmp_path, "file", "mine")
    out = tmp_path / name
    argv = ["--dataset", image_folder, "--model_config", TINY_VIT, "--output_dir", out, *QUICK]
    assert "the output folder" in recipe(capsys, train_images, *argv)
    for command_name in ("evaluate", "adjust", "sharpness"):
        more = ["--strength", "1"] if command_name == "adjust" else []
        assert "the output folder" in command(capsys, command_name, "m", "digits", "--output_dir", out, *more)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_card_of_a_folder_without_results(tmp_path, capsys):
    assert "has no long-tail report" in command(capsys, "card", tmp_path)
    write(tmp_path, "all_results.json", "{")
    assert "no card can be written for" in command(capsys, "card", tmp_path)


def test_configs_that_cannot_be_read(tmp_path, capsys):
    good = write(tmp_path, "good.yaml", yaml.safe_dump({"model_config": json.loads(TINY_VIT), "use_cpu": True}))
    for name, content in (("tabs.yaml", "a:\n\t- b\n"), ("binary.yaml", b"\xff\xfe\x00"), ("list.yaml", "- a\n")):
        assert name in command(capsys, "compare", good, write(tmp_path, name, content))


# ---- the boundary itself -------------------------------------------------------------------------------------------


def fail_with(error):
    def main():
        raise error

    return main


def test_a_stage_names_what_failed_and_keeps_the_first_words_of_a_long_message():
    with (
        pytest.raises(UserError, match=r"^the soup cannot be cooked: no salt Add some\.$"),
        stage("the soup cannot be cooked", "Add some."),
    ):
        raise OSError("no\n\n  salt")
    with pytest.raises(UserError) as raised, stage("it"):
        raise RuntimeError("x" * 5000)
    assert len(str(raised.value)) < 500
    with pytest.raises(UserError, match="it: KeyError"), stage("it"):
        raise KeyError


def test_a_bug_stays_a_traceback_and_the_flag_shows_any(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        run_recipe(lambda: 1 / 0)
    assert run_recipe(fail_with(UserError("mine"))) == "error: mine"
    monkeypatch.setattr(sys, "argv", ["hf-sharp", "--traceback"])
    with pytest.raises(UserError):
        run_recipe(fail_with(UserError("mine")))
    assert sys.argv == ["hf-sharp"]


def test_a_missing_package_and_ctrl_c_are_one_line(capsys, monkeypatch):
    missing = ModuleNotFoundError("No module named 'trackio'", name="trackio")
    assert "pip install trackio" in said_by(capsys, lambda: run_recipe(fail_with(missing)))
    assert run_recipe(fail_with(KeyboardInterrupt())) == 130
    printed = capsys.readouterr().err.strip().splitlines()
    how = "--resume_from_checkpoint true continues from the last checkpoint, if one was saved"
    assert printed == [f"interrupted: {how}"]
    monkeypatch.setattr(sys, "argv", ["recipe", "--resume_from_checkpoint=true"])
    run_recipe(fail_with(KeyboardInterrupt()))
    assert "interrupted: the same command continues" in capsys.readouterr().err


def test_the_flag_reaches_every_command(tmp_path):
    with pytest.raises(ValueError, match="is empty"):
        cli.main(["counts", str(write(tmp_path, "empty.csv", "")), "--traceback"])
