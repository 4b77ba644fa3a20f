"""SharpTrainer as users have it: real Trainer, real models, tiny."""

import copy

import datasets
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Trainer, TrainerCallback

from hf_sharp import ClassFrequencies, SharpTrainer, SharpTrainingArguments, split_validation
from hf_sharp.losses import build_loss
from tests.conftest import CLASS_COUNTS, assert_same_bits, make_bert, make_images, make_vit, method_id, weights_of
from tests.naive import naive_gradient

METHODS = [
    {"sharpness": "none"},
    {"sharpness": "sam", "rho": 0.3},
    {"sharpness": "imbsam", "rho": 0.3, "rare_threshold": 20},
    {"sharpness": "focal_sam", "rho": 0.3, "focal_gamma": 1.5, "focal_lambda": 0.7},
]


ADAPTIVE = [options | {"adaptive": True} for options in METHODS[1:]]
ADAPTIVE += [METHODS[1] | {"adaptive": True, "adaptive_scope": "matrices"}]


class Watch(TrainerCallback):
    """Keeps the gradient that the optimizer is about to use, and the micro-batches it came from."""

    def __init__(self):
        self.gradients, self.window, self.windows = [], [], []

    def attach(self, trainer):
        step = trainer.training_step

        def training_step(model, inputs, num_items_in_batch=None):
            self.window.append(dict(inputs))
            return step(model, inputs, num_items_in_batch)

        trainer.training_step = training_step
        trainer.add_callback(self)
        return self

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append(torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.requires_grad]))
        self.windows.append(self.window)
        self.window = []


@pytest.mark.parametrize(("accumulation", "scope"), [(1, "micro_batch"), (3, "micro_batch"), (3, "window")])
@pytest.mark.parametrize("loss", ["cross_entropy", "logit_adjusted"])
@pytest.mark.parametrize("options", [*METHODS, *ADAPTIVE], ids=method_id)
def test_gradient_equals_the_naive_reference_in_float64(make_trainer, options, loss, accumulation, scope):
    if options["sharpness"] == "none" and scope == "window":
        pytest.skip("refused without sharpness")
    trainer = make_trainer(
        make_vit(dtype=torch.float64),
        make_images(dtype=np.float64),
        max_steps=1,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=0.0,
        loss=loss,
        ascent_scope=scope,
        **options,
    )
    before = copy.deepcopy(trainer.model)
    watch = Watch().attach(trainer)
    trainer.train()
    expected = naive_gradient(
        before,
        watch.windows[0],
        CLASS_COUNTS,
        options["sharpness"],
        options.get("rho", 0.0),
        eta=0.01 if "adaptive" in options else None,
        scope=options.get("adaptive_scope", "all"),
        tau=1.0 if loss == "logit_adjusted" else 0.0,
        groups=[[0, 1, 2]] if scope == "window" else None,
        **({"focal_gamma": 1.5, "focal_lambda": 0.7} if options["sharpness"] == "focal_sam" else {}),
    )
    assert len(watch.windows[0]) == accumulation
    torch.testing.assert_close(watch.gradients[0], expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("scope", ["micro_batch", "window"])
def test_a_shorter_last_window_is_averaged_over_its_own_examples(make_trainer, scope):
    trainer = make_trainer(
        make_vit(dtype=torch.float64),
        make_images([8, 4, 4, 4], dtype=np.float64),
        num_train_epochs=1,
        max_steps=-1,
        gradient_accumulation_steps=2,
        max_grad_norm=0.0,
        learning_rate=0.0,
        rho=0.3,
        ascent_scope=scope,
    )
    watch = Watch().attach(trainer)
    trainer.train()
    assert [[len(batch["labels"]) for batch in window] for window in watch.windows] == [[8, 8], [4]]
    for window, gradient in zip(watch.windows, watch.gradients, strict=True):
        groups = [list(range(len(window)))] if scope == "window" else None
        expected = naive_gradient(trainer.model, window, [8, 4, 4, 4], "sam", 0.3, groups=groups)
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("options", [*METHODS[1:], *ADAPTIVE], ids=method_id)
def test_with_one_epsilon_for_the_window_8_by_1_equals_2_by_4(make_trainer, options):
    def trained(accumulation, scope):
        trainer = make_trainer(
            make_vit(dtype=torch.float64),
            make_images(dtype=np.float64),
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
            ascent_scope=scope,
            logging_steps=1,
            num_train_epochs=1,  # 74 examples: the last window is shorter
            max_steps=-1,
            optim="sgd",
            learning_rate=0.1,
            **options,
        )
        trainer.train()
        figures = [
            [log[name] for name in ("loss", "grad_norm", "ascent_grad_norm", "sharpness") if name in log]
            for log in trainer.state.log_history
        ]
        return torch.cat([weight.flatten() for weight in trainer.model.parameters()]).detach(), figures

    whole, whole_figures = trained(1, "window")
    for accumulation in (4, 8):
        parts, figures = trained(accumulation, "window")
        torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-11)
        assert figures == [pytest.approx(f, rel=1e-6) for f in whole_figures]
    apart, _ = trained(4, "micro_batch")
    assert (apart - whole).abs().max() > 1e-5, "with an ε of its own for every micro-batch it is another method"


def test_an_error_in_a_window_leaves_nothing_for_the_next_training(make_trainer):
    trainer = make_trainer(rho=0.3, ascent_scope="window", gradient_accumulation_steps=3, max_steps=2)
    before, step, calls = weights_of(trainer.model), trainer.training_step, []

    def failing(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return step(*args)

    trainer.training_step = failing
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert_same_bits(weights_of(trainer.model), before)
    trainer.train()
    fresh = make_trainer(rho=0.3, ascent_scope="window", gradient_accumulation_steps=3, max_steps=2)
    fresh.train()
    assert_same_bits(weights_of(trainer.model), weights_of(fresh.model))


# ---- what must hold, whatever the mode ---------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["cross_entropy", "logit_adjusted"])
@pytest.mark.parametrize(
    "options", [{"sharpness": "none"}, {"rho": 0.0}, {"sharpness": "focal_sam", "rho": 0.0}], ids=method_id
)
def test_without_a_radius_it_is_plain_trainer_bit_for_bit(make_trainer, options, loss):
    criterion = build_loss(loss, CLASS_COUNTS)

    def compute_loss_func(outputs, labels, num_items_in_batch=None):
        return criterion(outputs["logits"], labels).sum() / num_items_in_batch

    modes = {"gradient_accumulation_steps": 2, "logging_steps": 1, "weight_decay": 0.1}
    sharp = make_trainer(make_vit(dropout=0.1), loss=loss, **options, **modes)
    sharp.train()
    plain = make_trainer(
        make_vit(dropout=0.1), trainer_class=Trainer, trainer={"compute_loss_func": compute_loss_func}, **modes
    )
    plain.train()
    assert_same_bits(weights_of(sharp.model), weights_of(plain.model))
    for name in ("loss", "grad_norm"):
        logged = [[log[name] for log in t.state.log_history if name in log] for t in (sharp, plain)]
        assert logged[0] == logged[1]


@pytest.mark.parametrize("options", METHODS[1:], ids=method_id)
def test_the_method_is_not_plain_training(make_trainer, options):
    sharp, plain = make_trainer(**options), make_trainer(sharpness="none")
    sharp.train()
    plain.train()
    assert any(not torch.equal(a, b) for a, b in zip(sharp.model.parameters(), plain.model.parameters(), strict=True))


def test_focal_sam_with_coefficient_one_is_sam(make_trainer):
    sam = make_trainer(rho=0.3)
    focal = make_trainer(sharpness="focal_sam", focal_gamma=0.0, focal_lambda=1.0, rho=0.3)
    sam.train()
    focal.train()
    assert_same_bits(weights_of(sam.model), weights_of(focal.model))


def test_imbsam_where_every_class_is_rare_is_sam(make_trainer):
    sam, imbsam = make_trainer(rho=0.3), make_trainer(sharpness="imbsam", rho=0.3, rare_threshold=101)
    sam.train()
    imbsam.train()
    assert_same_bits(weights_of(sam.model), weights_of(imbsam.model))


@pytest.mark.parametrize("options", [*METHODS[1:], ADAPTIVE[0]], ids=method_id)
def test_weights_are_bit_identical_after_every_training_step(make_trainer, options):
    trainer = make_trainer(make_vit(dropout=0.1), gradient_accumulation_steps=2, **options)
    step, seen = trainer.training_step, 0

    def training_step(model, inputs, num_items_in_batch=None):
        nonlocal seen
        before = weights_of(model)
        loss = step(model, inputs, num_items_in_batch)
        assert_same_bits(weights_of(model), before)
        seen += 1
        return loss

    trainer.training_step = training_step
    trainer.train()
    assert seen == 8


@pytest.mark.parametrize("failing_forward", [1, 2])
def test_weights_survive_a_model_that_raises(make_trainer, failing_forward):
    trainer = make_trainer(sharpness="focal_sam", rho=0.3)
    calls = 0

    def fail(module, args):
        nonlocal calls
        calls += 1
        if calls == failing_forward:
            raise RuntimeError("out of memory, say")

    before = weights_of(trainer.model)
    handle = trainer.model.classifier.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory, say"):
        trainer.train()
    assert_same_bits(weights_of(trainer.model), before)
    handle.remove()
    trainer.train()


def test_frozen_parameters_are_neither_perturbed_nor_copied(make_trainer, monkeypatch):
    from hf_sharp.sharpness import step as step_module

    perturbed_shapes, perturbed = [], step_module.perturbed

    def spy(parameters, epsilon):
        perturbed_shapes.extend(tuple(p.shape) for p in parameters)
        return perturbed(parameters, epsilon)

    monkeypatch.setattr(step_module, "perturbed", spy)
    model = make_vit()
    model.vit.requires_grad_(False)
    make_trainer(model, max_steps=1, rho=0.3).train()
    assert perturbed_shapes == [(4, 16), (4,)]


class CountHostReads(TorchDispatchMode):
    """Counts what on an accelerator would wait for the device: reading a number out of a tensor."""

    def __init__(self):
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.reads += "local_scalar_dense" in func.name() or "nonzero" in func.name()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [*METHODS, *ADAPTIVE], ids=method_id)
def test_a_step_reads_nothing_back_from_the_device(make_trainer, options, monkeypatch):
    trainer = make_trainer(max_steps=1, **options)
    # On the CPU, where it costs nothing, the loss looks at the labels.
    monkeypatch.setattr(
        type(trainer.class_loss),
        "forward",
        lambda self, logits, labels: nn.functional.cross_entropy(logits, labels, reduction="none"),
    )
    step, counted = trainer.training_step, []

    def training_step(model, inputs, num_items_in_batch=None):
        with CountHostReads() as count:
            loss = step(model, inputs, num_items_in_batch)
        counted.append(count.reads)
        return loss

    trainer.training_step = training_step
    trainer.train()
    assert counted == [0]
    with CountHostReads() as count:
        torch.ones(1).item()
    assert count.reads == 1, "the counter counts"


@pytest.mark.parametrize(
    ("labels", "examples"), [([0, 1, 0], [3]), ([2, 3, 2], [3, 3]), ([0, 1, 3], [1, 2, 1])], ids=str
)
def test_imbsam_passes_take_the_rare_examples_twice_and_the_others_once(make_trainer, labels, examples):
    data = make_images()
    rows = [int(np.flatnonzero(np.array(data["label"]) == label)[0]) for label in labels]
    trainer = make_trainer(
        train_dataset=data.select(rows),
        trainer={"class_frequencies": ClassFrequencies.from_counts(CLASS_COUNTS)},
        sharpness="imbsam",
        rho=0.3,
        per_device_train_batch_size=3,
        max_steps=1,
    )
    calls = []
    trainer.model.register_forward_hook(lambda module, args, output: calls.append(len(output.logits)))
    trainer.train()
    assert calls == examples


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({"sharpness": "none"}, (1, 1)),
        ({"sharpness": "cc_sam"}, (1, 1)),
        ({"sharpness": "sam"}, (2, 2)),
        ({"sharpness": "sam", "rho": 0.0}, (1, 1)),
        ({"sharpness": "focal_sam"}, (2, 3)),
        ({"sharpness": "sam", "ascent_fraction": 0.25}, (1.25, 1.25)),
        ({"sharpness": "sam", "sharpness_every": 4}, (1.25, 1.25)),
        ({"sharpness": "sam", "ascent": "momentum"}, (1, 1)),
    ],
    ids=str,
)
def test_passes_of_a_method_in_examples(make_trainer, options, passes):
    trainer = make_trainer(**options)
    counted = {"forward": 0, "backward": 0}

    def count(name, tensors):
        counted[name] += len(tensors[0])

    layer = trainer.model.vit.layers[0] if hasattr(trainer.model.vit, "layers") else trainer.model.vit.encoder.layer[0]
    layer.register_forward_pre_hook(lambda module, inputs: count("forward", inputs))
    layer.register_full_backward_hook(lambda module, of_inputs, of_outputs: count("backward", of_outputs))
    trainer.train()
    assert (counted["forward"] / 32, counted["backward"] / 32) == passes


def test_labels_of_minus_100_do_not_count(make_trainer):
    def gradient(rows, labels, counts):
        data = make_images(dtype=np.float64)
        batch = {"pixel_values": data[rows]["pixel_values"].double(), "labels": torch.tensor(labels)}
        trainer = make_trainer(make_vit(dtype=torch.float64), sharpness="focal_sam", rho=0.3)
        trainer.training_step(trainer.model, batch, num_items_in_batch=torch.tensor(counts))
        return torch.cat([p.grad.flatten() for p in trainer.model.parameters()])

    torch.testing.assert_close(
        gradient([0, 1, 2, 3], [0, 1, -100, 3], 3), gradient([0, 1, 3], [0, 1, 3], 3), rtol=1e-10, atol=1e-12
    )


# ---- what is logged ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 2])
def test_logs_rho_the_ascent_norm_and_the_sharpness(make_trainer, accumulation):
    trainer = make_trainer(
        make_vit(dtype=torch.float64),
        make_images(dtype=np.float64),
        rho=0.3,
        rho_schedule="linear",
        logging_steps=1,
        learning_rate=0.0,
        gradient_accumulation_steps=accumulation,
    )
    watch = Watch().attach(trainer)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [round(log["rho"], 6) for log in logs] == [0.3, 0.225, 0.15, 0.075]

    model = trainer.model
    for step in range(3):
        norms, rises = [], []
        for batch in watch.windows[step]:
            inputs = {"pixel_values": batch["pixel_values"], "labels": batch["labels"]}
            model.zero_grad()
            loss = model(**inputs).loss
            loss.backward()
            norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
            moved = copy.deepcopy(model)
            rho = 0.3 * (1 - step / 4)
            with torch.no_grad():
                for p, q in zip(moved.parameters(), model.parameters(), strict=True):
                    p += rho * q.grad / norm
                rises.append((moved(**inputs).loss - loss).item())
            norms.append(norm.item())
        assert logs[step]["ascent_grad_norm"] == pytest.approx(np.mean(norms), rel=1e-6)
        assert logs[step]["sharpness"] == pytest.approx(np.mean(rises), rel=1e-5)


def test_the_logged_loss_is_the_mean_loss_whatever_the_accumulation(make_trainer):
    losses = []
    for accumulation, batch in ((1, 8), (4, 2)):
        trainer = make_trainer(
            sharpness="none",
            gradient_accumulation_steps=accumulation,
            per_device_train_batch_size=batch,
            max_steps=1,
            logging_steps=1,
        )
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_evaluate_reports_the_long_tail(make_trainer):
    trainer = make_trainer(eval_dataset=make_images(seed=5))
    metrics = trainer.evaluate()
    predictions = trainer.predict(make_images(seed=5))
    predicted = predictions.predictions.argmax(-1)
    recalls = [np.mean(predicted[predictions.label_ids == c] == c) for c in range(4)]
    assert metrics["eval_balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert metrics["eval_few_accuracy"] == pytest.approx(np.mean(recalls[2:]))
    assert metrics["eval_medium_accuracy"] == pytest.approx(np.mean(recalls[:2]))
    assert metrics["eval_worst_class_recall"] == pytest.approx(min(recalls))
    assert "eval_many_accuracy" not in metrics
    assert all(isinstance(value, (int, float)) for value in metrics.values())


def test_the_arguments_thresholds_and_the_models_names_are_those_of_the_report(make_trainer):
    frequencies = ClassFrequencies.from_counts(CLASS_COUNTS)
    trainer = make_trainer(trainer={"class_frequencies": frequencies}, rare_threshold=5, common_threshold=30)
    groups = {name: indices.tolist() for name, indices in trainer.class_frequencies.groups.items()}
    assert groups == {"many": [0], "medium": [1, 2], "few": [3]}
    assert trainer.class_frequencies.names == tuple(f"class {i}" for i in range(4)), "LABEL_0 … are no names"
    assert make_trainer().class_frequencies.names == tuple(f"class {i}" for i in range(4))


BEST = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "load_best_model_at_end": True,
}


def test_the_best_model_is_chosen_by_balanced_accuracy_or_as_trainer_does_for_metrics_of_the_users_own(make_trainer):
    ours = make_trainer(eval_dataset=make_images(seed=5), **BEST)
    ours.train()
    logged = [log["eval_balanced_accuracy"] for log in ours.state.log_history if "eval_loss" in log]
    assert ours.state.best_metric == max(logged)
    theirs = make_trainer(
        eval_dataset=make_images(seed=5), trainer={"compute_metrics": lambda prediction: {"f1": 0.5}}, **BEST
    )
    theirs.train()
    assert theirs.state.best_metric == min(log["eval_loss"] for log in theirs.state.log_history if "eval_loss" in log)


def test_hyperparameter_search_looks_for_the_highest_balanced_accuracy(make_trainer, monkeypatch):
    asked = {}
    monkeypatch.setattr(Trainer, "hyperparameter_search", lambda self, *args, **kwargs: asked.update(kwargs))
    trainer = make_trainer()
    trainer.hyperparameter_search(n_trials=3)
    assert asked["direction"] == "maximize"
    assert asked["compute_objective"]({"eval_balanced_accuracy": 0.7, "eval_rare_threshold": 20}) == 0.7
    trainer.hyperparameter_search(compute_objective=min, direction="minimize")
    assert asked["compute_objective"] is min


def test_a_trial_changes_the_method(make_trainer):
    args = make_trainer(sharpness="focal_sam", focal_gamma=1.0).args
    trainer = SharpTrainer(model_init=lambda: make_vit(), args=args, train_dataset=make_images())
    before = trainer.engine.planner.coefficients.clone()
    trainer.args.focal_gamma = 3.0  # as a trial does
    trainer._hp_search_setup(None)  # as every training does, after the model was made
    assert not torch.equal(trainer.engine.planner.coefficients, before)


@pytest.mark.parametrize("options", [{}, {"eval_do_concat_batches": False}], ids=method_id)
def test_evaluation_in_other_modes_gives_the_same_report(make_trainer, options):
    data = make_images(seed=5)
    expected = make_trainer(eval_dataset=data).evaluate()["eval_balanced_accuracy"]
    assert make_trainer(eval_dataset=data, **options).evaluate()["eval_balanced_accuracy"] == expected
    chosen = make_trainer(
        eval_dataset=data,
        trainer={"preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(-1)},
        **options,
    )
    assert chosen.evaluate()["eval_balanced_accuracy"] == expected


class TupleModel(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.head, self.wrap = nn.Linear(64, 4), wrap

    def forward(self, pixel_values):
        return self.wrap(self.head(pixel_values.flatten(1)))


@pytest.mark.parametrize(
    "wrap", [lambda z: z, lambda z: (z,), lambda z: {"logits": z}], ids=["tensor", "tuple", "dict"]
)
def test_a_module_of_the_users_own(make_trainer, wrap):
    trainer = make_trainer(TupleModel(wrap), eval_dataset=make_images(seed=5))
    trainer.train()
    predictions = trainer.predict(make_images(seed=5))
    assert predictions.predictions.shape == (74, 4)
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(
        np.mean(predictions.predictions.argmax(1) == predictions.label_ids)
    )


def test_batch_eval_metrics_is_refused_without_a_function_for_it(make_trainer):
    with pytest.raises(ValueError, match="batch_eval_metrics needs a compute_metrics of your own"):
        make_trainer(batch_eval_metrics=True)


def test_compute_loss_without_a_count_is_the_mean(make_trainer):
    trainer = make_trainer(sharpness="none")
    batch = {"pixel_values": torch.randn(5, 1, 8, 8), "labels": torch.tensor([0, 1, 2, 3, -100])}
    expected = nn.functional.cross_entropy(trainer.model(batch["pixel_values"]).logits, batch["labels"])
    torch.testing.assert_close(trainer.compute_loss(trainer.model, batch), expected)


# ---- where the labels are ----------------------------------------------------------------------------------------


def test_labels_in_another_column(make_trainer):
    usual, other = (
        make_trainer(),
        make_trainer(train_dataset=make_images(label_column="section"), label_column="section"),
    )
    usual.train()
    other.train()
    assert_same_bits(weights_of(usual.model), weights_of(other.model))


def test_another_column_called_label_does_not_win(make_trainer):
    from transformers import DataCollatorWithPadding

    class Tokenizer:
        model_input_names = ("input_ids",)

        def pad(self, features, **kwargs):
            return {name: torch.tensor([feature[name] for feature in features]) for name in features[0]}

    data = datasets.Dataset.from_dict({"input_ids": [[1, 2]] * 8, "label": [0] * 8, "section": [0, 1, 2, 3] * 2})
    for collator in (None, DataCollatorWithPadding(Tokenizer())):
        trainer = make_trainer(make_bert(), data, label_column="section", trainer={"data_collator": collator})
        batch = next(iter(trainer.get_train_dataloader()))
        assert sorted(batch["labels"].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
        assert set(batch) == {"input_ids", "labels"}


def test_a_collator_that_reads_the_label_column_itself(make_trainer):
    def collate(examples):
        pixels = torch.stack([example["pixel_values"] for example in examples])
        return {"pixel_values": pixels, "labels": torch.tensor([example["label"] for example in examples])}

    usual, own = make_trainer(), make_trainer(trainer={"data_collator": collate})
    usual.train()
    own.train()
    assert_same_bits(weights_of(usual.model), weights_of(own.model))


def test_labels_that_are_names(make_trainer):
    usual = make_trainer()
    model, data = make_vit(), make_images()
    model.config.label2id = {f"class {i}": i for i in range(4)}
    model.config.id2label = {i: f"class {i}" for i in range(4)}
    names = [f"class {i}" for i in data["label"]]
    features = datasets.Features({**data.features, "label": datasets.Value("string")})
    named = datasets.Dataset.from_dict(
        {"pixel_values": data.with_format(None)["pixel_values"][:], "label": names}, features
    )
    other = make_trainer(model, named.with_format("torch"), sharpness="imbsam", rho=0.05)
    assert other.class_frequencies.counts.tolist() == CLASS_COUNTS
    usual = make_trainer(sharpness="imbsam", rho=0.05)
    usual.train()
    other.train()
    assert_same_bits(weights_of(usual.model), weights_of(other.model))


def test_a_torch_dataset(make_trainer):
    class Images(torch.utils.data.Dataset):
        rows = make_images()

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, index):
            return self.rows[index]

    trainer = make_trainer(train_dataset=Images())
    assert trainer.class_frequencies.counts.tolist() == CLASS_COUNTS
    trainer.train()


def test_a_stream_with_counts_given(make_trainer):
    frequencies = ClassFrequencies.from_counts(CLASS_COUNTS)
    trainer = make_trainer(
        train_dataset=make_images().to_iterable_dataset(),
        trainer={"class_frequencies": frequencies},
        sharpness="imbsam",
    )
    trainer.train()
    assert trainer.state.global_step == 4


def test_bert_trains(make_trainer):
    rng = np.random.default_rng(0)
    data = datasets.Dataset.from_dict(
        {"input_ids": rng.integers(1, 50, (40, 6)).tolist(), "label": (np.arange(40) % 4).tolist()}
    )
    model = make_bert()
    before = weights_of(model)
    make_trainer(model, data, sharpness="focal_sam", loss="logit_adjusted").train()
    assert not torch.equal(model.classifier.weight, before["classifier.weight"])


# ---- checkpoints -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["vit", "bert"])
def test_resume_equals_no_interruption(make_trainer, tmp_path, family):
    def trainer(folder):
        options = {"sharpness": "focal_sam", "rho": 0.3, "rho_schedule": "cosine", "loss": "logit_adjusted"}
        saving = {"output_dir": str(tmp_path / folder), "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
        if family == "vit":
            return make_trainer(make_vit(dropout=0.1), gradient_accumulation_steps=2, **options, **saving)
        rng = np.random.default_rng(0)
        ids, labels = rng.integers(1, 50, (40, 6)).tolist(), (np.arange(40) % 4).tolist()
        data = datasets.Dataset.from_dict({"input_ids": ids, "label": labels})
        return make_trainer(make_bert(), data, gradient_accumulation_steps=2, **options, **saving)

    whole = trainer("whole")
    whole.train()
    resumed = trainer("resumed")
    with torch.no_grad():  # weights that no checkpoint knows: what is not loaded shows
        for parameter in resumed.model.parameters():
            parameter.add_(1.0)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert_same_bits(weights_of(resumed.model), weights_of(whole.model))


@pytest.mark.parametrize("sampler", ["square_root", "class_balanced", "progressive"])
def test_an_interrupted_run_sees_the_examples_that_it_would_have_seen(make_trainer, tmp_path, sampler):
    def seen_by(folder, resume=None):
        data = make_images().add_column("index", range(74))
        trainer = make_trainer(
            train_dataset=data,
            sampler=sampler,
            output_dir=str(tmp_path / folder),
            remove_unused_columns=False,
            max_steps=25,  # of 10 an epoch
            save_strategy="steps",
            save_steps=14,
            sharpness="none",
        )
        indices, step = [], trainer.training_step
        trainer.training_step = lambda model, inputs, n=None: (
            indices.append(inputs.pop("index")) or step(model, inputs, n)
        )
        trainer.train(resume_from_checkpoint=resume)
        return indices

    whole = seen_by("whole")
    resumed = seen_by("resumed", str(tmp_path / "whole" / "checkpoint-14"))
    assert len(resumed) == 11
    assert torch.equal(torch.cat(resumed), torch.cat(whole[14:]))
    assert not torch.equal(torch.cat(whole[:10]), torch.cat(whole[10:20]))


def test_the_samplers_shares_reach_the_model(make_trainer):
    trainer = make_trainer(sampler="class_balanced", sharpness="none", max_steps=60, learning_rate=0.0)
    watch = Watch().attach(trainer)
    trainer.train()
    labels = torch.cat([batch["labels"] for window in watch.windows for batch in window])
    np.testing.assert_allclose(np.bincount(labels) / len(labels), np.full(4, 0.25), atol=0.09)


def test_a_sampler_needs_all_examples(make_trainer):
    stream = make_images().to_iterable_dataset()
    with pytest.raises(ValueError, match="sampler='class_balanced' has to choose among all examples"):
        make_trainer(
            train_dataset=stream,
            sampler="class_balanced",
            trainer={"class_frequencies": ClassFrequencies.from_counts(CLASS_COUNTS)},
        )


def test_deferred_weights_switch_on_after_their_fraction_of_the_steps_and_not_in_evaluation(make_trainer):
    trainer = make_trainer(
        eval_dataset=make_images(seed=3),
        loss="logit_adjusted",
        reweight_after=0.5,
        loss_beta=0.9,
        class_importance={"class 2": 3.0},
        sharpness="none",
        learning_rate=0.0,
        logging_steps=1,
    )
    plain = trainer.evaluate()["eval_loss"]
    watch = Watch().attach(trainer)
    trainer.train()
    effective = (1 - 0.9 ** np.array(CLASS_COUNTS)) / 0.1
    balanced = (1 / effective) / (1 / effective).mean()
    importance = np.array([1, 1, 3, 1])
    log_priors = torch.log(torch.tensor(CLASS_COUNTS) / sum(CLASS_COUNTS))
    for step, (window, log) in enumerate(zip(watch.windows, trainer.state.log_history, strict=False)):
        (batch,) = window
        weight = torch.tensor(importance * (balanced if step >= 2 else 1))[batch["labels"]]
        with torch.no_grad():
            logits = trainer.model(batch["pixel_values"]).logits + log_priors
        losses = torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
        assert log["loss"] == pytest.approx((weight * losses).mean().item(), rel=1e-5)
    assert trainer.evaluate()["eval_loss"] == plain


def test_importance_of_an_unknown_class(make_trainer):
    with pytest.raises(ValueError, match=r"class_importance has the class 'class2', .* Did you mean 'class 2'"):
        make_trainer(class_importance={"class2": 3.0})
    for twice in ({"class 0": 2, "0": 3}, '{"class 0": 2, "class 0": 3}'):
        with pytest.raises(ValueError, match=r"class_importance has .*'class 0' twice. Keep one of them"):
            make_trainer(class_importance=twice)
    for truth in ({"class 0": True}, [True, 1, 1, 1], np.ones(4, dtype=bool)):
        with pytest.raises(ValueError, match="class_importance must be 4 finite numbers > 0"):
            make_trainer(class_importance=truth)
    with pytest.raises(ValueError, match="class_importance must be 4 finite numbers > 0"):
        make_trainer(class_importance=[1, 2])
    with pytest.raises(ValueError, match="class_importance must be 4 finite numbers > 0"):
        make_trainer(class_importance={"class 2": "dear"})


def test_ldam_refuses_an_ordinary_head_and_takes_a_normalised_one(make_trainer):
    with pytest.raises(ValueError, match=r"loss='ldam' needs cosine logits, and the head 'classifier' is an ordinary"):
        make_trainer(loss="ldam")

    class CosineHead(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(4, 16))

        def forward(self, features):
            return torch.nn.functional.linear(
                torch.nn.functional.normalize(features, dim=-1), torch.nn.functional.normalize(self.weight, dim=-1)
            )

    model = make_vit()
    model.classifier = CosineHead()
    trainer = make_trainer(model, loss="ldam", loss_scale=10.0, rho=0.1)
    assert trainer.train().training_loss > 0


def test_the_best_model_at_the_end_is_the_best_checkpoint(make_trainer):
    scores, seen = iter([0.0, 0.1, 0.9, 0.2, 0.3]), {}  # the first: whether it gives the metric at all

    class Keep(TrainerCallback):
        def on_save(self, args, state, control, model=None, **kwargs):
            seen[state.global_step] = weights_of(model)

    trainer = make_trainer(
        eval_dataset=make_images(seed=5),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="balanced_accuracy",
        trainer={"compute_metrics": lambda prediction: {"balanced_accuracy": next(scores)}, "callbacks": [Keep()]},
    )
    trainer.train()
    assert trainer.state.best_global_step == 2
    assert any(not torch.equal(seen[2][name], seen[4][name]) for name in seen[2])
    assert_same_bits(weights_of(trainer.model), seen[2])


def test_a_checkpoint_that_lacks_a_tensor_is_an_error_that_names_it(make_trainer, tmp_path):
    from safetensors.torch import load_file, save_file

    trainer = make_trainer(save_strategy="steps", save_steps=2)
    trainer.train()
    file = tmp_path / "out" / "checkpoint-2" / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("classifier.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"checkpoint-2 does not fit the model: missing \['classifier.weight'\]"):
        make_trainer().train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))


def test_the_saved_model_is_an_ordinary_checkpoint(make_trainer, tmp_path):
    from transformers import AutoModelForImageClassification

    trainer = make_trainer(loss="logit_adjusted", sharpness="focal_sam")
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "saved")
    assert_same_bits(weights_of(loaded), weights_of(trainer.model))


# ---- bad input: a clear error before any training ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dataset", "list", "subset"])
def test_labels_under_the_name_that_models_use_are_found(make_trainer, kind):
    data = make_images(label_column="labels")
    if kind == "list":
        data = [dict(row) for row in data.with_format("torch")]
    if kind == "subset":
        data = torch.utils.data.Subset(data.with_format("torch"), range(len(data)))
    trainer = make_trainer(train_dataset=data, eval_dataset={"a": data})
    assert trainer.class_frequencies.counts.sum() == len(data)
    trainer.train()
    assert "eval_a_balanced_accuracy" in trainer.evaluate()


def test_an_evaluation_alone_finds_them_too(tmp_path):
    data = make_images(label_column="labels")
    assert len(split_validation(data)[0]) < len(data)
    args = SharpTrainingArguments(str(tmp_path), use_cpu=True)
    frequencies = ClassFrequencies.from_dataset(data)
    trainer = SharpTrainer(make_vit(), args, eval_dataset={"a": data}, class_frequencies=frequencies)
    assert "eval_a_balanced_accuracy" in trainer.evaluate()


def test_no_label_column_names_the_columns(make_trainer):
    with pytest.raises(
        ValueError, match=r"no label column 'label'; the columns are 'pixel_values', 'section'.*label_column"
    ):
        make_trainer(train_dataset=make_images(label_column="section"))


def test_a_label_outside_the_classes_names_the_row(make_trainer):
    data = datasets.Dataset.from_dict({"pixel_values": [[0.0]] * 3, "label": [0, 7, 1]})
    with pytest.raises(ValueError, match=r"row 1 of column 'label' holds label 7; expected a class index from 0 to 3"):
        make_trainer(train_dataset=data)


def test_a_label_outside_the_classes_in_the_evaluation_set(make_trainer):
    data = datasets.Dataset.from_dict({"pixel_values": [[0.0]] * 3, "label": [0, 1, -2]})
    with pytest.raises(ValueError, match=r"row 2 of column 'label' holds label -2"):
        make_trainer(eval_dataset={"test": data})


def test_training_labels_are_checked_also_when_the_frequencies_are_given(make_trainer):
    data = datasets.Dataset.from_dict({"pixel_values": [[0.0]] * 3, "label": [0, 9, 1]})
    frequencies = ClassFrequencies.from_counts(CLASS_COUNTS)
    with pytest.raises(ValueError, match=r"row 1 of column 'label' holds label 9"):
        make_trainer(train_dataset=data, trainer={"class_frequencies": frequencies})


def test_class_counts_serve_as_class_frequencies(make_trainer):
    trainer = make_trainer(trainer={"class_frequencies": CLASS_COUNTS})
    assert trainer.class_frequencies.counts.tolist() == list(CLASS_COUNTS)
    with pytest.raises(ValueError, match="counts"):
        make_trainer(trainer={"class_frequencies": [3, -1, 2, 2]})


def test_thresholds_that_contradict_each_other(make_trainer):
    frequencies = ClassFrequencies.from_counts(CLASS_COUNTS, rare_threshold=5)
    with pytest.raises(ValueError, match="class_frequencies has rare_threshold=5, the arguments have 20"):
        make_trainer(trainer={"class_frequencies": frequencies})


def test_an_evaluation_set_of_other_classes(make_trainer):
    others = make_images([5, 5]).with_format(None).cast_column("label", datasets.ClassLabel(names=["ape", "bee"]))
    with pytest.raises(ValueError, match=r"evaluation set 'b'.*are not those of"):
        make_trainer(eval_dataset={"a": make_images(), "b": others})


def test_a_head_that_does_not_fit_the_classes(make_trainer):
    with pytest.raises(
        ValueError, match=r"head has 10 outputs, but there are 4 classes in the training set.*num_labels=4"
    ):
        make_trainer(make_vit(num_labels=10))


def test_a_single_class(make_trainer):
    data = datasets.Dataset.from_dict({"pixel_values": [[0.0]] * 3, "label": [1, 1, 1]})
    with pytest.raises(ValueError, match=r"at least 2 classes; the counts are \[0, 3, 0, 0\]"):
        make_trainer(train_dataset=data)


def test_a_regression_head(make_trainer):
    with pytest.raises(ValueError, match=r"regression \(num_labels=1\).*single_label_classification"):
        make_trainer(make_vit(num_labels=1))


def test_a_multi_label_head(make_trainer):
    model = make_vit()
    model.config.problem_type = "multi_label_classification"
    with pytest.raises(ValueError, match=r"multi_label_classification; SharpTrainer needs one for single_label"):
        make_trainer(model)


def test_an_empty_dataset(make_trainer):
    with pytest.raises(ValueError, match="the training set is empty"):
        make_trainer(train_dataset=make_images().select([]))


def test_a_stream_without_counts(make_trainer):
    with pytest.raises(ValueError, match=r"iterable train_dataset.*class_frequencies=ClassFrequencies.from_counts"):
        make_trainer(train_dataset=make_images().to_iterable_dataset())


def test_no_training_set_and_no_counts(tmp_path):
    with pytest.raises(ValueError, match=r"without a train_dataset.*class_frequencies="):
        SharpTrainer(make_vit(), SharpTrainingArguments(str(tmp_path), use_cpu=True), eval_dataset=make_images())


def test_data_parallel_is_refused(make_trainer, tmp_path):
    args = SharpTrainingArguments(str(tmp_path), use_cpu=True)
    args._n_gpu = 2
    with pytest.raises(ValueError, match=r"2 GPUs.*nn.DataParallel.*accelerate launch"):
        SharpTrainer(make_vit(), args, train_dataset=make_images())


def test_plain_training_arguments_are_refused(tmp_path):
    from transformers import TrainingArguments

    with pytest.raises(
        ValueError, match=r"args is TrainingArguments; SharpTrainer needs hf_sharp.SharpTrainingArguments"
    ):
        SharpTrainer(make_vit(), TrainingArguments(str(tmp_path), use_cpu=True), train_dataset=make_images())


def test_a_loss_function_of_the_users_own_is_refused(make_trainer):
    with pytest.raises(ValueError, match="compute_loss_func is not supported"):
        make_trainer(trainer={"compute_loss_func": lambda *args, **kwargs: None})


def test_a_model_with_nothing_to_train(make_trainer):
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        make_trainer(make_vit().requires_grad_(False))


def test_a_collator_that_drops_the_labels(make_trainer):
    trainer = make_trainer(
        trainer={"data_collator": lambda rows: {"pixel_values": torch.stack([r["pixel_values"] for r in rows])}}
    )
    with pytest.raises(ValueError, match=r"the batch has no `labels`, only 'pixel_values'"):
        trainer.train()


def test_an_absent_class_is_named_and_trains(make_trainer, caplog):
    trainer = make_trainer(train_dataset=make_images([20, 10, 0, 3]), loss="logit_adjusted", sharpness="focal_sam")
    assert "1 class has no training examples: 'class 2'" in caplog.text
    trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_a_coefficient_above_one_is_logged(make_trainer, caplog):
    make_trainer(sharpness="focal_sam", focal_lambda=1.2, focal_gamma=0.1)
    assert "Above 1" in caplog.text


def test_the_signature_is_that_of_trainer_plus_class_frequencies():
    import inspect

    ours, theirs = inspect.signature(SharpTrainer.__init__).parameters, inspect.signature(Trainer.__init__).parameters
    positional = [name for name, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == list(theirs)[: len(positional)]
    assert ours["class_frequencies"].default is None


def test_metrics_of_ones_own_and_several_evaluation_sets(make_trainer):
    trainer = make_trainer(
        eval_dataset={"one": make_images(seed=1), "other": make_images(seed=2)},
        trainer={"compute_metrics": lambda prediction: {"mine": 1.0}},
        eval_strategy="steps",
        eval_steps=2,
    )
    trainer.train()
    assert any("eval_one_mine" in log for log in trainer.state.log_history)


def test_metrics_of_ones_own_leave_the_last_checkpoint(make_trainer, tmp_path):
    trainer = make_trainer(
        eval_dataset=make_images(seed=1),
        trainer={"compute_metrics": lambda prediction: {"mine": 1.0}},
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
    )
    trainer.train()
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-4"]


def test_a_step_without_a_count_is_about_its_own_examples(make_trainer):
    gradients = []
    for count in (None, torch.tensor(8)):
        trainer = make_trainer(sharpness="focal_sam", rho=0.2)
        trainer.create_optimizer()
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
        trainer.training_step(trainer.model, batch, *([] if count is None else [count]))
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("options", [{"sharpness": "cc_sam"}, {"loss": "large_margin"}], ids=str)
def test_a_model_that_is_made_anew_has_its_head_watched(make_trainer, options, tmp_path):
    args = make_trainer(**options).args
    trainer = SharpTrainer(model_init=lambda: make_vit(), args=args, train_dataset=make_images())
    for _ in range(2):
        trainer.train()
    assert trainer.state.global_step == 4


def test_a_learned_radius_begins_anew_with_a_new_model(make_trainer):
    options = {"rho_schedule": "learned", "rho": 0.3, "rho_update_every": 1, "rho_learning_rate": 0.1}
    args = make_trainer(logging_steps=1, **options).args
    trainer = SharpTrainer(model_init=lambda: make_vit(), args=args, train_dataset=make_images())
    for _ in range(2):
        trainer.train()
        assert trainer.state.log_history[0]["rho"] == pytest.approx(0.3)
        assert trainer.rho != 0.3


LETS = {"sharpness": "sam", "rho_schedule": "learned", "rho_update_every": 2, "rho": 0.3}


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({"sharpness": "none"}, 1),
        ({"sharpness": "cc_sam"}, 1),
        ({"sharpness": "sam", "rho": 0.3}, 2),
        ({"sharpness": "sam", "rho": 0.3, "ascent": "momentum"}, 1),
        ({"sharpness": "sam", "rho": 0.3, "sharpness_every": 4}, 1 + 1 / 4),
        ({"sharpness": "sam", "rho": 0.3, "sharpness_after": 0.5}, 1 + 1 / 2),
        ({"sharpness": "sam", "rho": 0.3, "ascent_scope": "window", "gradient_accumulation_steps": 2}, 2),
        ({"sharpness": "imbsam", "rho": 0.3, "rare_threshold": 10}, 1 + 16 / 64),
        ({"sharpness": "focal_sam", "rho": 0.3}, 8 / 3),
        # By step: 2; half of the steps a backward pass of the difference, and half a validation batch.
        (LETS, 2 + (2 / 3 + 1) / 2),
    ],
    ids=str,
)
def test_the_cost_of_a_step_is_counted_in_plain_ones(make_trainer, options, passes):
    trainer = make_trainer(
        train_dataset=make_images([32, 16, 8, 8]),
        eval_dataset=make_images(seed=1),
        trainer={"rho_dataset": make_images(seed=2)} if options is LETS else {},
        eval_strategy="steps",  # evaluations are not of training
        eval_steps=8,
        **(options | {"max_steps": 16}),
    )
    assert trainer.record.passes == 0
    for _ in range(2):
        trainer.train()
        assert trainer.record.passes == pytest.approx(passes)
