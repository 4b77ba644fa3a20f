"""Corrections folded into the head: the formulas, refused input, and models that open without this package."""

import json
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from hf_sharp import cli
from hf_sharp.geometry import predict
from hf_sharp.model.posthoc import METHODS, RECORD, adjust_head, choose_strength
from tests.conftest import CLASS_COUNTS, assert_same_bits, make_bert, make_vit, weights_of
from tests.recipes.conftest import bert_folder, image_folder, texts, vit_folder  # noqa: F401
from tests.trainer.test_checkpoint import FAMILIES
from tests.trainer.test_modes import lora

COUNTS = np.array(CLASS_COUNTS, dtype=float)


def expected_head(method, w, b, strength, loss="cross_entropy", gamma=0.0):
    """The formulas of the specification, in NumPy."""
    if method == "logit_adjustment":
        return w, b - strength * np.log(COUNTS / COUNTS.sum())
    if method == "tau_norm":
        return w / np.linalg.norm(w, axis=1, keepdims=True) ** strength, b
    if method == "predicted_norm":
        scale = {"class_scale": (COUNTS / COUNTS.max()) ** gamma} if loss == "cdt" else {}
        squares = predict(COUNTS.astype(int), **scale).classifier_gram.diagonal()
        return w * (squares.mean() / squares)[:, None] ** (strength / 2), b
    raise AssertionError(method)


CASES = [
    ("logit_adjustment", 1.0, {}),
    ("logit_adjustment", 0.4, {}),
    ("tau_norm", 0.7, {}),
    ("predicted_norm", 1.0, {}),
    ("predicted_norm", 0.5, {"loss": "cdt", "loss_gamma": 0.4}),
]


@pytest.mark.parametrize(("method", "strength", "options"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_the_saved_and_opened_model_are_those_of_the_formula(method, strength, options, dtype, tmp_path):
    model = make_vit(num_channels=3).eval().to(dtype)
    pixels = torch.randn(6, 3, 8, 8, dtype=dtype)
    before = weights_of(model)
    adjust_head(model, CLASS_COUNTS, method, strength=strength, **options).save_pretrained(tmp_path)
    assert_same_bits(weights_of(model), before)
    opened = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=dtype).eval()
    w, b = (before[f"classifier.{name}"].double().numpy() for name in ("weight", "bias"))
    named = {"loss": options.get("loss", "cross_entropy"), "gamma": options.get("loss_gamma", 0.0)}
    w, b = expected_head(method, w, b, strength, **named)
    with torch.no_grad():
        features = model.vit(pixels).last_hidden_state[:, 0].double().numpy()
        logits = opened(pixels).logits.double().numpy()
    np.testing.assert_allclose(logits, features @ w.T + b, atol=2e-6 if dtype == torch.float32 else 0.05)
    record = json.loads((tmp_path / "config.json").read_text())[RECORD]
    assert record == {"method": method, "strength": strength, **options, "class_counts": CLASS_COUNTS}


def test_least_shift_gives_the_nearest_symmetric_classifier():
    model = make_vit()
    w = model.classifier.weight.detach().double().numpy()
    moved = adjust_head(model, CLASS_COUNTS, "least_shift").classifier.weight.detach().double().numpy()
    gram, frame = moved @ moved.T, np.eye(4) - 1 / 4
    np.testing.assert_allclose(gram / np.linalg.norm(gram), frame / np.linalg.norm(frame), atol=1e-6)
    distance = np.linalg.norm(moved - w)
    # The specification's formula: the orthonormal rows nearest to W, projected onto the frame.
    polar = np.real(np.linalg.pinv(sqrtm(w @ w.T))) @ w
    other = frame @ polar
    other *= (other * w).sum() / (other**2).sum()
    assert distance < np.linalg.norm(other - w) - 1e-4
    rng = np.random.default_rng(0)
    for _ in range(200):  # no other frame is nearer
        rotation = np.linalg.qr(np.eye(16) + 0.05 * rng.normal(size=(16, 16)))[0]
        turned = moved @ rotation * (1 + 0.05 * rng.normal())
        assert distance <= np.linalg.norm(turned - w) + 1e-9
    half = adjust_head(model, CLASS_COUNTS, "least_shift", strength=0.5).classifier.weight.detach().double().numpy()
    np.testing.assert_allclose(half, (w + moved) / 2, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_strength_0_changes_nothing(method):
    model = make_vit()
    same = adjust_head(model, CLASS_COUNTS, method, strength=0.0)
    for name, value in weights_of(model).items():
        torch.testing.assert_close(same.state_dict()[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_of_every_family(family, tmp_path):
    images = family in ("vit", "deit", "beit", "dinov2", "swin", "convnext", "clip")
    auto = AutoModelForImageClassification if images else AutoModelForSequenceClassification
    model = auto.from_config(AutoConfig.for_model(family, **FAMILIES[family])).eval()
    size = 32 if family == "convnext" else 8
    inputs = {"pixel_values": torch.randn(4, 3, size, size)} if images else {"input_ids": torch.randint(4, 30, (4, 6))}
    adjust_head(model, [30, 5, 1], strength=2.0).save_pretrained(tmp_path)
    opened = auto.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        moved = opened(**inputs).logits - model(**inputs).logits
    shift = -2 * torch.log(torch.tensor([30.0, 5.0, 1.0]) / 36)
    torch.testing.assert_close(moved, shift.expand(4, 3), rtol=1e-4, atol=1e-5)


def test_a_second_correction_is_refused(tmp_path):
    once = adjust_head(make_vit(num_channels=3), CLASS_COUNTS, strength=0.5)
    with pytest.raises(ValueError, match=r"adjusted before \(logit_adjustment, strength 0.5\)"):
        adjust_head(once, CLASS_COUNTS, "tau_norm")
    once.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="adjusted before"):
        adjust_head(AutoModelForImageClassification.from_pretrained(tmp_path), CLASS_COUNTS)
    with pytest.raises(ValueError, match="adjusted before"):
        choose_strength(once, [], CLASS_COUNTS)


def test_a_correction_of_strength_0_is_none_and_another_may_follow():
    model, images = make_vit(num_channels=3).eval(), {"pixel_values": torch.randn(2, 3, 8, 8)}
    unchanged = adjust_head(model, CLASS_COUNTS, strength=0)
    once, twice = (adjust_head(start, CLASS_COUNTS, strength=0.5) for start in (model, unchanged))
    torch.testing.assert_close(twice(**images).logits, once(**images).logits)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "magic"}, "unknown method 'magic'; expected one of logit_adjustment, tau_norm"),
        ({"tau": 1.0}, "'logit_adjustment' does not take tau; it takes strength"),
        ({"strength": -1.0}, "strength must be a finite number >= 0, got -1.0"),
        ({"strength": "auto"}, "strength must be a finite number >= 0, got 'auto'"),
        ({"head": "nope"}, "head='nope' is not a linear layer"),
        ({"class_counts": [3, 2]}, "the head has 4 outputs, and there are 2 class counts"),
        ({"method": "predicted_norm", "class_counts": [3, 2, 0, 1]}, "classes without examples have no embedding"),
        ({"method": "predicted_norm", "loss": "focal"}, "the geometry of loss='focal' is not known"),
    ],
)
def test_bad_input(options, said):
    with pytest.raises(ValueError, match=said):
        adjust_head(make_vit(), **({"class_counts": CLASS_COUNTS} | options))


@pytest.mark.parametrize("method", METHODS)
def test_a_head_that_is_not_finite_is_refused(method):
    model = nn.Sequential(nn.Linear(5, 4))
    model[0].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="the weights of the head are not all finite numbers"):
        adjust_head(model, CLASS_COUNTS, method)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({"labels": torch.full((4,), -100)}, "no examples to choose"),
        ({"input": torch.full((4, 5), torch.nan)}, "the features are not all finite numbers"),
        ({"labels": torch.eye(4)}, r"one class index per example in `labels`; got torch.float32 of shape \(4, 4\)"),
        ({"labels": np.arange(4)}, "expected batches of tensors.*'labels': ndarray"),
    ],
)
def test_batches_to_choose_on_are_checked(batch, said):
    model, good = nn.Sequential(nn.Linear(5, 4)), {"input": torch.randn(4, 5), "labels": torch.arange(4)}
    with pytest.raises(ValueError, match=said):
        choose_strength(model, [good | batch], CLASS_COUNTS)
    for whole in (good, [tuple(good.values())]):  # a batch for a list of batches, tuples for mappings
        with pytest.raises(ValueError, match="expected batches of tensors"):
            choose_strength(model, whole, CLASS_COUNTS)


def test_strengths_are_numbers_of_python():
    model, batch = nn.Sequential(nn.Linear(5, 4)), {"input": torch.randn(4, 5), "labels": torch.arange(4)}
    _, scores = choose_strength(model, [batch], CLASS_COUNTS, strengths=torch.tensor([0.0, 1.0, 1.0]))
    assert list(scores) == [0.0, 1.0]


def test_a_head_without_bias_and_several_heads():
    model = nn.Sequential(nn.Linear(3, 4, bias=False))
    with pytest.raises(ValueError, match="but this head has none"):
        adjust_head(model, CLASS_COUNTS)
    assert adjust_head(model, CLASS_COUNTS, "tau_norm")[0].bias is None
    two = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(ValueError, match="several linear layers have 4 outputs: '0', '1'"):
        adjust_head(two, CLASS_COUNTS)
    adjusted = adjust_head(two, CLASS_COUNTS, head="1")
    assert torch.equal(adjusted[0].bias, two[0].bias)
    assert not torch.equal(adjusted[1].bias, two[1].bias)


@pytest.mark.parametrize("method", METHODS)
def test_the_chosen_strength_is_the_best_of_all_adjusted_models(method):
    model = make_vit().eval()
    rng = np.random.default_rng(0)
    batches = [
        {"pixel_values": torch.tensor(rng.normal(size=(20, 1, 8, 8))).float(), "labels": torch.tensor(labels)}
        for labels in rng.integers(0, 4, (3, 20))
    ]
    batches[0]["labels"][:2] = -100
    strengths = [0.0, 0.5, 1.0, 1.5]
    best, scores = choose_strength(model, batches, CLASS_COUNTS, method, strengths=strengths)
    for strength in strengths:
        adjusted = adjust_head(model, CLASS_COUNTS, method, strength=strength)
        hits = {c: [] for c in range(4)}
        with torch.no_grad():
            for batch in batches:
                guesses = adjusted(pixel_values=batch["pixel_values"]).logits.argmax(1)
                for guess, label in zip(guesses.tolist(), batch["labels"].tolist(), strict=True):
                    if label >= 0:
                        hits[label].append(guess == label)
        assert scores[strength] == pytest.approx(np.mean([np.mean(h) for h in hits.values()]))
    assert scores[best] == max(scores.values())
    assert best == min(s for s in strengths if scores[s] == scores[best])
    with pytest.raises(ValueError, match="unknown metric 'f1'"):
        choose_strength(model, batches, CLASS_COUNTS, method, metric="f1")
    with pytest.raises(ValueError, match="no examples to choose"):
        choose_strength(model, [], CLASS_COUNTS, method)


# ---- from the command line -------------------------------------------------------------------------------------------


@pytest.fixture
def text_model(bert_folder, tmp_path):  # noqa: F811
    """A model with three classes, and a dataset with train, dev and test."""
    folder = tmp_path / "model"
    model = AutoModelForSequenceClassification.from_pretrained(bert_folder, num_labels=3, ignore_mismatched_sizes=True)
    model.config.id2label, model.config.label2id = (
        {0: "alpha", 1: "beta", 2: "gamma"},
        {"alpha": 0, "beta": 1, "gamma": 2},
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(bert_folder).save_pretrained(folder)
    (folder / "README.md").write_text(
        "---\nlicense: mit\nclasses: 2\nmethod: sam\nresults: good\n---\n\n# A model\n\n"
        "Accuracy 90 %.\n\n<details>all</details>"
    )
    splits = {"train": (40, 8, 4), "dev": (9, 9, 9), "test": (4, 4, 4)}
    data = datasets.DatasetDict({name: datasets.Dataset.from_dict(texts(n)) for name, n in splits.items()})
    data.save_to_disk(str(tmp_path / "data"))
    return folder, str(tmp_path / "data")


def test_adjusting_from_the_command_line(text_model, tmp_path, capsys):
    folder, data = text_model
    argv = ["adjust", str(folder), "--dataset", data, "--validation_split", "dev", "--output", str(tmp_path / "out")]
    assert cli.main(argv) == 0
    assert "validation examples" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "config.json").read_text())[RECORD]
    assert record["class_counts"] == [40, 8, 4]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: mit" in card
    assert "classes: 2" in card
    assert "## Method" not in card, "metadata of the card before are no values of the template"
    assert "Accuracy 90 %" in card
    assert "\n# out\n\n> **This is `model`, " in card
    if record["strength"]:
        assert f"`logit_adjustment` (strength {record['strength']})" in card
    else:
        assert "found no strength of `logit_adjustment` above 0 better" in card
    opened = (
        "import sys; sys.modules['hf_sharp'] = None\n"
        "from transformers import pipeline\n"
        f"print(pipeline('text-classification', {str(tmp_path / 'out')!r})('w1 w5')[0]['label'])"
    )
    done = subprocess.run([sys.executable, "-c", opened], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() in ("alpha", "beta", "gamma")


@pytest.mark.parametrize(
    ("options", "flags", "used"),
    [
        ({"loss": "cdt", "loss_gamma": 0.4}, [], {"loss": "cdt", "loss_gamma": 0.4}),
        ({"loss": "vs"}, [], {"loss": "vs", "loss_gamma": 0.3}),
        ({"loss": "cdt"}, ["--loss", "cross_entropy"], {"loss": "cross_entropy"}),
        ({"loss": "focal"}, [], {"loss": "cross_entropy"}),
    ],
)
def test_the_predicted_lengths_are_those_for_the_recorded_loss(text_model, tmp_path, caplog, options, flags, used):
    folder, data = text_model
    (folder / "all_results.json").write_text(json.dumps({"options": {"dataset": data} | options, "report": {}}))
    out = tmp_path / "out"
    argv = ["adjust", str(folder), "--dataset", data, "--method", "predicted_norm", "--strength", "1", *flags]
    assert not cli.main([*argv, "--output", str(out)])
    model, adjusted = (AutoModelForSequenceClassification.from_pretrained(path) for path in (folder, out))
    wanted = adjust_head(model, [40, 8, 4], "predicted_norm", **used)
    assert torch.allclose(adjusted.classifier.weight, wanted.classifier.weight)
    assert ("geometry of the training's loss 'focal' is not known" in caplog.text) == (options["loss"] == "focal")


def test_the_automatic_strength_does_not_depend_on_the_test_split(text_model, tmp_path):
    folder, data = text_model
    changed = datasets.load_from_disk(data)
    changed["test"] = datasets.Dataset.from_dict(texts((1, 1, 30), seed=9))
    changed.save_to_disk(str(tmp_path / "changed"))
    records = []
    for name in (data, str(tmp_path / "changed")):
        out = tmp_path / f"out_{len(records)}"
        argv = ["adjust", str(folder), "--dataset", name, "--validation_split", "dev", "--output", str(out)]
        assert cli.main(argv) == 0
        records.append(json.loads((out / "config.json").read_text())[RECORD])
    assert records[0] == records[1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "error: --strength auto needs validation data"),
        (["--strength", "much"], "error: strength 'much' is neither a number nor 'auto'"),
        (["--strength", "1", "--loss", "cdt"], "error: 'logit_adjustment' does not take loss"),
        (["--validation_split", "test"], "error: --validation_split and --test_split are both 'test'"),
    ],
)
def test_bad_command_line_options(text_model, tmp_path, more, said):
    folder, data = text_model
    message = cli.main(["adjust", str(folder), "--dataset", data, "--output", str(tmp_path / "out"), *more])
    assert message.startswith(said)
    assert not (tmp_path / "out").exists()


def test_the_output_folder_must_be_empty(text_model, tmp_path):
    folder, data = text_model
    message = cli.main(["adjust", str(folder), "--dataset", data, "--strength", "1", "--output", str(folder)])
    assert message.startswith("error: the output folder")


def test_a_pipeline_predicts_the_adjusted_classes(image_folder, tmp_path, vit_folder):  # noqa: F811
    model = AutoModelForImageClassification.from_pretrained(vit_folder, num_labels=3, ignore_mismatched_sizes=True)
    model.save_pretrained(tmp_path / "m")
    from transformers import AutoImageProcessor

    AutoImageProcessor.from_pretrained(vit_folder).save_pretrained(tmp_path / "m")
    argv = [
        "adjust",
        str(tmp_path / "m"),
        "--dataset",
        image_folder,
        "--strength",
        "50",
        "--output",
        str(tmp_path / "o"),
    ]
    assert cli.main(argv) == 0
    test = datasets.load_dataset("imagefolder", data_dir=image_folder)["test"]
    answers = pipeline("image-classification", str(tmp_path / "o"))([row["image"] for row in test])
    assert {answer[0]["label"] for answer in answers} == {"LABEL_2"}, "the rarest class, by far"


class Cosine(nn.Linear):
    def forward(self, features):
        return 30 * nn.functional.linear(nn.functional.normalize(features), nn.functional.normalize(self.weight))


def test_heads_that_cannot_be_corrected():
    data = [{"input": torch.randn(4, 3), "labels": torch.tensor([0, 1, 1, 0])}]
    for refused in (lambda m: adjust_head(m, [9, 1]), lambda m: choose_strength(m, data, [9, 1])):
        with pytest.raises(ValueError, match="the head is a Cosine, which does not compute W f"):
            refused(nn.Sequential(Cosine(3, 2)))
    with pytest.raises(
        ValueError, match="an equiangular frame of 10 rows needs at least 9 features, and the head has 3"
    ):
        adjust_head(nn.Sequential(nn.Linear(3, 10)), [10] * 10, "least_shift")
    with pytest.raises(ValueError, match="Merge them first"):
        adjust_head(lora(make_bert()), CLASS_COUNTS)


@pytest.mark.parametrize(("strengths", "said"), [([], "no strengths"), ([0.0, np.inf], "finite number")])
def test_bad_strengths(strengths, said):
    data = [{"input": torch.randn(4, 3), "labels": torch.tensor([0, 1, 1, 0])}]
    with pytest.raises(ValueError, match=said):
        choose_strength(nn.Sequential(nn.Linear(3, 2)), data, [9, 1], strengths=strengths)
