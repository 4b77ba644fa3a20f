"""A user's own loss and method, as docs/your_own_method.md describes them."""

import re

import pytest
import torch
import yaml

from hf_sharp import SharpTrainer
from hf_sharp.losses import LOSSES, ClassFrequencyLoss, build_loss, register_loss
from hf_sharp.losses.registry import set_class_importance
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
        with pytest.raises(ValueError, match=r"there is already a .* named"):
            register(record)
    assert METHODS["sam"].coefficients(torch.ones(2)).tolist() == [1, 1]


def test_a_name_means_one_definition(registered):
    def half(priors):
        return priors * 0 + 0.5

    class Poly(PolyLoss):
        name = "poly"

    for register, record in (
        (register_method, Method(name="root", coefficients=half)),
        (register_loss, Poly),
    ):
        with pytest.raises(ValueError, match=r"there is already a .* named"):
            register(record)
    assert METHODS["root"] is ROOT_METHOD


def test_the_geometry_of_a_loss_of_ones_own_is_not_known():
    with pytest.raises(ValueError, match=r"the geometry of loss='poly' is not known. It is known for"):
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


class OwnTrainer(SharpTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        return (3 * loss, outputs) if return_outputs else 3 * loss


def test_a_compute_loss_that_sharpness_would_not_call_is_refused(make_trainer):
    for sharpness in ("sam", "cc_sam"):
        with pytest.raises(
            ValueError, match=f"OwnTrainer overrides compute_loss, .* sharpness='{sharpness}' needs one"
        ):
            make_trainer(trainer_class=OwnTrainer, sharpness=sharpness)
    make_trainer(trainer_class=OwnTrainer, sharpness="none", max_steps=1).train()


class Mean(ClassFrequencyLoss):
    name = "mean"

    def unweighted(self, logits, labels):
        return super().unweighted(logits, labels).mean()


@pytest.mark.parametrize("sharpness", ["none", "sam"])
def test_a_loss_that_is_one_number_is_refused(make_trainer, sharpness):
    trainer = make_trainer(sharpness=sharpness, trainer={"class_loss": Mean(CLASS_COUNTS)})
    with pytest.raises(
        ValueError, match=r"Mean.unweighted must return one loss per example, of shape \(8,\); got \(\)"
    ):
        trainer.train()


def test_an_instance_is_not_changed_by_the_trainers_that_take_it(make_trainer):
    loss = PolyLoss(CLASS_COUNTS)
    weighted = make_trainer(trainer={"class_loss": loss}, class_importance={"class 3": 5.0})
    plain = make_trainer(trainer={"class_loss": loss})
    assert weighted.class_loss.class_importance.tolist() == [1, 1, 1, 5]
    assert plain.class_loss.class_importance is loss.class_importance is None
    set_class_importance(loss, [1.0, 2.0, 3.0, 4.0])
    assert make_trainer(trainer={"class_loss": loss}).class_loss.class_importance.tolist() == [1, 2, 3, 4]


def test_weights_twice_are_refused(make_trainer):
    loss = build_loss("weighted", CLASS_COUNTS)
    with pytest.raises(ValueError, match=r"reweight_after=0.5 would weight the classes twice: class_loss does it"):
        make_trainer(reweight_after=0.5, trainer={"class_loss": loss})


class TwoOutputs(torch.nn.Module):
    """A model whose first output is not the logits."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(64, 4)

    def forward(self, pixel_values):
        logits = self.head(pixel_values.flatten(1))
        return {"features": torch.zeros(len(logits), 7), "logits": logits}


def test_reports_take_the_output_called_logits(make_trainer):
    trainer = make_trainer(TwoOutputs(), eval_dataset=make_images(), learning_rate=0.05, max_steps=40)
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] > 0.8
    assert trainer.predict(make_images()).predictions[0].shape == (74, 4)


class WithoutHead(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(64, 8)

    def forward(self, pixel_values):
        return {"last_hidden_state": self.body(pixel_values.flatten(1))}


def test_a_model_without_logits_is_named(make_trainer):
    with pytest.raises(ValueError, match=r"output of WithoutHead has no `logits`, only 'last_hidden_state'. Load a"):
        make_trainer(WithoutHead()).train()


def test_a_training_set_that_was_replaced_is_refused(make_trainer):
    trainer = make_trainer()
    trainer.train_dataset = make_images((5, 5, 5, 40))
    with pytest.raises(ValueError, match="train_dataset was replaced"):
        trainer.train()
    trainer = make_trainer(trainer={"class_frequencies": CLASS_COUNTS})
    trainer.train_dataset = make_images((5, 5, 5, 40))
    trainer.train()
