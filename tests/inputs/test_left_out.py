"""Folders of which a part would be left out, or taken for something else: an error or a warning says so."""

import json

import pytest

from hf_sharp.data.files import load_file, load_folder
from hf_sharp.data.loading import load
from hf_sharp.data.unlabelled import load_unlabelled
from hf_sharp.recipe.inputs import Source
from hf_sharp.recipe.models import class_for
from tests.conftest import make_bert
from tests.inputs.commands import command, no_traceback  # noqa: F401
from tests.inputs.test_odd_files import TWO_CLASSES, folder_of

SITES = [f"{species}/site {site}/{i}.png" for species in ("Apis", "Bombus") for site in "AB" for i in range(2)]
TABLE = "text,label\na,x\nb,y\nc,x\n"


def under(*folders, files):
    return [f"{folder}/{file}" for folder in folders for file in files]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (SITES, "'site A' would be one class.* 'Apis/site A', 'Bombus/site A'.* one folder per class.*metadata.csv"),
        (under("train", "test", files=SITES), "'test/Apis/site A', 'test/Bombus/site A'"),
        (under("train", files=SITES[:2]) + under("test", files=SITES[4:]), "'test/Bombus/site A', 'train/Apis/site A'"),
        (["Apis/images/0.png", "Bombus/images/0.png"], "'images' would be one class"),
        (["cat/train/0.png", "cat/test/0.png"], "cat/test' have no labels: this folder is a split, not a class"),
        (
            ["train/0.png", "test/0.png"],
            "test' have no labels: .* one folder per class, nest/CLASS/IMAGE or nest/test/",
        ),
    ],
)
def test_the_innermost_folder_is_no_class_if_it_repeats(tmp_path, files, said):
    with pytest.raises(ValueError, match=said):
        load_folder(folder_of(tmp_path / "nest", *files))


@pytest.mark.parametrize(
    "files",
    [
        under("train", "test", files=TWO_CLASSES),
        under("data/train", "data/test", files=TWO_CLASSES),
        under("train", "validation", files=["Train/0.png", "Bus/0.png", "trainers/0.png"]),
        under("pets", files=TWO_CLASSES),
        ["insects/bee/0.png", "birds/jay/0.png"],
    ],
)
def test_legal_layouts_of_classes(tmp_path, files):
    names = {file.split("/")[-2] for file in files}
    assert load_folder(folder_of(tmp_path, *files))["train"].features["label"].names == sorted(names)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_pictures_that_no_metadata_file_lists(kind, tmp_path, caplog):
    folder = folder_of(tmp_path, *(f"{i}.png" for i in range(6)))

    def list_first(number):
        rows = [{"file_name": f"{i}.png", "label": "ab"[i % 2]} for i in range(number)]
        lines = map(json.dumps, rows) if kind == "jsonl" else ["file_name,label", *(",".join(r.values()) for r in rows)]
        (folder / f"metadata.{kind}").write_text("\n".join(lines) + "\n")

    list_first(4)
    assert len(load_folder(folder)["train"]) == 4
    assert "2 of the 6 pictures in " in caplog.text
    assert "are not listed in a metadata file, so they are left out, such as '4.png'." in caplog.text
    caplog.clear()
    list_first(6)
    assert len(load_folder(folder)["train"]) == 6
    assert caplog.text == ""


def test_a_split_without_a_metadata_file_and_a_metadata_file_above_the_splits(tmp_path, caplog):
    folder = folder_of(tmp_path / "a", *under("train", "test", files=["0.png", "1.png"]))
    (folder / "train" / "metadata.csv").write_text("file_name,label\n0.png,a\n1.png,b\n")
    load_folder(folder)
    assert "2 of the 4 pictures" in caplog.text
    (folder / "train" / "metadata.csv").rename(folder / "metadata.csv")
    with pytest.raises(ValueError, match="this folder is a split"):
        load_folder(folder)
    assert "'metadata.csv'. Among pictures only metadata.csv is read, in each split's folder." in caplog.text


def test_a_metadata_file_as_excel_writes_it(tmp_path):
    folder = folder_of(tmp_path, "0.png", "1.png")
    file = folder / "metadata.csv"
    file.write_text("file_name;label\n0.png;a\n1.png;b\n")
    with pytest.raises(ValueError, match=r"metadata.csv' are separated by ';': add --separator ';'"):
        load_folder(folder)
    assert load_folder(folder, ";")["train"]["label"][:] == ["a", "b"]
    file.write_bytes("file_name,label\n0.png,caf\xe9\n1.png,b\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"metadata.csv is not UTF-8 text. Convert it: iconv"):
        load_folder(folder)


@pytest.mark.parametrize(
    ("files", "unread"),
    [
        (["train.csv", "test.csv", "old.csv"], ["old.csv"]),
        (["a.csv", "b.csv", "c.jsonl"], ["c.jsonl"]),
        (["data.csv", "extra.xlsx", "more/Old.CSV.gz"], ["extra.xlsx", "more/Old.CSV.gz"]),
        (["train.csv", "old.csv.gz", "more/labels.parquet"], ["more/labels.parquet", "old.csv.gz"]),
        (["train.csv", ".old.csv", "README.md", "notes.txt", "dataset_infos.json"], []),
        ([*TWO_CLASSES, "labels.csv"], ["labels.csv"]),
    ],
)
def test_tables_that_are_not_read_are_named(files, unread, tmp_path, caplog):
    for file in (folder_of(tmp_path, *files)).rglob("*.csv"):
        file.write_text(TABLE)
    for file in tmp_path.glob("*.json"):
        file.write_text("{}")
    load_folder(tmp_path)
    said = [record.getMessage() for record in caplog.records if "Not read" in record.getMessage()]
    assert [line.split(": ")[1].split(". ")[0] for line in said] == ([", ".join(map(repr, unread))] if unread else [])


def test_a_card_says_which_tables_are_read(tmp_path, caplog):
    for name in ("train.csv", "test.csv", "old.csv"):
        (tmp_path / name).write_text(TABLE)
    card = "---\nconfigs:\n- config_name: default\n  data_files: train.csv\n---\n# Mails\n"
    (tmp_path / "README.md").write_text(card)
    assert list(load_folder(tmp_path)) == ["train"]
    assert "Not read" not in caplog.text


def test_the_folder_of_a_model_is_no_data_and_one_of_data_no_model(tmp_path, capsys, no_traceback):  # noqa: F811
    folder = tmp_path / "bert"
    make_bert().save_pretrained(folder)
    (folder / "report.png").write_bytes(b"")
    said = r"bert' is the folder of a model \(it has config.json and model.safetensors\), not of data."
    for read in (load, lambda name: load_unlabelled(name, "image"), lambda name: Source(name, True, "image").open()):
        with pytest.raises(ValueError, match=said):
            read(str(folder))
    data = tmp_path / "mails"
    data.mkdir()
    (data / "train.csv").write_text(TABLE)
    assert "the model comes before the data" in command(capsys, "evaluate", data, folder)
    with pytest.raises(ValueError, match=r"mails' cannot be loaded: the folder has no config.json. In a command"):
        class_for(None, str(data))
    assert "the model comes before the data" in command(capsys, "predict", data, folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sep=,\n" + TABLE, "remove the first line of .*'sep=,'"),
        ("sep=;\n" + TABLE.replace(",", ";"), "remove the first line of .*'sep=;'"),
        ("# a comment\n" + TABLE, "line 2: 2 cells, but the header has 1: '# a comment'.* remove any line above"),
    ],
)
def test_a_line_above_the_header_is_named(text, said, tmp_path):
    file = tmp_path / "mails.csv"
    file.write_text(text)
    for read in (load_file, lambda path: Source(str(path), False, "text").open()):
        with pytest.raises(ValueError, match=said):
            read(file)


@pytest.mark.parametrize("given", [";", "\t", "|", ","])
@pytest.mark.parametrize(("other", "written"), [(",", "','"), (";", "';'"), ("\t", r"'\\t'")])
def test_every_separator_is_compared_with_every_other(given, other, written, tmp_path):
    file = tmp_path / "mails.csv"
    file.write_text(TABLE.replace(",", other))
    if given == other:
        assert load_file(file, given)["train"].column_names == ["text", "label"]
        return
    with pytest.raises(ValueError, match=f"are separated by {written}: add --separator {written}"):
        load_file(file, given)
    with pytest.raises(ValueError, match=f"are separated by {written}: add --new_separator {written}"):
        load_unlabelled(str(file), "text", separator=given)


@pytest.mark.parametrize("name", ["test tube", "training shoe", "dev-kit"])
def test_a_class_that_is_called_like_a_split_is_in_one_split(name, tmp_path):
    files = [f"{split}/{kind}/{i}.png" for split in ("train", "test") for kind in ("cat", name) for i in range(3)]
    with pytest.raises(ValueError, match=r"would be read twice, because several names in its path look like names of"):
        load_folder(folder_of(tmp_path, *files))
    other = [file.replace(name, "tube") for file in files]
    assert load_folder(folder_of(tmp_path / "other", *other)).num_rows == {"train": 6, "test": 6}
