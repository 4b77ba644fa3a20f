"""`hf-sharp shift` as a user types it, on pictures and on texts."""

import json
from dataclasses import replace

import datasets
import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

from hf_sharp import cli
from hf_sharp.commands.shift import THRESHOLD_PASSED, shares_table, summary, verdict
from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.data.unlabelled import load_unlabelled
from hf_sharp.model.label_shift import estimate_shares
from hf_sharp.model.posthoc import RECORD
from hf_sharp.recipe import train_images, train_texts
from tests.inputs.commands import command, no_traceback  # noqa: F401
from tests.recipes.conftest import QUICK, TINY_VIT, bert_folder, pixels, texts  # noqa: F401

LEARN = [*QUICK, "--max_steps", "100", "--learning_rate", "1e-2", "--sharpness", "none", "--loss", "cross_entropy"]
NAMES = ("cat", "dog", "emu")


def pictures(folder, counts, rng, by_class=True):
    for label, (name, count) in enumerate(zip(NAMES, counts, strict=True)):
        place = folder / name if by_class else folder
        place.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.fromarray(pixels(label, rng)).save(place / f"{name}_{i}.png")


@pytest.fixture
def of_images(tmp_path):
    """A model of pictures, new pictures of which most are of the rarest class, and more of the old kind."""
    rng = np.random.default_rng(0)
    pictures(tmp_path / "images" / "train", (80, 40, 20), rng)
    pictures(tmp_path / "images" / "test", (10, 10, 10), rng)
    pictures(tmp_path / "moved", (5, 10, 45), rng, by_class=False)
    pictures(tmp_path / "same", (40, 20, 10), rng, by_class=False)
    train = ["--dataset", str(tmp_path / "images"), "--model_config", TINY_VIT, "--validation_fraction", "0.3"]
    train_images([*train, "--output_dir", str(tmp_path / "model"), *LEARN])
    return tmp_path


def test_pictures_that_moved_are_reported_folded_and_end_with_their_own_status(of_images, capsys):
    words = ["shift", str(of_images / "model"), str(of_images / "moved"), "--threshold", "0.2", "--bootstrap", "40"]
    with pytest.raises(SystemExit) as end:
        cli.main([*words, "--output_dir", str(of_images / "out")])
    assert end.value.code == THRESHOLD_PASSED == 3
    said = " ".join(capsys.readouterr().out.split())
    assert "the class shares moved" in said
    assert "grew: emu" in said
    assert "shrank: cat" in said
    result = json.loads((of_images / "out" / "shift.json").read_text())
    assert result["moved"]
    assert result["passed"]
    shares = [entry["share"] for entry in result["classes"]]
    np.testing.assert_allclose(shares, [5 / 60, 10 / 60, 45 / 60], atol=0.12)
    assert [entry["name"] for entry in result["classes"]] == list(NAMES)
    assert (of_images / "out" / "shares.png").stat().st_size > 10_000
    assert "New class shares" in (of_images / "out" / "README.md").read_text()

    classify = pipeline("image-classification", str(of_images / "out"))
    assert getattr(classify.model.config, RECORD)["method"] == "label_shift"
    files = sorted((of_images / "moved").glob("*.png"))
    right = [classify(Image.open(file))[0]["label"] == file.name.split("_")[0] for file in files]
    assert np.mean(right) > 0.8


def test_pictures_of_the_old_kind_raise_no_alarm(of_images, capsys):
    words = ["shift", str(of_images / "model"), str(of_images / "same"), "--threshold", "0.05", "--bootstrap", "40"]
    assert cli.main([*words, "--output_dir", str(of_images / "out")]) == 0
    assert "no change of the class shares beyond chance" in capsys.readouterr().out
    config = json.loads((of_images / "out" / "config.json").read_text())
    assert config[RECORD]["strength"] == 0, "the head stays as it is"


def test_table_file_and_words_follow_one_decision():
    labels = np.repeat([0, 1], [60, 40])
    logits = 3 * np.eye(4)[labels] + np.random.default_rng(0).normal(size=(100, 4))
    estimate = estimate_shares(logits, labels, logits[40:], [50, 30, 15, 5], bootstrap=20)
    frequencies = ClassFrequencies.from_counts([50, 30, 15, 5], names=tuple("abcd"))

    def said(estimate):
        column = [*shares_table(estimate, frequencies, "new").columns[-1].cells]
        file = [entry["change"] or "" for entry in summary(estimate, frequencies)["classes"]]
        assert file == column
        return column, " ".join(verdict(estimate, frequencies))

    column, words = said(replace(estimate, p_value=0.01))
    assert column == ["shrank", "grew", "kept", "kept"]
    assert "grew: b (" in words
    assert "shrank: a (" in words
    column, words = said(replace(estimate, p_value=0.075))
    assert column == ["", "", "kept", "kept"]
    assert "grew" not in words
    assert "2 classes have no labelled example" in words


def test_texts(bert_folder, tmp_path, capsys, caplog):  # noqa: F811
    for split, counts, seed in (("train", (80, 40, 20), 0), ("test", (8, 8, 8), 1)):
        (tmp_path / "data").mkdir(exist_ok=True)
        rows = texts(counts, seed)
        rows["customer"] = list(range(len(rows["text"])))  # which the new texts do not have
        datasets.Dataset.from_dict(rows).to_csv(str(tmp_path / "data" / f"{split}.csv"), sep=";")
    new = tmp_path / "mails.txt"
    new.write_text("\n".join(texts((5, 10, 45), 2)["text"]) + "\n\n")
    model = str(tmp_path / "model")
    words = ["--dataset", str(tmp_path / "data"), "--model_name_or_path", bert_folder, "--output_dir", model]
    words += ["--separator", ";"]
    train_texts([*words, "--validation_fraction", "0.3", *LEARN])
    assert cli.main(["shift", model, str(new), "--bootstrap", "40"]) == 0, "without a threshold there is no alarm"
    said = " ".join(capsys.readouterr().out.split())
    assert "60 examples" in said
    assert "grew: gamma" in said

    table = tmp_path / "mails.csv"
    datasets.Dataset.from_dict({"id": range(4), "text": texts((2, 1, 1))["text"]}).to_csv(str(table))
    assert "add --new_separator ','" in cli.main(["shift", model, str(table)])
    assert cli.main(["shift", model, str(table), "--bootstrap", "20", "--new_separator", ","]) == 0

    assert cli.main(["calibrate", model, "--output_dir", str(tmp_path / "calibrated")]) == 0
    words = ["shift", str(tmp_path / "calibrated"), str(new), "--bootstrap", "40", "--output_dir"]
    assert cli.main([*words, str(tmp_path / "moved")]) == 0
    options = json.loads((tmp_path / "moved" / "all_results.json").read_text())["options"]
    assert options["validation_fraction"] == 0.3, "later commands take over what the training recorded"
    assert not (tmp_path / "moved" / "decisions.json").exists()
    assert "calibrate the new model" in caplog.text
    same = tmp_path / "same.txt"
    same.write_text("\n".join(texts((80, 40, 20), 5)["text"]) + "\n")
    words[2] = str(same)
    assert cli.main([*words, str(tmp_path / "unmoved")]) == 0
    kept = [(tmp_path / name / "decisions.json").read_text() for name in ("calibrated", "unmoved")]
    assert kept[0] == kept[1]


def test_a_folder_of_pictures_is_read_in_the_order_of_the_names_with_and_without_class_folders(tmp_path):
    rng = np.random.default_rng(0)
    pictures(tmp_path / "flat", (2, 1, 1), rng, by_class=False)
    pictures(tmp_path / "deep", (2, 1, 1), rng)
    (tmp_path / "flat" / "notes.md").write_text("x")
    flat, deep = (load_unlabelled(str(tmp_path / name), "image") for name in ("flat", "deep"))
    assert flat.column_names == ["image"]
    names = [row["image"].filename.rsplit("/")[-1] for row in flat]
    assert names == ["cat_0.png", "cat_1.png", "dog_0.png", "emu_0.png"]
    assert len(deep) == 4
    other = load_unlabelled(str(tmp_path / "flat"), "img")  # the column of the training data, such as CIFAR's
    assert [row["img"].filename for row in other] == [row["image"].filename for row in flat]
    (tmp_path / "splits").mkdir()
    (tmp_path / "deep").rename(tmp_path / "splits" / "test")
    pictures(tmp_path / "splits" / "train", (3, 2, 1), rng)
    assert len(load_unlabelled(str(tmp_path / "splits"), "image", split="test")) == 4
    assert len(load_unlabelled(str(tmp_path / "splits"), "image", split="train")) == 6
    with pytest.raises(ValueError, match=r"no split 'val'; the splits are 'train', 'test'. Name one .* --new_split"):
        load_unlabelled(str(tmp_path / "splits"), "image", split="val")
    (tmp_path / "mails.txt").write_text("w1")
    with pytest.raises(ValueError, match="--new_split test has no effect, because the single file"):
        load_unlabelled(str(tmp_path / "mails.txt"), "text", split="test")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["m", "new"], "name the labelled data with --dataset"),
        (["m", "new", "--dataset", "digits"], "or use the test split: --split test"),
        (
            ["m", "new", "--dataset", "digits", "--threshold", "10"],
            "--threshold must be a number > 0 and < 1, got 10.0. For 10 % write 0.1.",
        ),
        (["m", "new", "--dataset", "digits", "--bootstrap", "3"], "--bootstrap must be an integer >= 20, got 3"),
        (["m", "/no/such/folder", "--dataset", "digits", "--split", "test"], "'/no/such/folder' does not exist"),
        (["m", "digits", "--dataset", "digits", "--split", "test"], "Choose one with --new_split"),
        (
            ["m", "{}/mails.txt", "--dataset", "digits", "--split", "test"],
            "mails.txt' holds no pictures, and the model takes pictures",
        ),
        (["m", "new", "--dataset", "digits", "--treshold", "0.1"], "Did you mean 'threshold'?"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("no_traceback")
def test_mistakes_are_one_line(words, said, tmp_path, capsys):
    (tmp_path / "mails.txt").write_text("hello\n")
    assert said in command(capsys, "shift", *(word.format(tmp_path) for word in words))
