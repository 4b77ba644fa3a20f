"""Initial values of the head: the formulas, cross-validation, absent classes, several processes, PEFT."""

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification, set_seed

from hf_sharp.model import head_init
from hf_sharp.model.cosine_head import use_cosine_head
from hf_sharp.model.head_init import _leave_one_out_scores, init_head_from_class_means
from tests.conftest import assert_same_bits, make_bert, make_vit, weights_of
from tests.processes import run_processes
from tests.trainer.test_checkpoint import FAMILIES


def linear_model(dim=6, num_classes=4, dtype=torch.float64):
    set_seed(0)
    return nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, num_classes)).to(dtype)


def labelled_batches(counts=(30, 8, 3, 2), dim=6, size=9, seed=0, spread=1.0, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    x = np.random.default_rng(5).normal(size=(len(counts), dim))[labels] + spread * rng.normal(size=(len(labels), dim))
    x, labels = torch.tensor(x).to(dtype), torch.tensor(labels)
    return [{"input": x[i : i + size], "labels": labels[i : i + size]} for i in range(0, len(x), size)]


def all_of(batches):
    return torch.cat([batch["input"] for batch in batches]), torch.cat([batch["labels"] for batch in batches])


def naive_head(features, labels, num_classes, scale):
    """The formulas, class by class."""
    present = [c for c in range(num_classes) if (labels == c).any()]
    means = {c: features[labels == c].mean(0) for c in present}
    centre = np.mean([means[c] for c in present], axis=0)
    rows, bias = np.zeros((num_classes, features.shape[1])), np.full(num_classes, -np.log(len(labels) + 1))
    for c in present:
        rows[c] = scale * (means[c] - centre) / np.linalg.norm(means[c] - centre)
        bias[c] = -rows[c] @ centre
    return rows, bias


@pytest.mark.parametrize("counts", [(30, 8, 3, 2), (30, 0, 3, 1)])
def test_the_head_is_that_of_the_formulas(counts):
    model, batches = linear_model(), labelled_batches(counts)
    before = weights_of(model)
    batches.append({"input": torch.full((2, 6), 1e3, dtype=torch.float64), "labels": torch.tensor([-100, -100])})
    start = init_head_from_class_means(model.train(), batches, counts, scale=3.0)
    x, labels = all_of(batches[:-1])
    rows, bias = naive_head(model[:2](x).detach().numpy(), labels.numpy(), 4, 3.0)
    np.testing.assert_allclose(model[2].weight.detach(), rows, atol=1e-12)
    np.testing.assert_allclose(model[2].bias.detach(), bias, atol=1e-12)
    assert start.examples.tolist() == list(counts)
    assert (start.scale, start.loss) == (3.0, None)
    assert model.training
    after = weights_of(model)
    assert_same_bits({n: v for n, v in before.items() if n[0] == "0"}, {n: v for n, v in after.items() if n[0] == "0"})
    assert model[2].weight.requires_grad


def test_absent_classes_are_never_predicted():
    counts = (30, 0, 3, 2)
    model = linear_model()
    init_head_from_class_means(model, labelled_batches(counts), counts)
    anything = 100 * torch.randn(20_000, 6, dtype=torch.float64)
    assert not (model(anything).argmax(1) == 1).any()
    assert (model(anything)[:, [0, 2, 3]].max(1).values >= -1e-9).all(), "the reason for it"


def test_leave_one_out_scores_are_those_of_means_without_the_example():
    rng = np.random.default_rng(0)
    counts = np.array([9, 4, 2, 0])
    labels = np.repeat(np.arange(4), counts)
    features = rng.normal(size=(len(labels), 5)) + 4
    means = np.stack([features[labels == c].mean(0) if n else np.zeros(5) for c, n in enumerate(counts)])
    centre = means[counts > 0].mean(0)
    tensors = [torch.tensor(value) for value in (means, counts, centre, features, labels)]
    scores = _leave_one_out_scores(*tensors).numpy()
    for i in range(len(labels)):
        rest = np.arange(len(labels)) != i
        rows, bias = naive_head(features[rest], labels[rest], 4, 1.0)
        np.testing.assert_allclose(scores[i, :3], (features[i] @ rows.T + bias)[:3], atol=1e-12)
        assert scores[i, 3] == -np.inf


def balanced_leave_one_out_loss(features, labels, num_classes, scale):
    losses = {c: [] for c in range(num_classes)}
    for i, label in enumerate(labels):
        if (labels == label).sum() > 1:
            rest = np.arange(len(labels)) != i
            rows, bias = naive_head(features[rest], labels[rest], num_classes, scale)
            logits = features[i] @ rows.T + bias
            losses[label].append(np.log(np.exp(logits).sum()) - logits[label])
    return np.mean([np.mean(values) for values in losses.values() if values])


@pytest.mark.parametrize("counts", [(30, 8, 3, 2), (30, 8, 3, 1)])
def test_the_chosen_scale_has_the_lowest_cross_validated_loss(counts):
    model, batches = linear_model(), labelled_batches(counts, spread=2.0)
    start = init_head_from_class_means(model, batches, counts)
    x, labels = all_of(batches)
    features, labels = model[:2](x).detach().numpy(), labels.numpy()
    at = {f: balanced_leave_one_out_loss(features, labels, 4, f * start.scale) for f in (0.5, 0.8, 1.0, 1.25, 2.0)}
    assert at[1.0] == pytest.approx(start.loss, rel=1e-6)
    assert min(at, key=at.get) == 1.0
    assert model[2].weight.norm(dim=1).tolist() == pytest.approx([start.scale] * 4)


def test_the_scale_is_bounded_where_classes_are_separable():
    batches = labelled_batches(spread=1e-3)
    start = init_head_from_class_means(linear_model(), batches, (30, 8, 3, 2))
    assert start.loss < 0.05
    assert math.isfinite(start.scale)
    assert start.scale < 100


def test_examples_per_class_passes_only_the_first_examples_and_stops():
    model, batches = linear_model(), labelled_batches()
    seen = []
    model.register_forward_pre_hook(lambda module, inputs, kwargs: seen.append(kwargs["input"]), with_kwargs=True)
    start = init_head_from_class_means(model, iter(batches), (30, 8, 3, 2), scale=1.0, examples_per_class=3)
    assert start.examples.tolist() == [3, 3, 3, 2]
    assert sum(map(len, seen)) == 11
    x, labels = all_of(batches)
    first = np.concatenate([np.flatnonzero(labels.numpy() == c)[:3] for c in range(4)])
    rows, _ = naive_head(model[:2](x[first]).detach().numpy(), labels[first].numpy(), 4, 1.0)
    np.testing.assert_allclose(model[2].weight.detach(), rows, atol=1e-12)

    def endless():
        yield from batches
        raise AssertionError("all classes have their examples")

    init_head_from_class_means(model, endless(), (30, 8, 3, 2), scale=1.0, examples_per_class=1)


def test_only_a_bounded_number_of_features_is_kept():
    counts = (6000, 3)
    batches = labelled_batches(counts, size=1000)
    sums = head_init._ClassSums(2, keep=True)
    for batch in batches:
        sums.update(batch["input"], batch["labels"])
    assert torch.bincount(sums.kept_labels()).tolist() == [5000, 3]
    assert head_init._ClassSums(8142, keep=True).quota == 1
    assert head_init._ClassSums(2, keep=False).quota == 0


# ---- models ----------------------------------------------------------------------------------------------------------


def separable(family, number=40):
    """Inputs that reveal their class, by a pattern or by words."""
    images = family in ("vit", "deit", "beit", "dinov2", "swin", "convnext", "clip")
    labels = torch.arange(number) % 3
    generator = torch.Generator().manual_seed(0)
    size = 32 if family == "convnext" else 8
    if images:
        pattern = torch.randn(3, 3, size, size, generator=generator)
        return {"pixel_values": pattern[labels] + 0.1 * torch.randn(number, 3, size, size, generator=generator)}, labels
    words = 4 + labels[:, None] + 3 * torch.randint(0, 2, (number, 6), generator=generator)  # two words of each class
    return {"input_ids": words}, labels


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_classifies_before_any_training(family):
    set_seed(0)
    inputs, labels = separable(family)
    auto = AutoModelForImageClassification if "pixel_values" in inputs else AutoModelForSequenceClassification
    model = auto.from_config(AutoConfig.for_model(family, **FAMILIES[family])).eval()
    with torch.no_grad():
        before = (model(**inputs).logits.argmax(1) == labels).float().mean()
    init_head_from_class_means(model, [inputs | {"labels": labels}], [14, 13, 13])
    with torch.no_grad():
        after = (model(**inputs).logits.argmax(1) == labels).float().mean()
    # RoBERTa, BERT and DistilBERT have a newly initialised layer before the head; the classes stay apart in it.
    assert after > 0.9, f"{before:.2f} before"


def test_a_model_in_bfloat16():
    model = make_vit(dtype=torch.bfloat16)
    data = [{"pixel_values": torch.randn(20, 1, 8, 8, dtype=torch.bfloat16), "labels": torch.arange(20) % 4}]
    start = init_head_from_class_means(model, data, [5, 5, 5, 5])
    assert model.classifier.weight.dtype == torch.bfloat16
    assert model.classifier.weight.float().norm(dim=1).tolist() == pytest.approx([start.scale] * 4, rel=1e-2)
    rounded = make_vit().to(torch.bfloat16).vit(data[0]["pixel_values"]).last_hidden_state[:, 0]
    rows, bias = naive_head(rounded.detach().double().numpy(), data[0]["labels"].numpy(), 4, start.scale)
    np.testing.assert_allclose(model.classifier.weight.detach().double(), rows, rtol=2**-8)
    np.testing.assert_allclose(model.classifier.bias.detach().double(), bias, rtol=2**-8)


def test_the_head_inside_modules_to_save():
    config = LoraConfig(target_modules="all-linear", modules_to_save=["classifier"], r=2)
    plain, model = make_vit(), get_peft_model(make_vit(), config)
    data = [{"pixel_values": torch.randn(20, 1, 8, 8), "labels": torch.arange(20) % 4}]
    original = weights_of(model)["base_model.model.classifier.original_module.weight"]
    init_head_from_class_means(model, data, [5, 5, 5, 5], scale=2.0)
    init_head_from_class_means(plain, data, [5, 5, 5, 5], scale=2.0)
    assert torch.equal(weights_of(model)["base_model.model.classifier.original_module.weight"], original)
    merged = model.merge_and_unload()
    assert torch.equal(merged.classifier.weight, plain.classifier.weight)
    assert torch.equal(merged.classifier.bias, plain.classifier.bias)


@pytest.mark.parametrize("learn_scale", [False, True])
def test_a_cosine_head_gets_class_means_without_their_centre(learn_scale):
    model = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 4)).double()
    counts = (30, 8, 0, 2)
    batches = labelled_batches(counts, spread=0.3)
    use_cosine_head(model, 4, scale=7.0, learn_scale=learn_scale, inputs={"input": batches[0]["input"]})
    start = init_head_from_class_means(model, batches, counts)
    x, labels = all_of(batches)
    features = model[:2](x).detach()
    means = torch.stack([features[labels == c].mean(0) for c in (0, 1, 3)])
    expected = torch.stack([means[0], means[1], -means.mean(0), means[2]])
    cosine = nn.functional.cosine_similarity(model[2].weight, expected)
    torch.testing.assert_close(cosine, torch.ones(4, dtype=torch.float64))
    assert start.scale == pytest.approx(7.0)
    assert model(x).abs().max() <= 7.0001
    assert not (model(x).argmax(1) == 2).any()


# ---- several processes -----------------------------------------------------------------------------------------------


def _init_on_each(examples_per_class):
    dist.init_process_group("gloo")

    def reduce(tensor):
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    rank, world = dist.get_rank(), dist.get_world_size()
    model, batches = linear_model(), labelled_batches(spread=2.0)
    rows = [{name: value[rank::world] for name, value in batch.items()} for batch in batches]
    start = init_head_from_class_means(model, rows, (30, 8, 3, 2), reduce=reduce, examples_per_class=examples_per_class)
    return model[2].weight.detach(), model[2].bias.detach(), start.scale, start.loss, start.examples.tolist()


def test_two_processes_equal_one(tmp_path):
    first, second = run_processes(_init_on_each, None, folder=tmp_path, processes=2)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    model = linear_model()
    start = init_head_from_class_means(model, labelled_batches(spread=2.0), (30, 8, 3, 2))
    torch.testing.assert_close(first[0], model[2].weight.detach(), rtol=1e-6, atol=1e-8)
    assert first[2:4] == pytest.approx((start.scale, start.loss), rel=1e-6)
    assert first[4] == [30, 8, 3, 2]


def test_examples_per_class_is_divided_among_processes(tmp_path):
    first, second = run_processes(_init_on_each, 3, folder=tmp_path, processes=2)
    assert first[4] == second[4]
    assert max(first[4]) <= 4, "3, rounded up to a multiple of the processes"


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scale": 0.0}, "scale must be a finite number > 0, got 0.0"),
        ({"examples_per_class": 0}, "examples_per_class must be an integer >= 1, got 0"),
        ({"batches": []}, "there are no examples to initialise the head from"),
        ({"class_counts": [3, 2]}, "no linear layer of the model with 2 outputs"),
        ({"head": "nope"}, "head='nope' is not a linear layer"),
        ({"model": nn.Sequential(nn.Linear(6, 4, bias=False)).double()}, "this head has none.* Use a cosine head"),
        ({"batches": labelled_batches((1, 1, 1, 1))}, "no class has two examples. Give it as scale="),
        ({"batches": [{"input": torch.zeros(2, 6).double()}]}, "a batch has no `labels`"),
        ({"batches": [{"input": torch.zeros(1, 6).double()}], "examples_per_class": 2}, "a batch has no `labels`"),
        (
            {"batches": [{"input": torch.zeros(1, 6).double(), "labels": torch.tensor([4])}], "examples_per_class": 2},
            "a batch has labels from 4 to 4; expected class indices from 0 to 3, or -100",
        ),
        (
            {"batches": [{"input": torch.full((2, 6), torch.nan).double(), "labels": torch.zeros(2).long()}]},
            "not finite",
        ),
    ],
)
def test_bad_input(options, said):
    arguments = {"model": linear_model(), "batches": labelled_batches(), "class_counts": (30, 8, 3, 2)} | options
    with pytest.raises(ValueError, match=said):
        init_head_from_class_means(arguments.pop("model"), **arguments)


def test_a_head_that_is_not_linear_is_refused():
    class Cosine(nn.Linear):
        def forward(self, features):
            return nn.functional.linear(nn.functional.normalize(features), self.weight)

    with pytest.raises(ValueError, match="the head is a Cosine, which does not compute W f"):
        init_head_from_class_means(nn.Sequential(Cosine(6, 4)).double(), labelled_batches(), (30, 8, 3, 2))


def test_a_bert_with_a_new_pooler_runs():
    """As for a sentence-transformers backbone, whose pooler is a newly initialised dense layer with tanh."""
    model = make_bert(num_labels=3)
    inputs, labels = separable("bert")
    start = init_head_from_class_means(model, [inputs | {"labels": labels}], [14, 13, 13])
    with torch.no_grad():
        assert (model.eval()(**inputs).logits.argmax(1) == labels).float().mean() > 0.9
    assert start.loss < math.log(3)
