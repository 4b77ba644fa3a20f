"""A walk through every command with a user's mistakes: no traceback, at most 6 lines, and a failing exit status.

A new command needs a list of mistakes here: `test_every_command_is_walked` names what is missing.
"""

import re
import sys
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessor

from hf_sharp import cli
from hf_sharp.commands import compare, train
from hf_sharp.recipe.__main__ import main as recipe
from hf_sharp.recipe.boundary import run_recipe
from tests.conftest import make_bert, make_vit
from tests.inputs.commands import command, no_traceback  # noqa: F401

pytestmark = pytest.mark.usefixtures("no_traceback")

AT_LEAST = 6  # mistakes for each command
# {word} stands for a file or folder of the fixture `here`.
MISTAKES = {
    "": ["evalute m digits", "Train", "--versoin", "-x"],
    "counts": [
        "",
        "nowhere/",
        "{mails} more",
        "{mails} --label_column kind",
        "{mails} --train_split dev",
        "{mails} --class_names ham",
        "{mails} --imbalance_factor -1",
        "{mails} --imbalance_factor 1e400",
        "{mails} --imbalance-factr 2",
        "{mails} --separator ;",
        "{empty}",
        "{folder}",
        "{picture}",
        "{model}",
    ],
    "train": [
        "",
        "nowhere.yaml",
        "{broken}",
        "{picture}",
        "{folder}",
        "{config} --accelerate tpu",
        "{config} --accelerate",
        "--rho",
        "--accelerate ddp",
        "{config} --sharpness samm",
        "{config} --dataset nowhere/",
        "{config} --model_name_or_path bert-bose",
        "{config} --model_name_or_path {coded}",
        "{config} --model_name_or_path {folder}",
        "{config} --model_config {{",
        "{config} --model_config nowhere.json",
        "{config} --model_name_or_path {text_model}",
        "{config} --dataset {images} --eval_strategy epoch",
        "{config} --dataset {images} --head clasifier --sharpness cc_sam --check_only true",
    ],
    "compare": [
        "",
        "{config}",
        "{config} {config}",
        "{config} nowhere.yaml",
        "{config} {broken}",
        "{config} {other} --seeds 0",
        "{config} {other} --seeds few",
        "{config} {other} --rhoo 1",
        "{config} {other} stray",
        "{config} {other} --rho big",
        "{config} {other} --dataset {images} --loss ldam",
    ],
    "evaluate": [
        "",
        "{model}",
        "nowhere {images}",
        "{model} nowhere/",
        "{model} {images} --split trian",
        "{model} {images} --label_column kind",
        "{model} {images} --image_column pixels",
        "{model} {images} --test_fraction 2",
        "{model} {images} --batch_size 0",
        "{model} {images} --class_names a b c",
        "{model} {images} --output_dir {images}",
        "{model} {images} --output_dir {picture}",
        "{model} {images} --dataset digits",
        "{model} {images} --check_data some",
        "{model} {images} --picture_range 5 1",
        "{model} {mails} --test_fraction 0.5",
        "{text_model} {images}",
        "{model} {images} --rare_threshold 9 --common_threshold 3",
        "{picture} {images}",
        "{folder} {images}",
        "{coded} {images}",
    ],
    "adjust": [
        "",
        "{model} {images}",
        "{model} {images} --output_dir {new}",
        "{model} {images} --output_dir {new} --strength lots",
        "{model} {images} --output_dir {new} --strength -1",
        "{model} {images} --output_dir {new} --strength nan",
        "{model} {images} --output_dir {new} --method magic",
        "{model} {images} --output_dir {new} --strength 1 --head classifer",
        "{model} {images} --output_dir {new} --strength 1 --loss focall --method predicted_norm",
        "{model} {images} --output_dir {images} --strength 1",
        "{coded} {images} --output_dir {new} --strength 1",
    ],
    "sharpness": [
        "",
        "{model} {images}",
        "{model} {images} --output_dir {images}",
        "{model} {images} --output_dir {new} --split dev",
        "{model} {images} --output_dir {new} --compare_with {model}",
        "{model} {images} --output_dir {new} --rho -1",
        "{model} {images} --output_dir {new} --rho nan",
        "{model} {images} --output_dir {new} --rho 0",
        "{model} {images} --output_dir {new} --examples 0",
        "{model} {images} --output_dir {new} --hessian_examples 0",
        "{model} {images} --output_dir {new} --eigenvalues 0",
        "{model} {images} --output_dir {new} --directions 0",
        "{model} {images} --output_dir {new} --probes -1",
        "{model} {images} --output_dir {new} --tolerance -1",
        "{model} {images} --output_dir {new} --batch_size 0",
        "{coded} {images} --output_dir {new}",
    ],
    "tune": [
        "",
        "nowhere.yaml",
        "{config}",
        "{config} --budget soon",
        "{config} --budget 0runs",
        "{config} --budget 2runs --search rhoo",
        "{config} --budget 2runs --dataset nowhere/",
        "{config} --budget 2runs --output_dir {picture}",
        "{broken} --budget 2runs",
        "{picture} --budget 2runs",
    ],
    "predict": [
        "",
        "{model}",
        "nowhere {images}",
        "{model} nowhere/",
        "{model} {empty}",
        "{model} {images} --top_k -1",
        "{model} {images} --batch_size 0",
        "{model} {images} --abstain 2",
        "{model} {images} --output_dir {images}",
        "{model} {images} --output_dir {picture}",
        "{model} {images} --format xml",
        "{folder} {images}",
        "{coded} {images}",
    ],
    "calibrate": [
        "",
        "{model}",
        "{model} {images}",
        "nowhere {images} --output_dir {new}",
        "{model} nowhere/ --output_dir {new}",
        "{model} {images} --output_dir {images}",
        "{model} {images} --output_dir {new} --split dev",
        "{model} {images} --output_dir {new} --batch_size 0",
        "{coded} {images} --output_dir {new}",
    ],
    "shift": [
        "",
        "{model}",
        "nowhere {images}",
        "{model} nowhere/ --dataset {images} --split test",
        "{model} {images} --dataset nowhere/",
        "{model} {images} --dataset {images} --threshold 2",
        "{model} {images} --dataset {images} --bootstrap 1",
        "{model} {images} --dataset {images} --output_dir {picture}",
        "{picture} {images} --dataset {images}",
        "{coded} {images} --dataset {images}",
    ],
    "card": [
        "",
        "nowhere",
        "{folder}",
        "{picture}",
        "{model}",
        "{broken_results}",
        "{old_results}",
        "{folder} --language English",
        "{folder} more",
    ],
}
SMALL = "model_config: {model_type: vit, image_size: 8, patch_size: 4, hidden_size: 8, num_attention_heads: 2}\n"
WALKS = [(name, words) for name, lines in MISTAKES.items() for words in lines]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """What a user has: a config, data, a model, and files that are not what they seem."""
    root = tmp_path_factory.mktemp("here")
    (root / "config.yaml").write_text(f'{SMALL}use_cpu: true\noutput_dir: "out"\n')
    (root / "other.yaml").write_text(f"{SMALL}use_cpu: true\nrho: 0.1\n")
    (root / "broken.yaml").write_text("rho: [0.1\n")
    (root / "mails.csv").write_text("text,label\nhello,ham\nbuy,spam\nhi,ham\nnow,spam\n")
    (root / "empty.csv").write_text("")
    (root / "folder").mkdir()
    Image.new("L", (8, 8)).save(root / "picture.png")
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / "images" / split / name).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (8, 8), (i, 50, 90)).save(root / "images" / split / name / f"{i}.png")
    torch.manual_seed(0)
    model = make_vit(num_labels=2, num_channels=3)
    model.config.id2label, model.config.label2id = {0: "cat", 1: "dog"}, {"cat": 0, "dog": 1}
    for name in ("model", "coded"):
        model.save_pretrained(root / name)
        ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(root / name)
    make_bert(num_labels=2).save_pretrained(root / "text_model")
    config = (root / "coded" / "config.json").read_text()
    (root / "coded" / "config.json").write_text(
        config.replace('"model_type": "vit"', '"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config"}')
    )
    (root / "coded" / "evil.py").write_text("raise SystemExit('code of the model was run')\n")
    for name, content in (("broken_results", "{"), ("old_results", '{"eval_accuracy": 1}')):
        (root / name).mkdir()
        (root / name / "all_results.json").write_text(content)
    return root


def files(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if path.is_file()}


def places(root: Path) -> dict[str, Path]:
    return {path.stem: path for path in root.iterdir()} | {"new": root / "new"}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Trainings run in this process, in place of those that accelerate starts: the same code, without the wait."""

    def launch(config, flags, accelerate="single_gpu"):
        train._command(config, flags, accelerate)  # finds the accelerate config
        monkeypatch.setattr("sys.argv", ["hf-sharp", *(["--config", config] if config else []), *flags])
        if status := run_recipe(recipe):
            print(status, file=sys.stderr)
            raise SystemExit(1)

    monkeypatch.setattr(train, "launch", launch)
    monkeypatch.setattr(compare, "launch", launch)


@pytest.mark.parametrize(("name", "words"), WALKS, ids=[f"{name} {words}".strip() for name, words in WALKS])
def test_a_mistake_is_told_in_a_few_lines(name, words, here, capsys, monkeypatch):
    monkeypatch.chdir(here)
    monkeypatch.setattr("sys.stdin", None)
    before = files(here)
    said = command(capsys, *([name] if name else []), *(word.format(**places(here)) for word in words.split()))
    assert "code of the model was run" not in said
    assert files(here) == before, "nothing is written"


def test_every_command_is_walked():
    few = {name for name in cli.COMMANDS if len(MISTAKES.get(name, ())) < AT_LEAST}
    assert not few, f"list at least {AT_LEAST} mistakes for {few} in MISTAKES"
    assert len(WALKS) >= 60


def test_the_places_are_what_the_mistakes_name(here):
    named = {word for _, words in WALKS for word in re.findall(r"\{(\w+)\}", words)}
    assert named <= set(places(here))
    assert datasets.load_dataset("imagefolder", data_dir=str(here / "images"))["train"].num_rows == 4
