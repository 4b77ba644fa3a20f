"""Domains: of one's own and from packages, with labels, licences, splits that share nothing, and reasons to skip."""

import json
import os
import sys

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_sharp.few_shot import (
    DOMAINS,
    DomainNotInstalled,
    digits,
    emoji,
    fashion_mnist,
    font_characters,
    load_domain,
    make_domain,
    open_domain,
)
from hf_sharp.few_shot.image_domains import cache_folder
from hf_sharp.few_shot.rendering import choose_characters, installed_fonts, render_characters
from tests.recipes.conftest import image_folder, text_folder  # noqa: F401

needs_fonts = pytest.mark.skipif(not installed_fonts(), reason="no fonts: apt-get install fonts-dejavu")


def numbered(sizes, **columns):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return datasets.Dataset.from_dict({"text": [f"t{i}" for i in range(len(labels))], "label": labels, **columns})


def test_digits_have_a_licence_and_all_examples():
    domain = digits()
    assert (len(domain), domain.column, domain.licence) == (1797, "image", "CC BY 4.0")
    assert np.bincount(domain.labels).min() > 170
    assert domain.dataset[5]["label"] == domain.labels[5]


def test_small_domains_are_split_by_example_and_large_ones_by_class():
    small = make_domain(numbered([20] * 6), "small")
    train, test = small.split(0.3, seed=1)
    assert np.bincount(train.labels).tolist() == [14] * 6
    assert np.bincount(test.labels).tolist() == [6] * 6
    large = make_domain(numbered([3] * 30), "large")
    for domain, parts in ((small, (train, test)), (large, large.split(0.3, seed=1))):
        of_each = [set(part.dataset["text"]) for part in parts]
        assert not of_each[0] & of_each[1]
        assert len(of_each[0] | of_each[1]) == len(domain)
        assert all(part.dataset["label"][:] == part.labels.tolist() for part in parts)
    train, test = large.split(0.3, seed=1)
    assert not np.intersect1d(train.labels, test.labels).size
    assert len(np.unique(test.labels)) == 9
    assert not np.array_equal(test.labels, large.split(0.3, seed=2)[1].labels)
    train, test = large.split(0.1, seed=1)
    assert np.array_equal(np.unique(train.labels), np.arange(30)), "3 classes make no episode: split by example"
    with pytest.raises(ValueError, match="held_out must be a number > 0 and < 1, got 1"):
        small.split(1.0)


def test_limit_cuts_large_classes_only():
    domain = make_domain(numbered([50, 4, 20]), "x")
    assert np.bincount(domain.limit(10).labels).tolist() == [10, 4, 10]
    assert domain.limit(50) is domain
    assert domain.limit(10, seed=1).dataset["text"][:] != domain.limit(10, seed=2).dataset["text"][:]
    with pytest.raises(ValueError, match="got 1 examples per class"):
        domain.limit(1)


def test_names_as_labels_and_other_columns():
    data = datasets.Dataset.from_dict({"body": ["x", "y", "z"], "kind": ["b", "a", "b"]})
    domain = make_domain(data, "mine", label_column="kind")
    assert (domain.labels.tolist(), domain.class_names, domain.column) == ([1, 0, 1], ["a", "b"], "body")


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        (
            {"text": ["a"]},
            {},
            "'mine' cannot be a few-shot domain: there is no label column 'label'; the columns are 'text'",
        ),
        ({"text": ["a", "b"], "label": [-1, -1]}, {}, "row 0 of column 'label' holds label -1"),
        ({"text": ["a", "b"], "label": ["x", None]}, {}, "row 1 of column 'label' has no label"),
        ({"text": ["a"], "label": [[0, 1]]}, {}, "several labels per example"),
        ({"number": [1.0], "label": [0]}, {}, "'mine' has no column of images or texts"),
        ({"text": ["a"], "label": [0]}, {"column": "image"}, "'mine' has no column 'image'"),
    ],
)
def test_a_domain_without_labels_or_inputs_is_refused(columns, options, said):
    with pytest.raises(ValueError, match=said):
        make_domain(datasets.Dataset.from_dict(columns), "mine", **options)


def test_a_domain_of_ones_own_by_name(image_folder, text_folder):  # noqa: F811
    domain = load_domain(image_folder)
    assert (len(domain), domain.class_names, domain.column) == (30, ["cat", "dog", "emu"], "image")
    assert len(load_domain(image_folder, splits=["test"])) == 9
    assert open_domain(str(text_folder / "csv")).column == "text"
    with pytest.raises(ValueError, match="has no split 'dev'; the splits are 'train', 'test'"):
        load_domain(image_folder, splits=["dev"])


def test_every_domain_is_one_function_with_a_licence():
    assert list(DOMAINS) == ["digits", "fashion_mnist", "font_characters", "emoji"]
    for function in DOMAINS.values():
        assert "Licence: " in function.__doc__


def test_fashion_mnist_from_idx_files(tmp_path):
    with pytest.raises(DomainNotInstalled, match="apt-get install dataset-fashion-mnist"):
        fashion_mnist(tmp_path)
    rng = np.random.default_rng(0)
    for stem, count in (("train", 20), ("t10k", 10)):
        images = rng.integers(0, 255, (count, 4, 4), np.uint8)
        header = b"\0\0\x08\x03" + np.array([count, 4, 4], ">u4").tobytes()
        (tmp_path / f"{stem}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        header = b"\0\0\x08\x01" + np.array([count], ">u4").tobytes()
        (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    domain = fashion_mnist(tmp_path)
    assert (len(domain), domain.licence, np.bincount(domain.labels).tolist()) == (30, "MIT", [3] * 10)


@needs_fonts
def test_font_characters_are_rendered_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SHARP_CACHE", str(tmp_path))
    domain = font_characters(characters=30, renderings=4, size=16)
    assert (len(domain), np.bincount(domain.labels).tolist()) == (120, [4] * 30)
    first = np.asarray(domain.dataset[0]["image"])
    assert first.shape == (16, 16)
    assert first.min() < 128 < first.max()
    (file,) = tmp_path.glob("font_characters-*.npz")
    with np.load(file) as saved:
        different = {picture.tobytes() for picture in saved["pixels"]}
    assert len(different) == 120, "every rendering has its own font or jitter"
    before = file.stat().st_mtime_ns
    real = sys.modules["hf_sharp.few_shot.rendering"].choose_characters
    monkeypatch.setattr("hf_sharp.few_shot.rendering.choose_characters", lambda *_: pytest.fail("rendered twice"))
    again = font_characters(characters=30, renderings=4, size=16)
    np.testing.assert_array_equal(np.asarray(again.dataset[7]["image"]), np.asarray(domain.dataset[7]["image"]))
    assert file.stat().st_mtime_ns == before
    monkeypatch.setattr("hf_sharp.few_shot.rendering.choose_characters", real)
    font_characters(characters=30, renderings=4, size=16, seed=1)
    assert len(list(tmp_path.iterdir())) == 2, "another seed is another file, and nothing unfinished stays"


@needs_fonts
def test_characters_that_look_alike_are_one_class():
    chosen = choose_characters(installed_fonts(), 150, 32)
    assert len(chosen) == 150
    for alike in ("AΑА", "BΒВ", "oοо", "HΗН"):
        assert sum(character in chosen for character in alike) == 1
    assert all(len(fonts) >= min(3, len(installed_fonts())) for fonts in chosen.values())


@needs_fonts
@pytest.mark.skipif(len(installed_fonts()) < 3, reason="few fonts: apt-get install fonts-dejavu")
def test_there_are_characters_enough():
    assert len(choose_characters(installed_fonts(), 200, 32)) == 200


def test_no_fonts_or_too_few_characters(tmp_path, monkeypatch):
    with pytest.raises(LookupError, match="no fonts"):
        render_characters(tmp_path, 5, 2, 16, 0, fonts=[])
    (tmp_path / "broken.ttf").write_bytes(b"not a font")
    with pytest.raises(LookupError, match="0 usable fonts have only 0 of the 5 characters"):
        render_characters(tmp_path, 5, 2, 16, 0, fonts=[str(tmp_path / "broken.ttf")])
    monkeypatch.setattr("hf_sharp.few_shot.rendering.installed_fonts", list)
    monkeypatch.setenv("HF_SHARP_CACHE", str(tmp_path))
    with pytest.raises(DomainNotInstalled, match="apt-get install fonts-dejavu"):
        font_characters()


def test_emoji_are_cut_from_the_sheet(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SHARP_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert cache_folder() == tmp_path
    with pytest.raises(DomainNotInstalled, match=r"npm install --prefix .* emoji-datasource-twitter"):
        emoji()
    package = tmp_path / "node_modules" / "emoji-datasource-twitter"
    (package / "img" / "twitter" / "sheets").mkdir(parents=True)
    sheet = np.zeros((2 * 66, 3 * 66, 4), np.uint8)
    entries = []
    for i, (x, y) in enumerate((x, y) for x in range(3) for y in range(2)):
        sheet[y * 66 + 1 : y * 66 + 65, x * 66 + 1 : x * 66 + 65] = (10 * i, 20, 30, 255)
        kind = ["fruit", "fruit", "face", "face", "alone", "face"][i]
        entries.append({"subcategory": kind, "sheet_x": x, "sheet_y": y, "has_img_twitter": i != 5})
    sheet[1:10, 1:10, 3] = 0  # a transparent corner
    Image.fromarray(sheet).save(package / "img" / "twitter" / "sheets" / "64.png")
    (package / "emoji.json").write_text(json.dumps(entries))
    for domain in (emoji(), emoji(package)):
        assert (domain.labels.tolist(), domain.class_names) == ([1, 1, 0, 0], ["face", "fruit"])
        pictures = [np.asarray(row["image"]) for row in domain.dataset]
        assert pictures[0].shape == (64, 64, 3)
        assert (pictures[0][:9, :9] == 255).all(), "what is transparent is white"
        for i, picture in enumerate(pictures):
            assert (picture[:, 20:] == (10 * i, 20, 30)).all(), "no border of the sheet"
            assert (picture[20:] == (10 * i, 20, 30)).all(), "no neighbour"


def test_the_cache_is_outside_of_the_working_tree(monkeypatch):
    monkeypatch.delenv("HF_SHARP_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert str(cache_folder()) == os.path.join("/somewhere", "hf_sharp")


def test_other_kinds_of_datasets_are_refused_by_name():
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    for other in (data.to_iterable_dataset(), data.to_list(), "reviews"):
        with pytest.raises(ValueError, match=f"got {type(other).__name__} to make a domain of, expected a datasets"):
            make_domain(other, "x")
