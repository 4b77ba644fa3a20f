"""The head before training: class means, cosine heads, in the modes a trainer has."""

import copy

import datasets
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, ResNetConfig, ResNetForImageClassification

from hf_sharp import ClassFrequencies, SharpTrainer, SharpTrainingArguments
from hf_sharp.model.cosine_head import CosineHead
from hf_sharp.model.head_init import init_head_from_class_means
from hf_sharp.trainer.head_start import draw_per_class, start_head
from tests.conftest import CLASS_COUNTS, assert_same_bits, make_bert, make_images, make_vit, weights_of
from tests.processes import run_processes
from tests.trainer.test_modes import lora


def first_weights(trainer):
    """The weights when training begins."""
    seen, step = [], trainer.training_step
    trainer.training_step = lambda *args: (seen or seen.append(weights_of(trainer.model)), step(*args))[1]
    trainer.train()
    return seen[0]


def test_training_starts_from_the_class_means(make_trainer):
    model = make_vit()
    expected = copy.deepcopy(model)
    data = make_images()
    batches = [{"pixel_values": data[:76]["pixel_values"], "labels": data[:76]["label"]}]
    init_head_from_class_means(expected, batches, CLASS_COUNTS, scale=3.0)
    found = first_weights(make_trainer(model, data, head_init="class_mean", head_scale=3.0, loss="logit_adjusted"))
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert not torch.equal(found["classifier.weight"], make_vit().classifier.weight)


def test_an_absent_class_is_not_predicted(make_trainer):
    data = make_images([20, 10, 0, 6])
    trainer = make_trainer(make_vit(), data, data, head_init="class_mean", max_steps=1, learning_rate=0.0)
    trainer.train()
    predicted = trainer.predict(data).predictions.argmax(1)
    assert (predicted != 2).all()
    assert (predicted == np.array(data["label"])).mean() > 0.5, "the class means tell the classes apart"


@pytest.mark.parametrize("names", [None, ["a", "b", "c", "d"]])
def test_only_the_examples_that_the_means_use_are_read(make_trainer, names):
    data, read = make_images(), []
    if names:
        data = data.cast_column("label", datasets.ClassLabel(names=names))

    def transform(rows):
        read.extend(rows["label"])
        return {"pixel_values": torch.tensor(rows["pixel_values"]), "label": rows["label"]}

    data.set_transform(transform)
    options = {"head_init": "class_mean", "head_examples": 5, "max_steps": 1, "remove_unused_columns": False}
    trainer = make_trainer(make_vit(), data, per_device_train_batch_size=2, **options)
    read.clear()
    start_head(trainer, trainer.model)
    assert np.bincount(read, minlength=4).tolist() == [min(5, count) for count in CLASS_COUNTS]


def test_examples_are_drawn_at_random_from_every_class():
    labels = np.repeat([0, 1, 2], [50, 3, 20])
    draws = [draw_per_class(labels, 5, seed) for seed in range(200)]
    for rows in draws:
        assert np.bincount(labels[rows]).tolist() == [5, 3, 5]
        assert len(set(rows)) == len(rows)
    assert np.bincount(np.concatenate(draws))[:50].min() > 0, "not only the first ones"


def test_a_resumed_training_keeps_the_head_of_the_checkpoint(make_trainer, tmp_path):
    options = {"max_steps": 6, "save_steps": 3, "save_strategy": "steps", "head_init": "class_mean"}
    options |= {"output_dir": str(tmp_path / "out"), "sharpness": "focal_sam", "rho": 0.1}
    whole = make_trainer(make_vit(dropout=0.1), **options)
    whole.train()
    resumed = make_trainer(make_vit(dropout=0.1), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert_same_bits(weights_of(whole.model), weights_of(resumed.model))
    other = make_trainer(make_vit(), **options | {"head_init": "none"})
    with pytest.raises(ValueError, match="head_init: class_mean there, none now"):
        other.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))


def test_training_again_does_not_reset_the_head(make_trainer):
    trainer = make_trainer(make_vit(), head_init="class_mean", max_steps=2)
    trainer.train()
    learned = weights_of(trainer.model)
    trainer.args.max_steps, trainer.args.learning_rate = 3, 0.0
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.train()
    assert_same_bits(learned, weights_of(trainer.model))


def test_every_trial_starts_from_the_class_means(make_trainer):
    args = make_trainer().args
    args.head_init, args.learning_rate = "class_mean", 0.0
    trainer = SharpTrainer(model_init=lambda: make_vit(), args=args, train_dataset=make_images())
    trainer.train()
    assert not torch.equal(trainer.model.classifier.weight, make_vit().classifier.weight)


def test_it_works_with_adapters_and_bert(make_trainer):
    trainer = make_trainer(lora(make_vit()), head_init="class_mean", sharpness="sam", rho=0.1)
    assert np.isfinite(trainer.train().training_loss)
    tokens = datasets.Dataset.from_dict(
        {"input_ids": np.random.default_rng(0).integers(1, 50, (30, 6)).tolist(), "label": [0, 1, 2, 3, 0] * 6}
    )
    assert np.isfinite(make_trainer(make_bert(), tokens, head_init="class_mean").train().training_loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_scale": 2.0}, "head_scale=2.0 has no effect with head_init='none'"),
        (
            {"head_init": "class_names", "head_examples": 5},
            "head_examples=5 has no effect",
        ),
        ({"head_init": "class_mean", "head_scale": 0.0}, "head_scale must be a finite number > 0"),
        ({"head_init": "class_mean", "head_examples": 0}, "head_examples must be an integer >= 1"),
        ({"head_init": "means"}, "unknown head_init 'means'; expected one of none, class_mean, class_names"),
        ({"cosine_scale": 5.0}, "cosine_scale=5.0 has no effect with cosine_head=False"),
        ({"cosine_head": True, "cosine_scale": -1.0}, "cosine_scale must be a finite number > 0"),
    ],
)
def test_bad_options_are_errors_before_training(make_trainer, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(**options)


def test_a_stream_has_no_class_means(make_trainer):
    stream = make_images().to_iterable_dataset()
    frequencies = {"class_frequencies": ClassFrequencies.from_counts(CLASS_COUNTS)}
    trainer = make_trainer(train_dataset=stream, head_init="class_mean", trainer=frequencies)
    with pytest.raises(ValueError, match="not a stream"):
        trainer.train()


def test_class_names_need_a_text_tower(make_trainer, tmp_path):
    make_vit().save_pretrained(tmp_path / "vit")
    trainer = make_trainer(make_vit().from_pretrained(tmp_path / "vit"), head_init="class_names")
    with pytest.raises(ValueError, match="could not be opened with both towers"):
        trainer.train()


def interleaved():
    """Images in the order 0, 1, 2, 3, 0, ...: of some classes, one process gets more than its share."""
    data = make_images([9, 9, 9, 3])
    labels = np.array(data["label"])
    rank = np.array([(labels[:i] == label).sum() for i, label in enumerate(labels)])
    return data.select(np.lexsort((labels, rank)))


def train_two(out, head_examples):
    args = SharpTrainingArguments(
        str(out), max_steps=2, per_device_train_batch_size=4, use_cpu=True, report_to="none", save_strategy="no",
        disable_tqdm=True, head_init="class_mean", head_examples=head_examples, learning_rate=0.0,
    )  # fmt: skip
    trainer = SharpTrainer(make_vit(), args, train_dataset=interleaved())
    trainer.train()
    return weights_of(trainer.model)


@pytest.mark.parametrize("head_examples", [400, 9])
def test_two_processes_find_the_means_of_the_same_examples_as_one(tmp_path, make_trainer, head_examples):
    first, second = run_processes(train_two, tmp_path, head_examples, folder=tmp_path)
    assert_same_bits(first, second)
    options = {"head_init": "class_mean", "head_examples": head_examples, "learning_rate": 0.0}
    alone = make_trainer(make_vit(), interleaved(), **options)
    alone.train()
    for name, value in weights_of(alone.model).items():
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4, msg=name)


# ---- the cosine head ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"loss": "ldam"}, {"loss": "logit_adjusted"}], ids=["ldam", "logit_adjusted"])
def test_a_cosine_head_trains_and_opens_in_a_pipeline(make_trainer, tmp_path, options):
    data = make_images()
    trainer = make_trainer(make_vit(), data, data, cosine_head=True, head_init="class_mean", max_steps=8, **options)
    trainer.train()
    metrics = trainer.evaluate()
    head = next(module for module in trainer.model.modules() if isinstance(module, CosineHead))
    assert head.scale == pytest.approx(30.0 if options["loss"] == "ldam" else 25.0)
    logits = torch.from_numpy(trainer.predict(data).predictions)
    assert logits.abs().max() <= head.scale * (1 + 1e-4), "logits are scaled cosines"
    losses = trainer.class_loss(
        logits / head.scale if options["loss"] == "ldam" else logits, torch.tensor(data["label"])
    )
    assert metrics["eval_loss"] == pytest.approx(losses.mean().item(), rel=1e-4)
    trainer.save_model(str(tmp_path / "saved"))
    opened = type(trainer.model).from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        torch.testing.assert_close(opened(data[:76]["pixel_values"]).logits, logits, rtol=1e-4, atol=1e-4)
    assert type(opened.classifier) is torch.nn.Linear


def test_class_conditional_ascents_work_on_cosines(make_trainer):
    options = {"loss": "ldam", "cosine_head": True, "sharpness": "cc_sam", "max_steps": 4}
    trainer = make_trainer(eval_dataset=make_images(), **options)
    trainer.train()
    plain = make_trainer(**options | {"sharpness": "none"})
    plain.train()
    found, other = weights_of(trainer.model), weights_of(plain.model)
    assert any(not torch.equal(found[name], other[name]) for name in found), "the ascent has an effect"


def test_cosine_heads_of_models_of_any_image_size(make_trainer):
    shape = {"num_channels": 1, "embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
    model = ResNetForImageClassification(ResNetConfig(**shape, num_labels=4))
    trainer = make_trainer(model, cosine_head=True, cosine_custom_code=True, max_steps=2)
    trainer.train()
    assert any(isinstance(module, CosineHead) for module in trainer.model.modules())


@pytest.mark.parametrize("options", [{"sharpness": "cc_sam"}, {"loss": "large_margin"}])
def test_decoders_train_with_methods_that_need_features(make_trainer, options):
    shape = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(**shape, num_key_value_heads=2, vocab_size=20, num_labels=4, pad_token_id=0)
    rows = {"input_ids": [[1, 2, 3, 0], [4, 5, 6, 7]] * 6, "attention_mask": [[1, 1, 1, 0], [1, 1, 1, 1]] * 6}
    rows["label"] = [0, 1, 2, 3] * 3
    model = LlamaForSequenceClassification(config)
    trainer = make_trainer(model, datasets.Dataset.from_dict(rows), **options, max_steps=2)
    before = model.score.weight.clone()
    trainer.train()
    assert not torch.equal(model.score.weight, before)


def test_ldam_is_still_refused_on_an_ordinary_head(make_trainer):
    with pytest.raises(ValueError, match="cosine_head=True"):
        make_trainer(loss="ldam")


def test_a_cosine_head_that_cannot_be_saved_exactly_is_refused(make_trainer):
    tokens = datasets.Dataset.from_dict({"input_ids": [[1, 2]] * 8, "label": [0, 1, 2, 3] * 2})
    with pytest.raises(ValueError, match=r"trust_remote_code|custom_code"):
        make_trainer(make_bert(), tokens, cosine_head=True)
    make_trainer(make_bert(), tokens, cosine_head=True, cosine_custom_code=True).train()
