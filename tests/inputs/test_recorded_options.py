"""Commands read what the training recorded beside the model, say what they took over, and warn of contradictions."""

import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import datasets
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

from hf_sharp import cli
from hf_sharp.commands.adjust import AdjustArguments, _warn_of_corrected_model
from hf_sharp.commands.evaluate import EvaluateArguments
from hf_sharp.recipe.recorded import recorded, take_over
from hf_sharp.recipe.saved import LookArguments, choose_data
from hf_sharp.recipe.texts import train_texts
from tests.recipes.conftest import QUICK, bert_folder, image_folder, texts  # noqa: F401


def taken(options, argv=(), dataset="mails.csv", **data):
    """The options of `hf-sharp evaluate` after it looked at those of the training."""
    what, look = EvaluateArguments(), LookArguments(dataset=dataset, **data)
    take_over({"options": {"dataset": "mails.csv"} | options}, (what, look), list(argv), dataset)
    return vars(what) | vars(look)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_length", 200),
        ("tokenizer_name", "t"),
        ("test_fraction", 0.2),
        ("validation_fraction", 0.1),
        ("imbalance_factor", 50.0),
        ("imbalance_seed", 3),
        ("label_column", "kind"),
        ("text_column", "body"),
        ("image_column", "scan"),
        ("class_names", ["ham", "spam"]),
        ("rare_threshold", 5),
        ("separator", ";"),
        ("test_split", "held_out"),
    ],
)
def test_options_of_the_training_are_taken_over_and_named(name, value, caplog):
    assert taken({name: value})[name] == value
    assert f"taken over from the training: {name} {value}" in caplog.text


def test_options_and_choices_that_are_gone_are_passed_over(caplog):
    assert taken({"ascent": "gone", "gone_option": 0.8}) == taken({})
    assert "gone" not in caplog.text


@pytest.mark.parametrize("name", ["test_fraction", "label_column", "imbalance_factor", "class_names"])
def test_options_of_other_data_are_left_alone(name):
    default = taken({})[name]
    assert taken({name: 0.5}, dataset="other.csv")[name] == default
    assert taken({"max_length": 200}, dataset="other.csv")["max_length"] == 200


@pytest.mark.parametrize(
    ("option", "flags", "data", "message"),
    [
        (
            {"test_fraction": 0.2},
            ["--test_fraction", "0.5"],
            {"test_fraction": 0.5},
            r"test_fraction 0.5 (trained with 0.2)",
        ),
        ({}, ["--test_fraction=0.5"], {"test_fraction": 0.5}, "test_fraction 0.5 (trained with None)"),
        ({}, ["--max-length", "64"], {"max_length": 64}, "max_length 64 (trained with 128)"),
        ({"imbalance_seed": 1}, ["--imbalance_seed", "2"], {"imbalance_seed": 2}, "imbalance_seed 2 (trained with 1)"),
    ],
    ids=str,
)
def test_flags_that_contradict_the_training_win_with_a_warning(option, flags, data, message, caplog):
    (name, value), *_ = data.items()
    assert taken(option, flags, **data)[name] == value
    assert f"other options than in the training: {message}" in caplog.text
    assert ("may be among the others now" in caplog.text) == (name == "test_fraction")


def test_options_of_the_command_alone_do_not_contradict_the_training(caplog):
    what = EvaluateArguments(per_class="10", cost_matrix="costs.csv", rare_threshold=5)
    record = {"options": {"dataset": "mails.csv", "rare_threshold": 5}, "data": {"cost_matrix": [[0, 1], [9, 0]]}}
    flags = ["--per_class", "--cost", "costs.csv", "--rare_threshold", "5"]
    take_over(record, (what, LookArguments(dataset="mails.csv")), flags, "mails.csv")
    assert caplog.text == ""
    assert what.cost_matrix == "costs.csv", "a flag wins under each of its names"


def test_the_dataset_of_the_training_is_the_default(tmp_path, caplog):
    (tmp_path / "all_results.json").write_text(json.dumps({"options": {"dataset": "mails.csv", "test_fraction": 0.2}}))
    look = LookArguments()
    choose_data(EvaluateArguments(), look, str(tmp_path), None, [])
    assert (look.dataset, look.test_fraction) == ("mails.csv", 0.2)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="name the dataset after the model"):
        choose_data(EvaluateArguments(), LookArguments(), str(tmp_path / "none"), None, [])
    with pytest.raises(ValueError, match="two datasets are named"):
        choose_data(EvaluateArguments(), LookArguments(dataset="b"), str(tmp_path), "a", ["--dataset", "b"])


@pytest.mark.parametrize("content", [b"{", b"", b"\xff"], ids=repr)
def test_a_damaged_record_is_not_taken_for_none(content, tmp_path):
    (tmp_path / "all_results.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"all_results.json of the model .* is damaged: .* Restore it, or delete it"):
        recorded(str(tmp_path))


@pytest.mark.parametrize("content", ["[]", '{"report": 1}'], ids=repr)
def test_a_folder_without_a_record_has_none(content, tmp_path):
    assert recorded(str(tmp_path)) == {}
    (tmp_path / "all_results.json").write_text(content)
    assert recorded(str(tmp_path)) == {}


def test_the_record_of_a_model_on_the_hub_is_read(tmp_path, monkeypatch, caplog):
    (tmp_path / "all_results.json").write_text('{"options": {"max_length": 9}}')

    def download(name, file):
        if name != "user/model":
            raise RemoteEntryNotFoundError("404", response=Mock())
        return str(tmp_path / file)

    monkeypatch.setattr("hf_sharp.recipe.recorded.hf_hub_download", download)
    assert recorded("user/model")["options"] == {"max_length": 9}
    assert recorded("user/other") == {}
    assert caplog.text == ""


def test_a_hub_that_cannot_be_asked_is_a_warning(monkeypatch, caplog):
    def download(name, file):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("hf_sharp.recipe.recorded.hf_hub_download", download)
    assert recorded("user/model") == {}
    assert "all_results.json of the model 'user/model' cannot be looked up" in caplog.text
    assert "no connection" in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "logit_adjusted"},
        {"loss": "vs"},
        {"loss": "weighted"},
        {"reweight_after": 0.8},
        {"sampler": "square_root"},
    ],
)
def test_a_second_correction_is_a_warning(options, caplog):
    _warn_of_corrected_model({"options": options}, "logit_adjustment")
    assert "logit_adjustment does it twice" in caplog.text


@pytest.mark.parametrize("record", [{}, *({"options": {"loss": loss}} for loss in ("cross_entropy", "focal"))], ids=str)
def test_a_first_correction_is_none(record, caplog):
    _warn_of_corrected_model(record, "tau_norm")
    assert caplog.text == ""


def test_the_strength_is_chosen_unless_it_is_given():
    assert AdjustArguments(output_dir="o").strength == "auto"


def test_a_report_of_the_same_model_and_data_is_that_of_the_training(bert_folder, tmp_path, caplog):  # noqa: F811
    data = datasets.Dataset.from_dict(texts((20, 8, 4)))
    data = data.rename_columns({"text": "body", "label": "kind"})
    data.to_csv(str(tmp_path / "mails.csv"), sep=";")
    argv = ["--dataset", str(tmp_path / "mails.csv"), "--test_fraction", "0.25", "--model_name_or_path", bert_folder]
    argv += ["--text_column", "body", "--label_column", "kind", "--max_length", "4", "--separator", ";", *QUICK]
    trained = train_texts([*argv, "--output_dir", str(tmp_path / "out")])["logit_adjusted"]["report"]
    assert cli.main(["evaluate", str(tmp_path / "out"), "--output_dir", str(tmp_path / "report")]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["class_counts"] == trained["class_counts"]
    assert report["per_class_recall"] == trained["per_class_recall"]
    for name in ("max_length 4", "test_fraction 0.25", "label_column kind", "text_column body"):
        assert name in caplog.text


def test_data_of_the_training_are_recognized_from_another_folder(bert_folder, tmp_path, caplog, monkeypatch):  # noqa: F811
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    rows = texts((20, 8, 4))
    datasets.Dataset.from_dict(rows | {"customer": [i // 2 for i in range(32)]}).to_csv("mails.csv", sep=";")
    argv = ["--dataset", "mails.csv", "--separator", ";", "--test_fraction", "0.25", "--group_column", "customer"]
    argv += ["--model_name_or_path", bert_folder, *QUICK]
    trained = train_texts([*argv, "--output_dir", "out"])["logit_adjusted"]["report"]
    assert str(tmp_path) not in Path("out/all_results.json").read_text()
    flags = ["--separator", ";", "--test_fraction", "0.25"]
    adjust = ["adjust", ".", "--method", "tau_norm", "--strength", "1", "--output_dir", "../out2"]
    monkeypatch.chdir(tmp_path / "there" / "out")
    assert cli.main(adjust) == 0  # a changed model remembers it, too
    monkeypatch.chdir(tmp_path / "here")
    for words in (["../there/out", "../there/mails.csv", *flags], ["../there/out"], ["../there/out2"]):
        output = tmp_path / f"report {len(words)} {Path(words[0]).name}"
        assert cli.main(["evaluate", *words, "--output_dir", str(output)]) == 0
        report = json.loads((output / "report.json").read_text())
        assert report["class_counts"] == trained["class_counts"]
        if words[0] == "../there/out":
            assert report["per_class_recall"] == trained["per_class_recall"]
    assert "taken over from the training: group_column customer" in caplog.text
    assert str(tmp_path) not in "".join(
        file.read_text() for file in (tmp_path / "there").rglob("*.json") if file.name[0] != "_"
    )
    shutil.copytree("../there/out", "moved")
    shutil.copy("../there/mails.csv", "mails.csv")
    caplog.clear()
    assert cli.main(["evaluate", "moved", "mails.csv", *flags]) == 0, "other data of the same name"
    assert "group_column" not in caplog.text
    Path("moved/_local.json").unlink()
    assert cli.main(["evaluate", "moved", str(tmp_path / "here" / "mails.csv"), *flags]) == 0
    assert "group_column customer" in caplog.text, "a run of an older version, in the folder of the training"


def test_data_that_may_be_those_of_the_training_are_warned_of(tmp_path, caplog, monkeypatch):
    (tmp_path / "mails.csv").touch()
    options = {"dataset": "data/mails.csv", "group_column": "customer", "max_length": 9, "separator": ";"}
    for record in ({}, {"trained_in": "/nowhere"}):
        look = LookArguments(dataset=str(tmp_path / "mails.csv"))
        take_over({"options": options} | record, (look,), ["--separator=,"], look.dataset)
        assert (look.group_column, look.max_length) == (None, 9)
        assert "may be other data than its 'data/mails.csv': group_column customer. Set these" in caplog.text
        caplog.clear()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mails.csv").touch()
    take_over({"options": options, "trained_in": str(tmp_path)}, (look,), [], look.dataset)
    assert look.group_column is None
    assert caplog.text == "", "both files exist, and differ"


def test_paths_in_the_options_lead_to_the_same_files_from_another_folder(tmp_path, monkeypatch):
    for name in ("photos", "tokenizer"):
        (tmp_path / name).mkdir()
    (tmp_path / "train.txt").touch()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    options = {"dataset": "photos", "split_lists": ["train=train.txt"], "tokenizer_name": "tokenizer"}
    look = LookArguments(dataset="../photos")
    take_over({"options": options, "trained_in": str(tmp_path)}, (look,), [], look.dataset)
    assert look.split_lists == [f"train={tmp_path / 'train.txt'}"]
    assert look.tokenizer_name == str(tmp_path / "tokenizer")
    look = LookArguments(dataset="user/photos")
    take_over({"options": options | {"dataset": "user/photos", "tokenizer_name": "user/t"}}, (look,), [], "user/photos")
    assert (look.split_lists, look.tokenizer_name) == (["train=train.txt"], "user/t")


def test_new_data_are_evaluated_whole_with_the_class_counts_of_the_training(bert_folder, tmp_path, caplog):  # noqa: F811
    old, new, model = tmp_path / "old.csv", tmp_path / "new.csv", tmp_path / "model"
    datasets.Dataset.from_dict(texts((24, 12, 8))).to_csv(str(old))
    datasets.Dataset.from_dict(texts((3, 5, 0), seed=1)).to_csv(str(new))
    argv = ["--dataset", str(old), "--model_name_or_path", bert_folder, "--test_fraction", "0.25"]
    train_texts([*argv, *QUICK, "--output_dir", str(model), "--rare_threshold", "7"])
    cli.main(["evaluate", str(model), str(new), "--output_dir", str(tmp_path / "report")])
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["class_counts"] == json.loads((model / "all_results.json").read_text())["report"]["class_counts"]
    assert (report["per_class_support"], report["rare_threshold"]) == ([3, 5, 0], 7)
    assert "8 examples are evaluated: all of" in caplog.text
    cli.main(["evaluate", str(model), str(new), "--test_fraction", "0.5", "--output_dir", str(tmp_path / "half")])
    report = json.loads((tmp_path / "half" / "report.json").read_text())
    assert sum(report["per_class_support"]) < 8, "a share is held out, as asked"
    said = cli.main(["evaluate", str(model), str(new), "--split", "validation"])
    assert said == "error: there is no split 'validation'; the splits are 'test'."
