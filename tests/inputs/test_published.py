"""What is published names no folder of this machine; what was found out about model and data is taken from them."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from hf_sharp import cli
from hf_sharp.model.cosine_head import use_cosine_head
from hf_sharp.recipe import runs
from hf_sharp.recipe.images import train_images
from hf_sharp.recipe.models import class_for, load_model
from hf_sharp.recipe.recorded import recorded
from hf_sharp.recipe.texts import train_texts
from hf_sharp.reports.card_training import data_rows, shown_command
from hf_sharp.reports.results import write_results
from hf_sharp.trainer.hub import hide_paths, name_no_local_base, show_paths
from tests.conftest import make_images
from tests.inputs.commands import no_traceback, recipe  # noqa: F401
from tests.recipes.conftest import QUICK, TINY_VIT, bert_folder, image_folder, texts  # noqa: F401


@pytest.fixture
def mails(tmp_path):
    import datasets

    (tmp_path / "private").mkdir()
    file = tmp_path / "private" / "mails.csv"
    datasets.Dataset.from_dict(texts((20, 8, 4))).to_csv(str(file))
    return str(file)


def pushed(folder):
    """The files that `push_to_hub` uploads."""
    names = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    return [folder / name for name in names if name.parts[0][0] != "_" and not name.parts[0].startswith("checkpoint-")]


# ---- paths ---------------------------------------------------------------------------------------------------------


def test_no_published_file_holds_a_path_of_this_machine(mails, bert_folder, tmp_path, monkeypatch):  # noqa: F811
    out = tmp_path / "private" / "out"
    argv = ["--dataset", mails, "--test_fraction", "0.25", "--validation_fraction", "0.25", *QUICK]
    argv += ["--model_name_or_path", bert_folder, "--tokenizer_name", bert_folder, "--output_dir", str(out)]
    argv += ["--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "1"]
    argv += ["--load_best_model_at_end", "true", "--logging_dir", str(tmp_path / "private" / "logs")]
    argv = [word for i, word in enumerate(argv) if "logging_dir" not in word and "logging_dir" not in argv[i - 1]]
    monkeypatch.setattr("sys.argv", ["recipes/text_classification.py", *argv])
    train_texts(argv)
    files = pushed(out)
    assert {"all_results.json", "README.md", "training_args.bin", "trainer_state.json"} <= {file.name for file in files}
    assert [file.name for file in files if str(tmp_path).encode() in file.read_bytes()] == []
    results = json.loads((out / "all_results.json").read_text())
    assert results["options"]["dataset"] == "mails.csv"
    assert "--dataset mails.csv" in results["command"]
    assert results["local"] == ["mails.csv", Path(bert_folder).name]
    # On this machine nothing is forgotten: the commands find the data, and the run is known again.
    assert recorded(str(out))["options"]["dataset"] == mails
    assert cli.main(["evaluate", str(out)]) == 0
    assert train_texts([*argv, "--resume_from_checkpoint", "true"])["logit_adjusted"]["report"] == results["report"]
    other = shutil.copy(mails, tmp_path / "mails.csv")
    with pytest.raises(ValueError, match=r"had other options \(dataset: "):
        train_texts([*argv, "--resume_from_checkpoint", "true", "--dataset", str(other)])


def test_names_that_look_like_paths_stay_class_names(tmp_path):
    results = {"report": {"class_names": ["/m/01g317", "/m/09j2d"]}, "options": {"class_names": ["/m/01g317"]}}
    write_results(tmp_path, results)
    assert json.loads((tmp_path / "all_results.json").read_text()) == results


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python a.py --dataset '/srv/ann lee/photos' --x=1", "`python a.py --dataset photos --x=1`"),
        ("python a.py --output_dir=/srv/ann/out", "`python a.py --output_dir=out`"),
        ("python 'a.py --dataset /srv/ann/photos", "`python 'a.py --dataset photos`"),
    ],
)
def test_commands_are_shown_without_paths(command, expected):
    assert shown_command(command) == expected


def test_saved_arguments_hold_no_path_and_the_running_ones_keep_it(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=1, run_name=str(tmp_path / "run"))
    trainer.save_model(str(tmp_path / "saved"))
    saved = torch.load(tmp_path / "saved" / "training_args.bin", weights_only=False)
    assert (saved.output_dir, saved.run_name) == ("out", "run")
    assert trainer.args.output_dir == str(tmp_path / "out")
    assert pickle.loads(pickle.dumps(trainer.args)).output_dir == str(tmp_path / "out")


def test_an_adapter_names_its_base_by_the_last_part_while_it_is_pushed(tmp_path, caplog):
    config = {"base_model_name_or_path": str(tmp_path / "bert"), "r": 8}
    for folder in (tmp_path, tmp_path / "second"):  # PEFT saves further adapters in folders of their own
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps(config))
    held = hide_paths(tmp_path)
    for folder in (tmp_path, tmp_path / "second"):
        assert json.loads((folder / "adapter_config.json").read_text()) == config | {"base_model_name_or_path": "bert"}
    assert "push it too" in caplog.text
    shutil.rmtree(tmp_path / "second")  # as save_total_limit may
    show_paths(held)
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == config
    for other in ({"base_model_name_or_path": "user/bert"}, {"base_model_name_or_path": None}, {}):
        (tmp_path / "adapter_config.json").write_text(json.dumps(other))
        assert hide_paths(tmp_path) == {}
        assert json.loads((tmp_path / "adapter_config.json").read_text()) == other


@pytest.mark.parametrize("base", ["user/bert", "/srv/ann/bert", "C:\\ann\\bert"])
def test_the_card_that_peft_writes_names_a_base_on_the_hub_alone(base, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    card = ModelCard(f"---\nbase_model: {base}\ntags:\n- lora\n- base_model:adapter:{base}\n---\n\nText\n")
    card.save(tmp_path / "README.md")
    name_no_local_base(tmp_path)
    assert (base in (tmp_path / "README.md").read_text()) == (base == "user/bert")
    assert "lora" in ModelCard.load(tmp_path / "README.md").data.tags


def test_what_trackers_write_beside_the_model_holds_no_path(make_trainer, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    names = {"run_name": str(tmp_path / "run"), "class_importance": {"/m/01g317": 2.0}}
    trainer = make_trainer(max_steps=1, report_to="tensorboard", run_name=names["run_name"])
    trainer.args.class_importance = None
    trainer.train()
    (file,) = (tmp_path / "out" / "runs").rglob("events.*")
    assert str(tmp_path).encode() not in file.read_bytes()
    events = EventAccumulator(str(file)).Reload()
    args = json.loads(events.Tensors("args/text_summary")[0].tensor_proto.string_val[0])
    assert (args["output_dir"], args["run_name"]) == ("out", "run")
    trainer.args.class_importance = names["class_importance"]
    assert json.loads(trainer.args.to_json_string())["class_importance"] == names["class_importance"]
    assert trainer.args.to_dict()["output_dir"] == str(tmp_path / "out"), "what can be read back is as it was set"


@pytest.mark.parametrize("how", ["moved", "published"])
def test_the_best_checkpoint_is_found_where_it_lies_now(how, make_trainer, tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    options |= {"load_best_model_at_end": True, "sharpness": "none", "learning_rate": 0.0}  # the first stays the best
    trainer = make_trainer(eval_dataset=make_images(), **options)
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    shutil.rmtree(tmp_path / "out" / "checkpoint-3")
    if how == "moved":
        (tmp_path / "out").rename(tmp_path / "elsewhere")
        shutil.copytree(tmp_path / "elsewhere", tmp_path / "out")
        shutil.rmtree(tmp_path / "out" / "checkpoint-1")
        checkpoint = tmp_path / "elsewhere" / "checkpoint-2"
    else:
        checkpoint = tmp_path / "out" / "checkpoint-2"
        hide_paths(checkpoint)  # and the process was killed
    again = make_trainer(eval_dataset=make_images(), **options)
    again.train(str(checkpoint))
    assert again.state.best_model_checkpoint == str(checkpoint.with_name("checkpoint-1"))
    assert again.state.best_global_step == 1


def test_the_card_of_an_adapter_made_in_a_script(bert_folder, tmp_path):  # noqa: F811
    peft = pytest.importorskip("peft")
    import datasets

    from hf_sharp import SharpTrainer, SharpTrainingArguments

    base = AutoModelForSequenceClassification.from_pretrained(bert_folder, num_labels=2)
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    data = datasets.Dataset.from_dict({"input_ids": [[5, 6]] * 4, "attention_mask": [[1, 1]] * 4, "label": [0, 1] * 2})
    args = SharpTrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none", max_steps=1)
    trainer = SharpTrainer(model=model, args=args, train_dataset=data)
    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "A text classifier for 2 classes, fine-tuned from" in card
    assert str(tmp_path) not in card
    assert "library_name: peft" in card


def test_the_card_says_what_was_done_to_the_data():
    rows = dict(data_rows({"left_out": {"train": 1200, "test": 1}, "picture_range": [0.0, 4095.0]}))
    assert rows["rows left out: broken, empty or without a label"] == "1,200 of train, 1 of test"
    assert rows["grey values"].startswith("from 0 to 4095, scaled to 0 to 255")
    assert data_rows({}) == []


# ---- tokenizers and code that a model brings along -----------------------------------------------------------------


@pytest.mark.usefixtures("no_traceback")
def test_a_model_folder_without_tokenizer_files_is_refused(bert_folder, mails, tmp_path, capsys):  # noqa: F811
    for file in Path(bert_folder).glob("*token*"):
        file.unlink()
    argv = ["--dataset", mails, "--test_fraction", "0.25", "--model_name_or_path", bert_folder, *QUICK]
    said = recipe(capsys, train_texts, *argv, "--output_dir", tmp_path / "out")
    assert "--tokenizer_name" in said
    assert not (tmp_path / "out").exists()


@pytest.fixture
def cosine_folder(bert_folder, tmp_path):  # noqa: F811
    names = {0: "alpha", 1: "beta", 2: "gamma"}
    old = AutoModelForSequenceClassification.from_pretrained(bert_folder).config
    config = BertConfig(**old.to_diff_dict() | {"num_labels": 3, "id2label": names})
    model = BertForSequenceClassification(config)
    use_cosine_head(model, 3, allow_custom_code=True)
    model.save_pretrained(tmp_path / "cosine")
    for file in Path(bert_folder).glob("*token*"):
        shutil.copy(file, tmp_path / "cosine")
    (tmp_path / "cosine" / "modeling_cosine_head.py").write_text("raise SystemExit('code beside the weights was run')")
    return str(tmp_path / "cosine")


def test_a_cosine_head_of_hf_sharp_opens_with_the_class_in_the_package(cosine_folder, mails, tmp_path):
    kind, config = class_for(AutoModelForSequenceClassification, cosine_folder)
    assert (kind.__name__, config.model_type) == ("CosineBertForSequenceClassification", "cosine-bert")
    common = [cosine_folder, mails, "--test_fraction", "0.25"]
    assert cli.main(["evaluate", *common]) == 0
    adjusted = str(tmp_path / "adjusted")
    assert cli.main(["adjust", *common, "--strength", "1", "--output_dir", adjusted]) == 0
    kind, config = class_for(AutoModelForSequenceClassification, adjusted)
    bias = kind.from_pretrained(adjusted, config=config).classifier.bias
    assert bias.argmax() == 2, "the rarest class gains most"
    other = AutoModelForSequenceClassification.from_pretrained(adjusted, trust_remote_code=True)
    assert torch.equal(other.classifier.bias, bias), "its own code, saved with it, has the correction too"
    refused = cli.main(["adjust", *common, "--method", "tau_norm", "--strength", "1", "--output_dir", f"{adjusted}2"])
    assert "the lengths of the head's rows" in refused
    argv = ["--dataset", mails, "--test_fraction", "0.25", "--model_name_or_path", cosine_folder, *QUICK]
    train_texts([*argv, "--output_dir", str(tmp_path / "tuned")])


def test_code_of_others_is_run_only_where_it_is_trusted(cosine_folder):
    file = Path(cosine_folder, "config.json")
    config = json.loads(file.read_text())
    config.pop("cosine_head")
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"needs its own code \(.*--trust_remote_code true"):
        class_for(AutoModelForSequenceClassification, cosine_folder)
    with pytest.raises(SystemExit, match="code beside the weights was run"):
        class_for(AutoModelForSequenceClassification, cosine_folder, trust_remote_code=True)
    assert callable(load_model)


# ---- every run is made before the first training -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--loss", "ldam"], "needs cosine logits"),
        (["--class_importance", '{"cta": 2}'], "class_importance has the class 'cta'.*Did you mean 'cat'"),
        (["--loss", "large_margin", "--head", "clasifier"], "clasifier"),
        (["--sharpness", "cc_sam", "--head", "clasifier"], "clasifier"),
        (["--optim", "adamw_apex_fused"], "apex"),
        (["--sharpness", "sam", "--ascent", "momentum", "--optim", "sgd"], "SGD keeps none"),
        (["--sharpness", "sam", "--ascent", "momentum", "--optim", "adafactor"], "Adafactor keeps none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("only", [False, True], ids=["compared", "check_only"])
def test_a_run_that_cannot_be_made_stops_before_any_training(
    flags,
    message,
    only,
    image_folder,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    monkeypatch.setattr(runs, "_train_and_evaluate", lambda *_: pytest.fail("a training has begun"))
    argv = ["--dataset", image_folder, "--model_config", TINY_VIT, "--output_dir", str(tmp_path / "out"), *QUICK]
    argv += ["--check_only", "true"] if only else ["--compare_with", "baseline"]
    with pytest.raises(ValueError, match=message):
        train_images([*argv, *flags])


def test_a_check_of_what_fits_writes_nothing(image_folder, tmp_path):  # noqa: F811
    argv = ["--dataset", image_folder, "--model_config", TINY_VIT, "--output_dir", str(tmp_path / "out"), *QUICK]
    assert train_images([*argv, "--check_only", "true"]) == {}
    assert train_images([*argv, "--check_only", "true", "--compare_with", "baseline"]) == {}
    assert not (tmp_path / "out").exists()


def test_what_is_overwritten_stays_until_the_new_run_trains(image_folder, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    argv = ["--dataset", image_folder, "--model_config", TINY_VIT, "--output_dir", str(out), *QUICK]
    argv += ["--save_strategy", "steps", "--save_steps", "1"]
    train_images(argv)
    (out / "empty").mkdir()
    files = {file: file.read_bytes() for file in out.glob("**/*") if file.is_file()}
    again = [*argv, "--overwrite_output_dir", "true"]
    train_images([*again, "--check_only", "true"])
    for wrong in (["--dataset", str(tmp_path / "nowhere")], ["--head", "clasifier", "--loss", "large_margin"]):
        with pytest.raises(ValueError, match=r"nowhere|clasifier"):
            train_images([*again, *wrong])
    assert {file: file.read_bytes() for file in out.glob("**/*") if file.is_file()} == files
    (out / "checkpoint-99").mkdir()
    train_images([*again, "--seed", "1"])
    assert not (out / "checkpoint-99").exists()
    assert json.loads((out / "all_results.json").read_text())["options"]["seed"] == 1


def test_empty_folders_are_not_in_the_way(image_folder, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    (out / "baseline").mkdir(parents=True)
    argv = ["--dataset", image_folder, "--model_config", TINY_VIT, "--output_dir", str(out), *QUICK]
    assert list(train_images(argv)) == ["logit_adjusted"]
