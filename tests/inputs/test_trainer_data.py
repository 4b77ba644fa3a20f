"""What SharpTrainer is given in a script: classes in any order, subsets, streams, transforms, heads of other tasks."""

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Subset, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

from hf_sharp import ClassFrequencies, SharpTrainer, SharpTrainingArguments
from hf_sharp.losses import build_loss
from tests.conftest import ARGUMENTS, CLASS_COUNTS, make_images, make_vit

NAMES = ["ant", "bee", "cow", "dog"]
PERMUTED = ["dog", "bee", "ant", "cow"]


def images(names=NAMES, class_counts=CLASS_COUNTS, keep=NAMES):
    """Images whose classes have names; the same images in every order of the names, without those not to keep."""
    data = make_images(class_counts).with_format(None)
    written = [NAMES[label] for label in data["label"]]
    data = data.select([row for row, name in enumerate(written) if name in keep])
    column = [names.index(name) for name in written if name in keep]
    features = datasets.Features(
        {"pixel_values": data.features["pixel_values"], "label": datasets.ClassLabel(names=names)}
    )
    rows = {"pixel_values": data["pixel_values"][:], "label": column}
    return datasets.Dataset.from_dict(rows, features=features).with_format("torch")


def named_vit(names=NAMES):
    model = make_vit(num_labels=len(names))
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    return model


def recalls(output):
    """Accuracy of a prediction, by the labels that come with it."""
    return (output.predictions.argmax(1) == output.label_ids).mean()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    args = SharpTrainingArguments(
        **ARGUMENTS | {"max_steps": 40, "sharpness": "none"}, output_dir=str(tmp_path_factory.mktemp("trained"))
    )
    trainer = SharpTrainer(model=make_vit(), args=args, train_dataset=images(), eval_dataset=images())
    trainer.train()
    return trainer


# ---- the same examples under other orders --------------------------------------------------------------------------


def test_a_trained_model_scores_the_same_whatever_the_order_of_the_classes(trained):
    right = trained.evaluate()
    assert right["eval_accuracy"] > 0.9
    assert trained.evaluate(images(PERMUTED))["eval_accuracy"] == right["eval_accuracy"]
    output = trained.predict(images(PERMUTED))
    assert recalls(output) == right["eval_accuracy"]
    assert np.array_equal(output.label_ids, trained.predict(images()).label_ids)
    two = trained.evaluate({"first": images(PERMUTED), "second": images(PERMUTED[::-1])})
    assert two["eval_first_accuracy"] == two["eval_second_accuracy"] == right["eval_accuracy"]


@pytest.mark.parametrize("wrap", [Subset, ConcatDataset, "stream", "text"], ids=str)
def test_other_kinds_of_datasets_are_aligned_too(trained, wrap):
    right, data = trained.evaluate()["eval_accuracy"], images(PERMUTED)
    if wrap is Subset:
        data = Subset(Subset(data, range(len(data))), range(len(data)))
    elif wrap is ConcatDataset:
        data = ConcatDataset([data, images(NAMES)])
    elif wrap == "stream":
        data = data.with_format(None).to_iterable_dataset().with_format("torch")
    else:
        texts = [data.features["label"].int2str(int(label)) for label in data["label"]]
        data = data.with_format(None).remove_columns("label").add_column("label", texts).with_format("torch")
    assert trained.evaluate(data)["eval_accuracy"] == right


def test_names_are_saved_with_a_model_that_had_none(trained, tmp_path):
    trained.save_model(str(tmp_path))
    from transformers import AutoModelForImageClassification

    assert list(AutoModelForImageClassification.from_pretrained(tmp_path).config.id2label.values()) == NAMES


def test_a_subset_is_evaluated_and_the_absent_classes_are_named(trained, caplog):
    metrics = trained.evaluate(images(["cow", "ant"], keep=["ant", "cow"]))
    assert metrics["eval_accuracy"] > 0.9
    assert "the evaluation set has no examples of 'bee', 'dog'" in caplog.text


@pytest.mark.parametrize(
    "names", [["ant", "bee", "cow", "elk"], [*NAMES, "elk"], ["Ant", "Bee", "Cow", "Dog"]], ids=str
)
def test_other_names_are_refused_with_both_lists(trained, names):
    data = make_images().with_format(None).cast_column("label", datasets.ClassLabel(names=names))
    for use in (trained.evaluate, trained.predict):
        with pytest.raises(ValueError, match=f"{names[0]!r}.*are not those of the training set .*'ant', 'bee'"):
            use(data)


@pytest.mark.parametrize("numbers", [["1", "0", "3", "2"], ["1", "2", "3"]], ids=str)
def test_numbers_in_another_order_are_names(make_trainer, numbers):
    trainer = make_trainer(make_vit(), sharpness="none", max_steps=40)
    trainer.train()
    right = trainer.evaluate(make_images())["eval_accuracy"]
    trainer.classes = type(trainer.classes)(("0", "1", "2", "3"), "the model", "label")
    data = make_images().with_format(None)
    data = data.filter(lambda row: str(row["label"]) in numbers)
    column = [numbers.index(str(label)) for label in data["label"]]
    data = data.remove_columns("label").add_column("label", column)
    data = data.cast_column("label", datasets.ClassLabel(names=numbers)).with_format("torch")
    accuracy = trainer.evaluate(data)["eval_accuracy"]
    assert accuracy == right if len(numbers) == 4 else accuracy > 0.9


# ---- training sets -------------------------------------------------------------------------------------------------


def test_a_training_set_follows_the_order_of_the_model(make_trainer, caplog):
    trainer = make_trainer(
        named_vit(), images(PERMUTED), images(PERMUTED[::-1]), sharpness="none", max_steps=40, sampler="class_balanced"
    )
    assert "The classes of the training set were put into the order of the model, by name" in caplog.text
    assert trainer.class_frequencies.counts.tolist() == CLASS_COUNTS
    assert trainer.class_frequencies.names == tuple(NAMES)
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] > 0.9
    assert recalls(trainer.predict(images())) > 0.9
    assert trainer.model.config.id2label == dict(enumerate(NAMES))


@pytest.mark.parametrize("names", [["a", "b", "c", "d"], [*NAMES[:3], "elk"]], ids=str)
def test_a_model_of_other_classes_is_refused_with_what_to_type(make_trainer, names):
    data = make_images().cast_column("label", datasets.ClassLabel(names=names))
    with pytest.raises(ValueError, match=rf"'{names[0]}'.*not those of the model .*'dog'.*num_labels=4, id2label="):
        make_trainer(named_vit(), data)


def test_a_model_of_more_classes_is_refused_for_training(make_trainer):
    with pytest.raises(ValueError, match="the model has 'dog', which the training set lacks"):
        make_trainer(named_vit(), images(NAMES[:3], keep=NAMES[:3]))


def test_frequencies_and_held_out_examples_follow_the_names(make_trainer):
    given = ClassFrequencies.from_dataset(images(PERMUTED))
    trainer = make_trainer(named_vit(), images(PERMUTED), trainer={"class_frequencies": given})
    assert trainer.class_frequencies.counts.tolist() == CLASS_COUNTS
    with pytest.raises(ValueError, match=r"class_frequencies.*are not those of the model"):
        make_trainer(named_vit(), images(), trainer={"class_frequencies": ClassFrequencies((1, 2), names=("x", "y"))})
    learned = make_trainer(named_vit(), images(PERMUTED), rho_schedule="learned", rho_validation_fraction=0.3)
    assert learned.rho_dataset.features["label"].names == NAMES
    loss = build_loss("cross_entropy", given.counts)
    with pytest.raises(ValueError, match="in the order of the model's classes"):
        make_trainer(named_vit(), images(PERMUTED), trainer={"class_loss": loss})


def test_the_labels_of_a_subset_are_read_without_its_examples(make_trainer):
    def fail(batch):
        raise AssertionError("an example was read")

    data = images(PERMUTED).with_transform(fail)
    trainer = make_trainer(named_vit(), Subset(data, range(40)), remove_unused_columns=False)
    assert trainer.class_frequencies.counts.sum() == 40
    expected = np.bincount([NAMES.index(PERMUTED[i]) for i in images(PERMUTED)["label"][:40]], minlength=4)
    assert trainer.class_frequencies.counts.tolist() == expected.tolist()


# ---- kinds of datasets and transforms ------------------------------------------------------------------------------


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield {"pixel_values": torch.zeros(1, 8, 8), "label": 0}


@pytest.mark.parametrize(
    "data",
    [
        TensorDataset(torch.zeros(3, 2), torch.tensor([0, 1, 1])),
        Subset(TensorDataset(torch.zeros(3, 2), torch.tensor([0, 1, 1])), [0, 1]),
        Stream(),
        datasets.Dataset.from_dict({"label": [0, 1]}).to_iterable_dataset(),
    ],
    ids=["TensorDataset", "Subset", "a stream of torch", "a stream of datasets"],
)
def test_datasets_without_readable_labels_name_class_frequencies(data, make_trainer):
    with pytest.raises(ValueError, match=r"class_frequencies=\s*ClassFrequencies\.\s*from_counts"):
        make_trainer(make_vit(), data)


@pytest.mark.parametrize("which", ["training", "evaluation"])
@pytest.mark.parametrize("read", [lambda rows: rows["image"], lambda rows: rows.get("image")[:]], ids=["[]", "get"])
def test_a_transform_whose_column_is_removed_is_found_when_the_trainer_is_made(which, read, make_trainer):
    raw = images().rename_column("pixel_values", "image").with_format(None)
    data = raw.with_transform(lambda rows: {"pixel_values": torch.tensor(read(rows)), "label": rows["label"]})
    sets = {"train_dataset": data} if which == "training" else {"eval_dataset": {"one": data}}
    with pytest.raises(ValueError, match=f"the {which} set.* reads the column 'image'.*remove_unused_columns=False"):
        make_trainer(make_vit(), **sets)
    trainer = make_trainer(make_vit(), data, data, remove_unused_columns=False, max_steps=1)
    trainer.train()
    trainer.args.remove_unused_columns = True
    for use in (trainer.evaluate, trainer.predict):
        with pytest.raises(ValueError, match="set reads the column 'image'"):
            use(data)


def test_looking_at_a_transform_draws_no_random_numbers(make_trainer):
    def augment(rows):
        pixels = torch.tensor(rows["pixel_values"])
        return {"pixel_values": pixels + torch.randn(pixels.shape) + np.random.rand(), "label": rows["label"]}

    data = images().with_format(None).add_column("extra", [0] * sum(CLASS_COUNTS))
    make_trainer(make_vit(), data)
    plain = torch.rand(1), np.random.rand()
    make_trainer(make_vit(), data.with_transform(augment))
    assert (torch.rand(1), np.random.rand()) == plain


# ---- class names of torchvision --------------------------------------------------------------------------------------


class Torchvision(torch.utils.data.Dataset):
    """The same images as `images`, with class names and labels as torchvision's datasets have them."""

    def __init__(self, names=NAMES, declared="classes", targets=list, pairs=False):
        self.data, self.pairs = images(names, keep=names), pairs
        if targets is not None:
            self.targets = targets(self.data.with_format(None)["label"][:])
        if declared == "classes":
            self.classes = list(names)
        else:  # in any order
            self.class_to_idx = {name: index for index, name in reversed([*enumerate(names)])}

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        row = self.data[index]
        return (row["pixel_values"], int(row["label"])) if self.pairs else row


def collate_pairs(pairs):
    return {"pixel_values": torch.stack([x for x, _ in pairs]), "labels": torch.tensor([label for _, label in pairs])}


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"declared": "class_to_idx"},
        {"targets": torch.tensor},
        {"targets": np.array},
        {"targets": None},
        {"pairs": True},
    ],
    ids=["classes", "class_to_idx", "tensor", "array", "no targets", "pairs"],
)
@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: Subset(data, range(len(data)))], ids=["", "Subset"])
def test_names_of_torchvision_follow_the_model(make_trainer, kind, wrap, caplog):
    def data():
        return wrap(Torchvision(PERMUTED, **kind))

    own = {"data_collator": collate_pairs} if kind.get("pairs") else {}
    trainer = make_trainer(named_vit(), data(), data(), sharpness="none", max_steps=40, trainer=own)
    assert "The classes of the training set were put into the order of the model, by name" in caplog.text
    assert trainer.class_frequencies.counts.tolist() == CLASS_COUNTS
    assert trainer.class_frequencies.names == tuple(NAMES)
    trainer.train()
    right = trainer.evaluate()["eval_accuracy"]
    assert right > 0.9
    assert recalls(trainer.predict(data())) == right
    if not own:
        assert trainer.evaluate(images())["eval_accuracy"] == right


@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: Subset(data, range(len(data)))], ids=["", "Subset"])
def test_a_model_without_names_gets_those_of_torchvision(make_trainer, wrap):
    trainer = make_trainer(make_vit(), wrap(Torchvision(PERMUTED)), Torchvision(["cow", "ant"]))
    assert trainer.model.config.id2label == dict(enumerate(PERMUTED))
    assert trainer.class_frequencies.names == tuple(PERMUTED)
    assert {int(trainer.eval_dataset[row]["label"]) for row in range(49)} == {PERMUTED.index("cow"), 2}


@pytest.mark.parametrize("declared", ["classes", "class_to_idx"])
def test_other_names_of_torchvision_are_refused(make_trainer, declared):
    other = Torchvision(declared=declared)
    vars(other)[declared] = {"elk": 0, "ant": 1, "bee": 2, "cow": 3} if declared != "classes" else [*NAMES[:3], "elk"]
    for data in (other, Subset(other, range(40))):
        with pytest.raises(ValueError, match=r"'elk'.*are not those of the model .*'dog'.*num_labels=4, id2label="):
            make_trainer(named_vit(), data)
        with pytest.raises(ValueError, match=r"the evaluation set 'one' .*'elk'.*are not those of the model"):
            make_trainer(named_vit(), images(), {"one": data})
    other.classes, other.class_to_idx = [*NAMES, "elk"], None
    with pytest.raises(ValueError, match="the model's head has 4 outputs, but there are 5 classes in the training set"):
        make_trainer(make_vit(), other)


@pytest.mark.parametrize("classes", [[("ant", "emmet"), ("bee",), ("cow",), ("dog",)], ["a"] * 4, range(4), 4], ids=str)
def test_classes_that_are_no_names_are_left_alone(make_trainer, classes):
    data = Torchvision()
    data.classes = classes
    assert make_trainer(named_vit(), data).train_dataset is data


def test_examples_whose_labels_cannot_be_put_into_order_are_refused(make_trainer):
    class Strange(Torchvision):
        def __getitem__(self, index):
            return self.strange

    data = Strange(PERMUTED)
    for data.strange, message in [
        (3, "the examples are of type int, whose labels cannot"),
        ({"image": 1}, "no label column 'label'; the columns are 'image'"),
        ({"labels": 7}, "the dataset has the label 7, but its `classes` are only 4"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_trainer(named_vit(), data).train_dataset[0]
    Stream.classes = PERMUTED
    with pytest.raises(ValueError, match="the stream Stream has its classes in another order than ant, bee, cow, dog"):
        make_trainer(named_vit(), images(), Stream())
    del Stream.classes


# ---- heads of other tasks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task",
    [{"num_labels": 1}, {"problem_type": "regression"}, {"problem_type": "multi_label_classification"}],
    ids=str,
)
def test_a_head_of_another_task_is_refused_with_what_to_type(task, make_trainer, tmp_path):
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = BertForSequenceClassification(BertConfig(**small, vocab_size=20, max_position_embeddings=16, **task))
    data = datasets.Dataset.from_dict({"input_ids": [[1, 2]] * 4, "label": [0, 1, 0, 1]})
    with pytest.raises(ValueError, match=r"num_labels=K, problem_type='single_label_classification', ignore_mis"):
        make_trainer(model, data)
    model.save_pretrained(tmp_path / "model")
    options = {"num_labels": 2, "problem_type": "single_label_classification", "ignore_mismatched_sizes": True}
    mended = BertForSequenceClassification.from_pretrained(tmp_path / "model", **options)
    make_trainer(mended, data, max_steps=1).train()
