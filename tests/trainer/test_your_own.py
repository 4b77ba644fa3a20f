"""A user's own loss and method, as docs/your_own_method.md describes them."""

import re

import pytest
import torch
import yaml

from hf_sharp.losses import LOSSES, ClassFrequencyLoss, register_loss
from hf_sharp.model.predicted_geometry import predict_for_loss
from hf_sharp.recipe import ImageArguments, ModelArguments, RecipeParser, RunArguments
from hf_sharp.sharpness import METHODS, Method, register_method
from hf_sharp.training_args import SharpTrainingArguments
from tests.conftest import CLASS_COUNTS, assert_same_bits, make_images, weights_of


class PolyLoss(ClassFrequencyLoss):
    name = "poly"

    def __init__(self, class_counts, epsilon: float = 1.0):
        super().__init__(class_counts, epsilon=epsilon)

    def unweighted(self, logits, labels):
        losses = super().unweighted(logits, labels)
        return losses + self.options["epsilon"] * (1 - (-losses).exp())


ROOT_METHOD = Method(name="root", coefficients=lambda priors: (1 - priors) ** 0.5)


@pytest.fixture
def registered():
    register_loss(PolyLoss)
    register_method(ROOT_METHOD)
    yield
    LOSSES.unregister("poly")
    METHODS.unregister("root")


@pytest.fixture
def trained(make_trainer):
    def train(resume=None, **options):
        trainer = make_trainer(**options)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return train


def test_an_instance_and_a_registered_name_train_the_same(registered, trained):
    instance = trained(trainer={"class_loss": PolyLoss(CLASS_COUNTS, epsilon=0.5)})
    named = trained(loss="poly", loss_options={"epsilon": 0.5})
    assert_same_bits(weights_of(instance.model), weights_of(named.model))
    assert instance.class_loss.options == named.class_loss.options == {"epsilon": 0.5}


def test_a_built_in_name_is_taken():
    for register, record in (
        (register_method, Method(name="sam", coefficients=lambda priors: priors * 0)),
        (register_loss, type("Mine", (ClassFrequencyLoss,), {"name": "vs"})),
    ):
        with pytest.raises(ValueError, match="there is already a .* named"):
            register(record)
    assert METHODS["sam"].coefficients(torch.ones(2)).tolist() == [1, 1]


def test_the_geometry_of_a_loss_of_ones_own_is_not_known():
    with pytest.raises(ValueError, match="the geometry of loss='poly' is not known. It is known for"):
        predict_for_loss(PolyLoss(CLASS_COUNTS))


def test_the_options_reach_the_loss(registered, trained):
    cross_entropy = weights_of(trained().model)
    assert_same_bits(weights_of(trained(loss="poly", loss_options={"epsilon": 0.0}).model), cross_entropy)
    poly = weights_of(trained(loss="poly").model)
    assert any(not torch.equal(poly[name], cross_entropy[name]) for name in poly)


def test_the_coefficients_reach_the_step(registered, trained):
    sam, root = (weights_of(trained(sharpness=name).model) for name in ("sam", "root"))
    assert any(not torch.equal(root[name], sam[name]) for name in root)


@pytest.mark.parametrize("options", [{"loss": "poly", "loss_options": {"epsilon": 0.5}}, {"sharpness": "root"}])
def test_resuming_is_exact(options, registered, trained, tmp_path):
    whole = trained(**options, save_strategy="steps", save_steps=2)
    resumed = trained(**options, resume=str(tmp_path / "out" / "checkpoint-2"))
    assert_same_bits(weights_of(resumed.model), weights_of(whole.model))


@pytest.mark.parametrize(
    ("before", "after", "difference"),
    [
        ({"loss": "poly", "loss_options": {"epsilon": 0.5}}, {"loss": "poly"}, "epsilon"),
        ({"loss": "poly"}, {}, "loss"),
        ({"sharpness": "root"}, {}, "sharpness"),
    ],
)
def test_a_checkpoint_of_another_loss_or_method_is_refused(before, after, difference, registered, trained, tmp_path):
    trained(**before, save_strategy="steps", save_steps=2)
    with pytest.raises(ValueError, match=difference):
        trained(**after, resume=str(tmp_path / "out" / "checkpoint-2"))


def test_a_recipe_takes_names_and_options_from_yaml(registered, tmp_path):
    options = {
        "sharpness": "root",
        "loss": "poly",
        "loss_options": {"epsilon": 0.5},
        "model_config": {"model_type": "vit"},
    }
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump(options))
    classes = (ImageArguments, ModelArguments, RunArguments, SharpTrainingArguments)
    parser = RecipeParser(classes, ["--config", str(config), "--output_dir", str(tmp_path / "out"), "--use_cpu"])
    args = parser.build()[-1]
    assert (args.sharpness, args.loss, args.loss_arguments) == ("root", "poly", {"epsilon": 0.5})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "poly", "loss_options": {"eps": 1.0}}, "'poly' does not take eps; it takes epsilon"),
        ({"loss": "vs", "loss_options": {"loss_tau": 1.0}}, "set loss_tau directly"),
        ({"loss": "vs", "loss_options": {"epsilon": 1.0}}, "'vs' does not take epsilon"),
    ],
)
def test_an_option_that_does_not_exist_is_refused_before_training(options, message, registered, make_trainer):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_trainer(**options)


def test_the_card_names_them(registered, trained, tmp_path):
    data = make_images(seed=5)
    trainer = trained(loss="poly", loss_options={"epsilon": 0.5}, sharpness="root", eval_dataset=data)
    trainer.evaluate()
    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "poly" in card
    assert "root" in card
    assert re.search(r"epsilon\W+0\.5", card)
