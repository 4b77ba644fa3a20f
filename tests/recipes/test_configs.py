"""Every config of the recipes: its options, and its code path on a stand-in with the same columns, splits and names.

The stand-ins take their columns from the Hub's cards; they show that a config fits what the cards say, not that the
cards are right.
"""

import itertools
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from PIL import Image
from transformers import CLIPConfig, CLIPForImageClassification, CLIPImageProcessorPil

from hf_sharp.recipe import RecipeParser, plan_runs, train_images, train_texts
from hf_sharp.recipe.options import OPTIONS
from tests.recipes.conftest import WORDS

CONFIGS = sorted((Path(__file__).parents[2] / "recipes" / "configs").glob("*.yaml"))
NAMES = ["ant", "bee", "cat", "dog"]
COUNTS = (20, 14, 12, 12)
QUICK = ["--max_steps", "1", "--per_device_train_batch_size", "4", "--per_device_eval_batch_size", "16", "--use_cpu"]
QUICK += ["--bf16", "false", "--dataloader_num_workers", "0", "--disable_tqdm", "true", "--warmup_steps", "0"]
QUICK += ["--compare_with", "none", "--resume_from_checkpoint", "false"]
ALONE = {"digits", "/usr/share/datasets/fashion-mnist"}  # the digits stand in for other grey images of ten classes

IMAGE, TEXT, NAMED, INDEX = "image", "text", "ClassLabel", "int"
NAME, OTHER, NUMBER, ID, GROUP = "name", "other text", "other number", "id", "group"
# Columns, and splits other than train and test, of what a config names: see the cards.
STAND_INS = {
    "uoft-cs/cifar100": ({"img": IMAGE, "fine_label": NAMED, "coarse_label": NUMBER}, ("train", "test")),
    "mteb/sun397": ({"image": IMAGE, "label": NAMED}, ("train", "test")),
    "tanganke/gtsrb": ({"image": IMAGE, "label": NAMED}, ("train", "test", "contrast", "gaussian_noise")),
    "mteb/oxford-flowers": ({"image": IMAGE, "label": INDEX}, ("train", "test")),
    "mteb/wds_fer2013": ({"jpg": IMAGE, "cls": INDEX, "__key__": OTHER}, ("train", "test")),
    "pufanyi/cassava-leaf-disease-classification": (
        {"image_id": OTHER, "image": IMAGE, "label": NAMED},
        ("train", "validation", "test"),
    ),
    "coastalcph/lex_glue": ({"text": TEXT, "label": NAMED}, ("train", "validation", "test")),
    "mteb/MTOPIntentClassification": (
        {"id": NUMBER, "text": TEXT, "label": INDEX, "label_text": NAME},
        ("train", "validation", "test"),
    ),
    "SetFit/amazon_massive_intent_en-US": (
        {"id": NUMBER, "label": INDEX, "text": TEXT, "label_text": NAME},
        ("train", "validation", "test"),
    ),
    "DeepPavlov/clinc_oos": ({"text": TEXT, "label": INDEX, "label_text": NAME}, ("train", "validation", "test")),
    "SetFit/TREC-QC": (
        {"text": TEXT, "label": INDEX, "label_text": NAME, "label_coarse": NUMBER, "label_coarse_text": OTHER},
        ("train", "test"),
    ),
    "SetFit/20_newsgroups": ({"text": TEXT, "label": INDEX, "label_text": NAME}, ("train", "test")),
    "TimSchopf/medical_abstracts": ({"medical_abstract": TEXT, "condition_label": "from 1"}, ("train", "test")),
    "tdavidson/hate_speech_offensive": (
        {"count": NUMBER, "hate_speech_count": NUMBER, "class": NAMED, "tweet": TEXT},
        ("train",),
    ),
    "mteb/banking77": ({"text": TEXT, "label": INDEX, "label_text": NAME}, ("train", "test")),
    "marmal88/skin_cancer": (
        {"image": IMAGE, "image_id": ID, "lesion_id": GROUP, "dx": NAME, "dx_type": OTHER, "age": NUMBER, "sex": OTHER},
        ("train", "validation", "test"),
    ),
    "data/debian_sections": ({"text": TEXT, "label": NAME}, ("train", "test")),
}
LACKING = {("mteb/MTOPIntentClassification", "validation"), ("SetFit/TREC-QC", "test")}  # some classes
GREY = {"mteb/wds_fer2013"}


def stand_in_of(config):
    return yaml.safe_load(config.read_text())


def rows_of(columns, counts, grey, seed):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))

    number = itertools.count()

    def picture(label):
        pixels = rng.integers(0, 256, (36, 40) if grey else (36, 40, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    make = {
        IMAGE: (picture, datasets.Image()),
        TEXT: (lambda label: f"w{label} " + " ".join(rng.choice(WORDS[4:], 5)), datasets.Value("string")),
        NAMED: (int, datasets.ClassLabel(names=NAMES)),
        INDEX: (int, datasets.Value("int64")),
        "from 1": (lambda label: int(label) + 1, datasets.Value("int64")),
        NAME: (lambda label: NAMES[label], datasets.Value("string")),
        OTHER: (lambda label: f"x{rng.integers(9)}", datasets.Value("string")),
        NUMBER: (lambda label: int(rng.integers(9)), datasets.Value("int64")),
        ID: (lambda label: f"{label}-{next(number)}", datasets.Value("string")),  # other splits repeat some
        GROUP: (lambda label: f"{label}-{rng.integers(5)}", datasets.Value("string")),
    }
    features = datasets.Features({name: make[kind][1] for name, kind in columns.items()})
    rows = {name: [make[kind][0](label) for label in labels] for name, kind in columns.items()}
    return datasets.Dataset.from_dict(rows, features=features)


def make_stand_in(name, folder):
    columns, splits = STAND_INS[name]
    counts = {split: COUNTS if split == "train" else (3, 3, 3, 3) for split in splits}
    counts |= {split: (3, 3, 0, 3) for split in splits if (name, split) in LACKING}
    if name.startswith("pufanyi"):
        counts["test"] = (1, 0, 0, 0)
    data = {split: rows_of(columns, n, name in GREY, i) for i, (split, n) in enumerate(counts.items())}
    datasets.DatasetDict(data).save_to_disk(str(folder))
    return ["--dataset", str(folder)]


def make_lists(lists, folder):
    rng = np.random.default_rng(0)
    folder.mkdir()
    flags = []
    for pair in lists:
        split, file = pair.split("=")
        lines = []
        for label, count in enumerate(COUNTS):
            for i in range(count):
                name = f"{split}/n{label:08}/{i}.JPEG"
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)).save(folder / name)
                lines.append(f"{name} {label}")
        (folder / Path(file).name).write_text("\n".join(lines))
        flags.append(f"{split}={folder / Path(file).name}")
    return ["--dataset", str(folder), "--split_lists", *flags]


@pytest.fixture
def clip_folder(tmp_path):
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = tower | {"image_size": 8, "patch_size": 4}
    config = CLIPConfig(vision_config=vision, text_config=tower | {"vocab_size": 50}, projection_dim=16)
    CLIPForImageClassification(config).save_pretrained(tmp_path / "clip")
    size = {"height": 8, "width": 8}
    CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size=size).save_pretrained(tmp_path / "clip")
    return str(tmp_path / "clip")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda file: file.stem)
def test_the_options_of_a_config_are_valid_for_every_run(config, tmp_path):
    parser = RecipeParser(OPTIONS, ["--config", str(config), "--use_cpu", "--output_dir", str(tmp_path / "out")])
    parser.values.pop("bf16", None)  # needs a GPU
    values = stand_in_of(config)
    runs = plan_runs(parser)
    assert len(runs) == 1 + len(values.get("compare_with", []))
    assert runs[-1].args.sharpness == values["sharpness"]
    assert values["dataset"] in {*STAND_INS, *ALONE} or values.get("split_lists"), "add a stand-in to this file"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda file: file.stem)
def test_a_config_trains_on_a_stand_in(config, tmp_path, request):
    values = stand_in_of(config)
    flags = ["--config", str(config), "--output_dir", str(tmp_path / "out"), *QUICK]
    if values.get("split_lists"):
        flags += make_lists(values["split_lists"], tmp_path / "data")
    elif values["dataset"] in ALONE:
        flags += ["--dataset", "digits"]
    else:
        flags += make_stand_in(values["dataset"], tmp_path / "data")
        if "imbalance_factor" in values:
            flags += ["--imbalance_factor", "5"]  # of the largest class's 20 examples
    name = values.get("model_name_or_path")
    texts = "text_classification.py" in config.read_text()
    if name:
        kind = "bert" if texts else "clip" if "clip" in name else "vit"
        flags += ["--model_name_or_path", request.getfixturevalue(f"{kind}_folder")]
    (results,) = (train_texts if texts else train_images)(flags).values()
    known = values["dataset"] in ALONE
    assert len(results["report"]["class_counts"]) == (10 if known else len(NAMES))
    expected = "none" if known or values.get("augment") == "none" else "crop_flip"
    assert results.get("data", {}).get("augmentation") == (None if texts else expected)
    assert results.get("tta", {}).get("name", "none") == values.get("tta", "none")
    assert results.get("adapter", {}).get("type") == ("LORA" if "peft" in values else None)
