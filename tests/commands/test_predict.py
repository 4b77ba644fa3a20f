"""`hf-sharp predict`, `calibrate` and `adjust --cost` as a user types them, on images and on texts."""

import csv
import io
import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification, pipeline

from hf_sharp import cli, split_validation
from hf_sharp.commands.predict import SOME_BROKEN
from hf_sharp.data.costs import read_costs
from hf_sharp.model.confidence import fit_temperature, prediction_sets
from hf_sharp.model.costs import expected_costs
from hf_sharp.recipe.decisions import DECISIONS, Decisions, read_decisions
from hf_sharp.recipe.recorded import recorded
from tests.inputs.commands import command, no_traceback  # noqa: F401
from tests.processes import run_processes
from tests.recipes.conftest import bert_folder, image_folder, pixels, texts, vit_folder  # noqa: F401


def named(folder, names):
    """Give the classes of a saved model names."""
    file = Path(folder) / "config.json"
    config = json.loads(file.read_text())
    config["id2label"] = {str(i): name for i, name in enumerate(names)}
    file.write_text(json.dumps(config | {"label2id": {name: i for i, name in enumerate(names)}}))
    return str(folder)


@pytest.fixture
def images_model(vit_folder):  # noqa: F811
    model = AutoModelForImageClassification.from_pretrained(vit_folder, num_labels=3, ignore_mismatched_sizes=True)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.classifier.weight, std=0.7)
    model.save_pretrained(vit_folder)
    return named(vit_folder, ("cat", "dog", "emu"))


@pytest.fixture
def texts_model(bert_folder):  # noqa: F811
    model = AutoModelForSequenceClassification.from_pretrained(bert_folder, num_labels=3, ignore_mismatched_sizes=True)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.classifier.weight, std=20)
    model.save_pretrained(bert_folder)
    return named(bert_folder, ("alpha", "beta", "gamma"))


@pytest.fixture
def mails(tmp_path):
    """A CSV file of 66 texts with labels, an id, and texts with commas, quotes and line ends."""
    data = texts((40, 20, 6))
    data["text"][1] = 'w1, "w2"\nw3'
    data["id"] = [f"mail {i}" for i in range(66)]
    file = tmp_path / "mails.csv"
    datasets.Dataset.from_dict(data).to_csv(str(file))
    return str(file)


def run(*words):
    try:
        return cli.main(list(map(str, words)))
    except SystemExit as end:
        return end.code


def rows_of(folder, kind="csv"):
    file = Path(folder) / f"predictions.{kind}"
    if kind == "parquet":
        return pq.read_table(file).to_pylist()
    text = file.read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text))) if kind == "csv" else list(map(json.loads, text.splitlines()))


def summary_of(folder):
    return json.loads((Path(folder) / "summary.json").read_text())


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_predictions_of_images_are_those_of_the_pipeline(kind, images_model, image_folder, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    flags = ("--format", kind, "--top_k", 3, "--batch_size", 4, "--output_dir", out)
    assert run("predict", images_model, image_folder, *flags) == 0
    rows, classify = rows_of(out, kind), pipeline("image-classification", images_model)
    files = sorted(file.relative_to(image_folder).as_posix() for file in Path(image_folder).rglob("*.png"))
    assert [row["input"] for row in rows] == files
    for row in rows:
        wanted = classify(str(Path(image_folder, row["input"])))
        assert [row[f"label_{rank}"] for rank in (1, 2, 3)] == [item["label"] for item in wanted]
        assert [float(row[f"probability_{rank}"]) for rank in (1, 2, 3)] == pytest.approx(
            [item["score"] for item in wanted], abs=1e-5
        )
        assert row["label"] == row["label_1"]
        assert row["error"] in (None, "")
    assert len({row["label"] for row in rows}) > 1, rows
    assert summary_of(out)["predicted"] == len(files)


def test_predictions_of_texts_are_those_of_the_pipeline_and_columns_are_kept(texts_model, mails, tmp_path):
    out = tmp_path / "out"
    flags = ("--keep", "id", "label", "--batch_size", 7, "--output_dir", out)
    assert run("predict", texts_model, mails, *flags) == 0
    rows, source = rows_of(out), datasets.load_dataset("csv", data_files=mails)["train"]
    wanted = pipeline("text-classification", texts_model)(source["text"][:], truncation=True, max_length=16)
    assert [row["label"] for row in rows] == [item["label"] for item in wanted]
    assert [float(row["probability"]) for row in rows] == pytest.approx([item["score"] for item in wanted], abs=1e-5)
    assert [row["id"] for row in rows] == source["id"][:]
    assert [row["data_label"] for row in rows] == source["label"][:]
    assert [row["input"] for row in rows] == [str(i) for i in range(1, 67)]
    assert len({row["label"] for row in rows}) > 1


@pytest.mark.parametrize("form", ["tsv", "json", "jsonl", "parquet", "txt", "stdin", "disk"])
def test_every_source_of_texts_gives_the_same_predictions(form, texts_model, tmp_path, monkeypatch, capsys):
    data = datasets.Dataset.from_dict(texts((5, 4, 3)))
    assert run("predict", texts_model, _write(data, "csv", tmp_path), "--output_dir", tmp_path / "csv_out") == 0
    wanted = [(row["label"], row["probability"]) for row in rows_of(tmp_path / "csv_out")]
    if form == "stdin":
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{text}\n" for text in data["text"])))
        capsys.readouterr()
        assert run("predict", texts_model, "-") == 0
        rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    else:
        assert run("predict", texts_model, _write(data, form, tmp_path), "--output_dir", tmp_path / "out") == 0
        rows = rows_of(tmp_path / "out")
    assert [(row["label"], row["probability"]) for row in rows] == wanted


def _write(data, form, tmp_path):
    file = str(tmp_path / f"rows.{form}")
    if form == "txt":
        Path(file).write_text("".join(f"{text}\n" for text in data["text"]))
    elif form == "disk":
        datasets.DatasetDict(train=data).save_to_disk(file)
    else:
        write = {"csv": data.to_csv, "json": data.to_json, "jsonl": data.to_json, "parquet": data.to_parquet}
        write.get(form, lambda path: data.to_csv(path, sep="\t"))(file)
    return file


def test_every_source_of_images_gives_the_same_predictions(images_model, image_folder, tmp_path, monkeypatch):  # noqa: F811
    folder = Path(image_folder, "test", "dog")
    files = sorted(folder.glob("*.png"))
    (folder / "._copy.png").write_bytes(b"from a Mac")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "copy.png").write_bytes(b"from a Mac")
    (folder / "list.csv").write_text("image,id\n" + "".join(f"{file.name},{file.stem}\n" for file in files))
    (tmp_path / "list.txt").write_text("".join(f"{file}\n" for file in files))
    images = datasets.Dataset.from_dict({"image": list(map(str, files))}).cast_column("image", datasets.Image())
    images.to_parquet(str(tmp_path / "images.parquet"))
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{file}\n" for file in files)))
    found = []
    for i, source in enumerate((folder, folder / "list.csv", tmp_path / "list.txt", tmp_path / "images.parquet", "-")):
        assert run("predict", images_model, source, "--output_dir", tmp_path / f"out{i}") == 0
        found.append([(row["label"], row["probability"]) for row in rows_of(tmp_path / f"out{i}")])
    assert len(found[0]) == 3
    assert all(rows == found[0] for rows in found)
    assert run("predict", images_model, files[1], "--output_dir", tmp_path / "one") == 0
    assert [(row["label"], row["probability"]) for row in rows_of(tmp_path / "one")] == found[0][1:2]


BROKEN_CSV = 'text,id\nw1 w2,a\n,b\nw3\nw4,c,d\n"w5" w6,e\nw7,f\n'


def test_broken_rows_are_reported_and_do_not_end_the_run(texts_model, tmp_path, caplog):
    (tmp_path / "rows.csv").write_bytes(BROKEN_CSV.encode() + b"caf\xe9,g\nw8,h\n")
    out = tmp_path / "out"
    status = run("predict", texts_model, tmp_path / "rows.csv", "--keep", "id", "--batch_size", 2, "--output_dir", out)
    assert status == SOME_BROKEN
    rows = rows_of(out)
    assert [row["id"] for row in rows if not row["error"]] == ["a", "f", "h"]
    errors = {row["input"]: row["error"] for row in rows if row["error"]}
    assert errors["2"] == "the text is empty"
    assert errors["3"] == "1 cell, but the header has 2"
    assert errors["4"] == "3 cells, but the header has 2"
    assert "expected after" in errors["5"]
    assert errors["7"] == "the text is not UTF-8"
    assert all(row["label"] == row["probability"] == "" for row in rows if row["error"])
    assert "5 of 8 rows could not be predicted: 2: the text is empty" in caplog.text
    summary = summary_of(out)
    assert (summary["rows"], summary["predicted"], summary["broken"], len(summary["faults"])) == (8, 3, 5, 5)


def test_broken_lines_of_json_and_broken_pictures(texts_model, images_model, image_folder, tmp_path):  # noqa: F811
    (tmp_path / "rows.jsonl").write_text(
        '{"text": "w1"}\n{"text": \n[1]\n{"body": "w2"}\n{"text": null}\n{"text": "w3"}\n'
    )
    assert run("predict", texts_model, tmp_path / "rows.jsonl", "--output_dir", tmp_path / "j") == SOME_BROKEN
    errors = [row["error"] for row in rows_of(tmp_path / "j")]
    assert errors[0] == errors[5] == ""
    assert errors[1].startswith("not JSON")
    assert errors[2:5] == ["there is no 'text'", "there is no 'text'", "the text is empty"]
    folder = Path(image_folder, "test", "cat")
    whole = (folder / "0.png").read_bytes()
    (folder / "1.png").write_bytes(whole[: len(whole) // 2])
    (folder / "2.png").write_text("no picture")
    (folder / "list.csv").write_text("image\n0.png\nnowhere.png\n\n1.png\n2.png\n")
    assert run("predict", images_model, folder / "list.csv", "--output_dir", tmp_path / "p") == SOME_BROKEN
    rows = rows_of(tmp_path / "p")
    assert [bool(row["error"]) for row in rows] == [False, True, True, True, True]
    assert rows[1]["error"] == "the file does not exist"
    assert rows[2]["error"] == "there is no picture"


def test_the_preprocessing_is_that_of_the_training(texts_model, images_model, tmp_path, caplog):
    record = {"options": {"dataset": "mails.csv", "text_column": "body", "max_length": 2, "separator": ";"}}
    Path(texts_model, "all_results.json").write_text(json.dumps(record))
    (tmp_path / "new.csv").write_text("body;n\nw1 w2 w3 w4;1\nw1 w2 w5 w6;2\nw3 w2 w5 w6;3\n")
    assert run("predict", texts_model, tmp_path / "new.csv", "--output_dir", tmp_path / "t") == 0
    first, second, third = (row["probability"] for row in rows_of(tmp_path / "t"))
    assert first == second != third, "texts are truncated to two tokens"
    assert "max_length 2" in caplog.text
    assert "text_column body" in caplog.text
    wide = np.arange(64, dtype=np.uint16).reshape(8, 8) * 900
    (tmp_path / "wide").mkdir()
    Image.fromarray(wide).save(tmp_path / "wide" / "a.png")
    Image.fromarray((wide / 257).round().astype(np.uint8)).save(tmp_path / "wide" / "b.png")
    assert run("predict", images_model, tmp_path / "wide", "--output_dir", tmp_path / "w") == SOME_BROKEN
    assert "more than 8 bits" in rows_of(tmp_path / "w")[0]["error"]
    record = {"options": {"dataset": "scans"}, "data": {"picture_range": [0.0, 65535.0]}}
    Path(images_model, "all_results.json").write_text(json.dumps(record))
    assert run("predict", images_model, tmp_path / "wide", "--output_dir", tmp_path / "v") == 0
    first, second = (float(row["probability"]) for row in rows_of(tmp_path / "v"))
    assert first == pytest.approx(second, abs=1e-4)


def test_abstention_by_a_number(texts_model, mails, tmp_path):
    assert run("predict", texts_model, mails, "--output_dir", tmp_path / "all") == 0
    everything = rows_of(tmp_path / "all")
    ordered = sorted({float(row["probability"]) for row in everything})
    limit = (ordered[len(ordered) // 2] + ordered[len(ordered) // 2 + 1]) / 2
    assert run("predict", texts_model, mails, "--abstain", limit, "--output_dir", tmp_path / "some") == 0
    for whole, row in zip(everything, rows_of(tmp_path / "some"), strict=True):
        answered = float(whole["probability"]) > limit
        assert row["abstained"] == ("no" if answered else "yes")
        assert row["label"] == (whole["label"] if answered else "")
        assert row["probability"] == whole["probability"]
    assert 10 <= summary_of(tmp_path / "some")["abstained"] <= 56


@pytest.fixture
def calibrated(texts_model, mails, tmp_path):
    flags = ("--validation_fraction", 0.5, "--test_fraction", 0.2, "--precision", 0.4)
    assert run("calibrate", texts_model, mails, *flags, "--output_dir", tmp_path / "calibrated") == 0
    return tmp_path / "calibrated"


def test_a_calibrated_model_abstains_and_gives_sets(calibrated, texts_model, mails, tmp_path, capsys):
    result = json.loads((calibrated / "calibration.json").read_text())
    assert str(tmp_path) not in json.dumps(result), "it is published"
    assert result["after"]["negative_log_likelihood"] <= result["before"]["negative_log_likelihood"] + 1e-9
    assert (calibrated / "calibrated_reliability.png").stat().st_size > 10_000
    new = pipeline("text-classification", str(calibrated), top_k=None)(["w1 w2"])[0]
    logits = {
        item["label"]: np.log(item["score"])
        for item in pipeline("text-classification", texts_model, top_k=None)(["w1 w2"])[0]
    }
    scaled = np.exp([logits[item["label"]] / result["temperature"] for item in new])
    assert [item["score"] for item in new] == pytest.approx(scaled / scaled.sum(), abs=1e-4)
    out, config = tmp_path / "out", AutoModelForSequenceClassification.from_pretrained(calibrated).config
    assert config.hf_sharp_temperature == pytest.approx(result["temperature"])
    flags = ("--abstain", "saved", "--coverage", 0.8, "--top_k", 3, "--format", "jsonl", "--output_dir", out)
    assert run("predict", calibrated, mails, *flags) == 0
    decisions = read_decisions(str(calibrated), config)
    limits = dict(zip(decisions.classes, decisions.thresholds, strict=True))
    assert any(limits.values())
    for row in rows_of(out, "jsonl"):
        limit = limits[row["label_1"]]
        assert row["abstained"] == (limit is None or row["probability_1"] < limit)
        p = {row[f"label_{rank}"]: row[f"probability_{rank}"] for rank in (1, 2, 3)}
        inside = prediction_sets([[p[name] for name in decisions.classes]], decisions.scores, 0.8)[0]
        assert set(row["set"]) == {name for name, is_in in zip(decisions.classes, inside, strict=True) if is_in}
        assert row["set"] == sorted(row["set"], key=lambda name: -p[name])
    card = (calibrated / "README.md").read_text()
    assert "## Confidence" in card
    assert f"temperature of {result['temperature']:.3g}" in card
    assert "| gamma |" in card


def test_calibrating_again_starts_from_the_raw_logits(texts_model, mails, tmp_path, monkeypatch):
    flags = ("--validation_fraction", 0.5, "--test_fraction", 0.2)

    def calibrate(model, name):
        assert run("calibrate", model, mails, *flags, "--output_dir", tmp_path / name) == 0
        result = json.loads((tmp_path / name / "calibration.json").read_text())
        config = AutoModelForSequenceClassification.from_pretrained(tmp_path / name).config
        return result, read_decisions(str(tmp_path / name), config)

    with monkeypatch.context() as patched:
        refusal = Mock(side_effect=ValueError("no head to scale"))
        patched.setattr("hf_sharp.commands.calibrate.fold_temperature", refusal)
        first, beside = calibrate(texts_model, "first")
        assert beside.temperature == first["temperature"] != 1
        again, kept = calibrate(tmp_path / "first", "second")
        assert kept.temperature == again["temperature"] == pytest.approx(first["temperature"])
        assert again["before"] == pytest.approx(again["after"])
    assert calibrate(tmp_path / "first", "third")[1].temperature == 1, "the head is scaled now"


def test_what_calibrates_is_not_the_training_or_the_test_data(texts_model, mails, tmp_path, capsys, no_traceback):  # noqa: F811
    said = command(capsys, "calibrate", texts_model, mails, "--test_fraction", 0.2, "--output_dir", tmp_path / "o")
    assert "calibration needs validation data: name a split with --validation_split" in said
    assert not (tmp_path / "o").exists()


def test_predict_reads_the_pictures_of_the_split(images_model, image_folder, tmp_path, capsys, no_traceback):  # noqa: F811
    for split in ("train", "test"):
        source, flags = Path(image_folder), ("--split", split, "--output_dir", tmp_path / split)
        assert run("predict", images_model, source, *flags) == 0
        wanted = sorted(file.relative_to(source).as_posix() for file in (source / split).rglob("*.png"))
        assert [row["input"] for row in rows_of(tmp_path / split)] == wanted
    said = command(capsys, "predict", images_model, image_folder, "--split", "tst")
    assert "there is no split 'tst'; the splits are 'train', 'test'. Name one of them with --split." in said
    flat = Path(image_folder, "test", "dog")
    assert "the splits are 'train'" in command(capsys, "predict", images_model, flat, "--split", "test")
    picture = next(flat.glob("*.png"))
    said = command(capsys, "predict", images_model, picture, "--split", "test")
    assert f"--split test has no effect, because the single file {str(picture)!r} has no splits" in said


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "txt", "stdin"])
def test_a_split_of_a_single_file_is_refused(form, texts_model, tmp_path, capsys, no_traceback):  # noqa: F811
    data = datasets.Dataset.from_dict(texts((5, 4, 3)))
    source = "-" if form == "stdin" else _write(data, form, tmp_path)
    assert "has no splits. Leave it out." in command(capsys, "predict", texts_model, source, "--split", "test")


def test_after_an_error_the_same_command_can_be_repeated(texts_model, mails, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "was_there").mkdir()
    for output in ("new", "was_there"):
        assert "empty.txt' has no rows" in run(
            "predict", texts_model, tmp_path / "empty.txt", "--output_dir", tmp_path / output
        )
        assert [*tmp_path.glob(f"{output}/*")] == []
    with monkeypatch.context() as patched:
        patched.setattr("hf_sharp.recipe.outputs._Csv.write", Mock(side_effect=OSError("no space left")))
        with pytest.raises(OSError, match="no space"):
            run("predict", texts_model, mails, "--output_dir", tmp_path / "new")
    assert run("predict", texts_model, mails, "--output_dir", tmp_path / "new") == 0
    assert len(rows_of(tmp_path / "new")) == 66


COSTS = "true,cat,dog,emu\ncat,0,1,9000\ndog,2,0,9000\nemu,9,1,0\n"


def test_costs_in_a_table_and_in_the_head(images_model, image_folder, tmp_path, capsys):  # noqa: F811
    (tmp_path / "costs.csv").write_text(COSTS)
    test = Path(image_folder, "test")
    assert run("predict", images_model, test, "--top_k", 3, "--output_dir", tmp_path / "plain") == 0
    plain = rows_of(tmp_path / "plain")
    given = [{row[f"label_{k}"]: float(row[f"probability_{k}"]) for k in (1, 2, 3)} for row in plain]
    p = torch.tensor([[row[name] for name in ("cat", "dog", "emu")] for row in given])
    for kind, costs in (("table", tmp_path / "costs.csv"), ("head", '{"cat": 9000, "dog": 0.5}')):
        folder, matrix = tmp_path / kind, read_costs(str(costs), ("cat", "dog", "emu"))
        assert run("adjust", images_model, "--cost", costs, "--output_dir", folder) == 0
        assert (folder / DECISIONS).exists() == (kind == "table")
        wanted = expected_costs(p.double(), matrix)
        labels = [("cat", "dog", "emu")[c] for c in wanted.argmin(1)]
        assert labels != [row["label"] for row in plain]
        assert run("predict", folder, test, "--top_k", 3, "--output_dir", tmp_path / f"{kind}_out") == 0
        rows = rows_of(tmp_path / f"{kind}_out")
        assert [row["label"] for row in rows] == labels
        assert [float(row["expected_cost"]) for row in rows] == pytest.approx(wanted.amin(1).tolist(), rel=1e-3)
        for row, before in zip(rows, plain, strict=True):  # the probabilities stay those of the model
            assert [row[f"label_{k}"] for k in (1, 2, 3)] == [before[f"label_{k}"] for k in (1, 2, 3)]
            assert float(row["probability_1"]) == pytest.approx(float(before["probability_1"]), rel=1e-3)
        assert run("evaluate", folder, image_folder, "--output_dir", tmp_path / f"{kind}_report") == 0
        report = json.loads((tmp_path / f"{kind}_report" / "report.json").read_text())
        assert report["expected_cost"] < _cost_of_plain(plain, matrix)
        assert "cost per example" in capsys.readouterr().out
        assert "## Costs of mistakes" in (folder / "README.md").read_text()
    classify = pipeline("image-classification", str(tmp_path / "head"))
    assert [classify(str(test / row["input"]))[0]["label"] for row in plain] == labels
    assert (
        run("predict", images_model, test, "--cost", tmp_path / "costs.csv", "--output_dir", tmp_path / "direct") == 0
    )
    assert [row["label"] for row in rows_of(tmp_path / "direct")] == [
        row["label"] for row in rows_of(tmp_path / "table_out")
    ]


def _cost_of_plain(rows, matrix):
    names = ("cat", "dog", "emu")
    return np.mean([matrix[names.index(row["input"].split("/")[0]), names.index(row["label"])] for row in rows])


@pytest.mark.parametrize("kind", ["table", "head"])
def test_the_costs_saved_with_a_model_win_over_those_of_its_training(kind, images_model, image_folder, tmp_path):  # noqa: F811
    dear, model = [[0, 900, 900], [1, 0, 1], [1, 1, 0]], tmp_path / "model"
    shutil.copytree(images_model, model)
    (model / "all_results.json").write_text(json.dumps({"options": {}, "data": {"cost_matrix": dear}}))
    costs = {"dog": 3} if kind == "head" else {"dog": {"cat": 3}}
    assert run("adjust", model, "--cost", json.dumps(costs), "--output_dir", tmp_path / "costs") == 0

    def cost(folder, *flags):
        assert run("evaluate", folder, image_folder, *flags, "--output_dir", tmp_path / "report") == 0
        report = json.loads((tmp_path / "report" / "report.json").read_text())
        shutil.rmtree(tmp_path / "report")
        return report["expected_cost"]

    saved = cost(tmp_path / "costs")
    assert saved == cost(tmp_path / "costs", "--cost", json.dumps(costs))
    assert cost(model) == cost(model, "--cost", json.dumps(dear)) != cost(model, "--cost", json.dumps(costs))
    assert cost(tmp_path / "costs", "--cost", json.dumps(dear)) != saved


def test_a_head_that_stays_as_it_is_is_measured_as_it_decides(images_model, image_folder, tmp_path):  # noqa: F811
    table = json.dumps({"dog": {"cat": 900}})
    assert run("adjust", images_model, "--cost", table, "--output_dir", tmp_path / "costs") == 0
    flags = ("--validation_fraction", 0.3, "--strength", 0)
    assert run("adjust", tmp_path / "costs", image_folder, *flags, "--output_dir", tmp_path / "same") == 0
    measured = json.loads((tmp_path / "same" / "validation" / "report.json").read_text())
    words = ("--validation_fraction", 0.3, "--split", "validation", "--output_dir", tmp_path / "report")
    assert run("evaluate", tmp_path / "same", image_folder, *words) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert (measured["expected_cost"], measured["accuracy"]) == (report["expected_cost"], report["accuracy"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["DATA", "--abstain", "often"], "--abstain 'often' is neither a number nor 'saved'"),
        (["DATA", "--abstain", "1.5"], "--abstain must be a number > 0 and <= 1, got 1.5"),
        (["DATA", "--abstain", "saved"], "needs thresholds, which the model does not have. Run hf-sharp calibrate"),
        (["DATA", "--coverage", "0.9"], "needs calibration scores, which the model does not have. Run hf-sharp cal"),
        (["DATA", "--top_k", "4"], "--top_k must be an integer >= 0 and <= 3, got 4"),
        (["DATA", "--format", "xlsx"], "invalid choice: 'xlsx'"),
        (["DATA", "--format", "parquet"], "Parquet cannot be written to standard output: add --output_dir"),
        (["DATA", "--device", "tpu9"], "the device 'tpu9' cannot be used"),
        (["DATA", "--keep", "ident"], "'text', 'label', 'id'. Name the right one with --keep"),
        (["DATA", "--text_column", "body"], "has no column 'body'"),
        (["DATA", "--cost", '{"delta": 3}'], "--cost has the class 'delta', which is not a label"),
        (["nowhere/at/all.csv"], "'nowhere/at/all.csv' does not exist"),
        (["DATA", "--batch_size", "0"], "batch_size must be an integer >= 1, got 0"),
        (["DATA", "--lable"], "unknown flag: 'lable'"),
    ],
    ids=str,
)
def test_mistakes_are_named_before_anything_is_written(words, said, texts_model, mails, tmp_path, capsys, no_traceback):  # noqa: F811
    words = [mails if word == "DATA" else word for word in words]
    if "parquet" not in words:
        words += ["--output_dir", str(tmp_path / "out")]
    assert said in command(capsys, "predict", texts_model, *words)
    assert not (tmp_path / "out" / "predictions.csv").exists()


def test_other_mistakes(texts_model, image_folder, tmp_path, capsys, no_traceback, monkeypatch):  # noqa: F811
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert "the standard input has no rows" in command(capsys, "predict", texts_model, "-")
    (tmp_path / "two").mkdir()
    for split in ("train", "test"):
        (tmp_path / "two" / f"{split}.csv").write_text("text\nw1\n")
    said = command(capsys, "predict", texts_model, tmp_path / "two")
    assert "has the splits 'train', 'test'. Name one with --split" in said
    assert "column 'image' of" in command(
        capsys, "predict", texts_model, image_folder, "--split", "test", "--text_column", "image"
    )
    no_classifier = tmp_path / "plain"
    shutil.copytree(texts_model, no_classifier)
    config = json.loads((no_classifier / "config.json").read_text())
    (no_classifier / "config.json").write_text(json.dumps(config | {"architectures": ["BertModel"]}))
    assert "is a BertModel, which does not classify" in command(capsys, "predict", no_classifier, tmp_path / "two")
    said = command(
        capsys, "adjust", texts_model, "--cost", "[1, 2, 3]", "--strength", 1, "--output_dir", tmp_path / "o"
    )
    assert "--strength has no effect with --cost" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is damaged"),
        ('{"classes": ["a", "b", "c"]}', "is for the classes 'a', 'b', 'c'"),
        ('{"classes": ["alpha", "beta", "gamma"], "scores": [[0.1]]}', "is damaged: scores"),
        ('{"classes": ["alpha", "beta", "gamma"], "temperature": -1}', "is damaged: temperature"),
        ('{"classes": ["alpha", "beta", "gamma"], "cost_matrix": [[0]]}', r"cost_matrix must be (3, 3)"),
        ('{"classes": ["alpha", "beta", "gamma"], "colour": 1}', "is damaged"),
    ],
)
def test_damaged_decisions_are_refused(content, said, texts_model, mails, capsys, no_traceback):  # noqa: F811
    Path(texts_model, DECISIONS).write_text(content)
    assert said in command(capsys, "predict", texts_model, mails)


def test_costs_are_added_after_calibration_and_keep_what_still_holds(calibrated, tmp_path, capsys, no_traceback):  # noqa: F811
    for kind, costs in (("table", '{"gamma": {"alpha": 20}}'), ("head", '{"gamma": 20}')):
        assert run("adjust", calibrated, "--cost", costs, "--output_dir", tmp_path / kind) == 0
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "table").config
    before, after = (read_decisions(str(folder), config) for folder in (calibrated, tmp_path / "table"))
    assert (after.scores, after.thresholds) == (before.scores, before.thresholds)
    assert after.cost_matrix[2] == [20, 1, 0]
    assert not (tmp_path / "head" / DECISIONS).exists(), "thresholds and scores were for other logits"
    (tmp_path / "rows.txt").write_text("w1 w2\n")
    said = command(capsys, "predict", tmp_path / "table", tmp_path / "rows.txt", "--abstain", "saved")
    assert "the saved thresholds are for the most likely class" in said
    said = command(capsys, "predict", tmp_path / "head", tmp_path / "rows.txt", "--cost", "[1, 1, 5]")
    assert "the model's head contains costs already" in said
    data = "--dataset", tmp_path / "mails.csv", "--validation_fraction", 0.5, "--test_fraction", 0.2
    said = command(capsys, "calibrate", tmp_path / "head", *data, "--output_dir", tmp_path / "again")
    assert "Calibrate before adjust --cost" in said


@pytest.mark.parametrize("balanced", [False, True])
def test_calibration_on_images_with_every_example_or_every_class_alike(balanced, images_model, image_folder, tmp_path):  # noqa: F811
    out, flags = tmp_path / "out", ["--balanced"] if balanced else []
    words = ("calibrate", images_model, image_folder, "--validation_fraction", 0.5, "--output_dir", out, *flags)
    assert run(*words, "--per_class", "all") == 0
    result = json.loads((out / "calibration.json").read_text())
    train = datasets.load_dataset("imagefolder", data_dir=image_folder)["train"]
    held_out = split_validation(train, 0.5)[1]
    classify = pipeline("image-classification", images_model)
    p = [{item["label"]: item["score"] for item in classify(row["image"].convert("RGB"))} for row in held_out]
    logits, labels = (
        np.log([[row[name] for name in ("cat", "dog", "emu")] for row in p]),
        np.array(held_out["label"][:]),
    )
    weights = 1 / np.bincount(labels)[labels] if balanced else None
    assert result["temperature"] == pytest.approx(fit_temperature(logits, labels, weights), rel=1e-3)
    assert result["calibration_examples"] == np.bincount(labels).tolist()


@pytest.mark.parametrize(("loss", "warned"), [("logit_adjusted", True), ("cross_entropy", False)])
def test_what_was_trained_for_balanced_classes_is_warned_of(loss, warned, texts_model, mails, tmp_path, caplog):
    record = {"options": {"dataset": mails, "sharpness": "none", "loss": loss, "validation_fraction": 0.5}}
    Path(texts_model, "all_results.json").write_text(json.dumps(record | {"report": {}}))
    flags = ("--test_fraction", 0.2, "--output_dir", tmp_path / "a")
    assert run("calibrate", texts_model, *flags) == 0
    assert ("with --balanced, all classes count alike here too" in caplog.text) == warned
    assert run("adjust", texts_model, "--cost", '{"gamma": 20}', "--output_dir", tmp_path / "b") == 0
    assert ("the least cost, suit data in which all" in caplog.text) == warned
    published = json.loads((tmp_path / "b" / "all_results.json").read_text())
    assert published["options"] == record["options"] | {"dataset": "mails.csv"}, "without the report, and the path"
    assert recorded(str(tmp_path / "b"))["options"] == record["options"]


def test_a_temperature_beside_the_model_divides_the_logits():
    logits = torch.tensor([[2.0, 0.0, 1.0]])
    probabilities, decided = Decisions(["a", "b", "c"], temperature=2.0).decide(logits)
    assert torch.allclose(probabilities, (logits.double() / 2).softmax(1))
    assert decided.tolist() == [0]


# ---- several processes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_two_processes_write_one_file_in_order(images_model, texts_model, image_folder, mails, tmp_path, kind):  # noqa: F811
    pictures = Path(image_folder) / "train"
    (pictures / "cat" / "3.png").write_text("no picture")
    for name, model, data, size in (("images", images_model, pictures, 4), ("texts", texts_model, mails, 16)):
        words = ["predict", model, data, "--top_k", 2, "--format", kind, "--batch_size", size, "--device", "cpu"]
        alone, together = tmp_path / f"{name}_1", tmp_path / f"{name}_2"
        status = run(*words, "--output_dir", alone)
        group = tmp_path / f"{name}_group"
        group.mkdir()
        statuses = run_processes(run, *words, "--output_dir", together, folder=group)
        assert statuses == [status, 0], "one process tells of broken rows"
        mine, theirs = rows_of(alone, kind), rows_of(together, kind)
        assert [row["input"] for row in theirs] == [row["input"] for row in mine]
        assert [row["label"] for row in theirs] == [row["label"] for row in mine]
        assert [row["error"] for row in theirs] == [row["error"] for row in mine]
        assert len({row["label"] for row in mine}) > 1
        np.testing.assert_allclose(
            [float(row["probability"] or 0) for row in theirs],
            [float(row["probability"] or 0) for row in mine],
            rtol=1e-4,
        )
        assert sorted(path.name for path in together.iterdir()) == [f"predictions.{kind}", "summary.json"]
        counted = ("rows", "predicted", "abstained", "broken", "labels", "faults")
        assert {key: summary_of(together)[key] for key in counted} == {key: summary_of(alone)[key] for key in counted}


def test_what_several_processes_cannot_share(images_model, tmp_path):
    for words, said in ((["-"], "cannot share the standard input"), (["x", "--device", "cuda"], "its own accelerator")):
        folder = tmp_path / words[0].replace("-", "stdin")
        folder.mkdir()
        assert all(said in str(end) for end in run_processes(run, "predict", images_model, *words, folder=folder))
