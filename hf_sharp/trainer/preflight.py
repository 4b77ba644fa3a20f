"""Checks before training that arguments, model, loss and training mode fit together."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.utils.data import IterableDataset

from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.data.class_names import indices_of_classes
from hf_sharp.data.costs import read_costs
from hf_sharp.losses import ClassFrequencyLoss
from hf_sharp.model.cosine_head import CosineHead
from hf_sharp.sharpness import METHODS
from hf_sharp.training_args import SharpTrainingArguments

logger = logging.getLogger(__name__)

STREAMS = (IterableDataset, datasets.IterableDataset)


def check_arguments(args: Any, train_dataset: Any) -> None:
    """Raise a ValueError if `args` has the wrong class, or asks for a mode that the training set does not support."""
    if not isinstance(args, SharpTrainingArguments):
        raise ValueError(
            f"args is {type(args).__name__}; SharpTrainer needs hf_sharp.SharpTrainingArguments, which takes the same "
            "options, and those of sharpness and loss."
        )
    args.check()  # again: options may have been changed after the arguments were created
    if args.n_gpu > 1:
        raise ValueError(
            f"one process sees {args.n_gpu} GPUs, and Trainer would use nn.DataParallel, which is not supported. Start "
            "one process per GPU with `accelerate launch` (or show it one GPU with CUDA_VISIBLE_DEVICES=0)."
        )
    if args.sampler != "instance" and isinstance(train_dataset, STREAMS):
        raise ValueError(
            f"sampler={args.sampler!r} has to choose among all examples, but the train_dataset is a stream. Load it "
            "without streaming, or leave sampler at 'instance'."
        )
    if getattr(args, "parallelism_config", None) is not None:
        raise ValueError("parallelism_config is not supported: use data parallelism, with `accelerate launch` alone.")


def labels_in(inputs: Mapping[str, Any], label_column: str) -> Tensor:
    """Return the labels of a batch; raise a ValueError if there are none, or if they are no class indices."""
    if "labels" not in inputs:
        raise ValueError(
            f"the batch has no `labels`, only {', '.join(map(repr, inputs))}: is label_column={label_column!r} the "
            "column that holds them, and does the data collator keep it?"
        )
    labels = inputs["labels"]
    if labels.is_floating_point():
        raise ValueError(f"expected a class index per example as labels, got numbers of type {labels.dtype}.")
    return labels


def check_label_names(args: SharpTrainingArguments) -> None:
    """Raise a ValueError if `label_names` asks for other labels than the class of each example."""
    if {*(args.label_names or ())} - {"labels", args.label_column}:
        raise ValueError(
            f"label_names={args.label_names} is not supported: an example has one label, which metrics get as "
            "`label_ids`. Leave it out, and read other columns from your dataset."
        )


def check_fsdp(plugin: Any, args: SharpTrainingArguments, loss: ClassFrequencyLoss) -> None:
    """Raise a ValueError for FSDP1, and for options that do not work with FSDP2."""
    if plugin.fsdp_version != 2:
        raise ValueError(
            "FSDP1 is not supported: it flattens weights, and their shapes, which the ascent needs, are gone. Set "
            "fsdp_version: 2, as in recipes/accelerate/fsdp2.yaml."
        )
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise ValueError(
            "FSDP2 with CPU offload is not supported: the ascent would move every gradient twice. Set "
            "fsdp_offload_params: false, or choose a smaller batch."
        )
    if args.learns_rho:
        raise ValueError(
            "rho_schedule='learned' is not supported with FSDP2, which gives one gradient per pass, not two. Use "
            "recipes/accelerate/ddp.yaml, or another schedule."
        )
    if loss.needs_features:
        raise ValueError(
            f"loss={loss.name!r} is not supported with FSDP2: it needs the whole head, which is sharded outside of the "
            "model's forward pass. Use recipes/accelerate/ddp.yaml, or another loss."
        )
    if args.sharpness_every > 1:
        raise ValueError(
            "sharpness_every is not supported with FSDP2: what is reused is a direction of all weights, and "
            "checkpoints hold no shards of it. Use recipes/accelerate/ddp.yaml, or ascent_fraction."
        )
    if METHODS[args.sharpness].needs_radius and args.ascent_sync == "local":
        logger.info("FSDP2 averages every gradient over the processes: all of them share one perturbation (global).")


def check_model(model: nn.Module, args: SharpTrainingArguments, calls_with_labels: bool = False) -> None:
    """Raise a ValueError if the head is for another task, or the model cannot be trained as the arguments ask.

    Args:
        model: the model.
        args: the arguments.
        calls_with_labels: whether the user's own `compute_loss` calls the model, possibly with labels.
    """
    labels = inspect.signature(model.forward).parameters.get("labels")
    if not calls_with_labels and labels is not None and labels.default is labels.empty:
        raise ValueError(
            f"{type(model).__name__}.forward() requires labels, but SharpTrainer computes the loss itself and calls "
            "the model without them. Give them a default: labels=None."
        )
    if args.gradient_checkpointing and not getattr(model, "supports_gradient_checkpointing", True):
        raise ValueError(f"{type(model).__name__} does not support gradient_checkpointing. Leave it out.")
    config = getattr(model, "config", None)
    problem = getattr(config, "problem_type", None)
    if problem in ("multi_label_classification", "regression") or getattr(config, "num_labels", 2) == 1:
        raise ValueError(
            f"the model's head is for {problem or 'regression (num_labels=1)'}; SharpTrainer needs one for "
            "single_label_classification with K >= 2 classes. Load the model with from_pretrained(..., num_labels=K, "
            "problem_type='single_label_classification', ignore_mismatched_sizes=True); a head of another size is new."
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("no parameter of the model requires a gradient: there is nothing to train.")


def check_class_loss(loss: Any, args: SharpTrainingArguments, frequencies: ClassFrequencies) -> None:
    """Raise a ValueError if a loss passed by the user cannot replace the built-in losses."""
    if loss is None:
        return
    if not isinstance(loss, ClassFrequencyLoss):
        raise ValueError(
            f"class_loss is {type(loss).__name__}; SharpTrainer needs one loss per example. Derive it from "
            "hf_sharp.losses.ClassFrequencyLoss, and pass an instance: class_loss=MyLoss(class_counts)."
        )
    if args.loss != SharpTrainingArguments.loss or args.loss_options:
        raise ValueError(f"class_loss and loss={args.loss!r} both name the loss. Leave loss and loss_options out.")
    if args.reweight_after is not None and loss.weight is not None:
        raise ValueError(
            f"reweight_after={args.reweight_after} would weight the classes twice: class_loss does it from the start. "
            "Leave reweight_after out, or pass another loss."
        )
    if loss.class_counts.tolist() != frequencies.counts.tolist():
        raise ValueError(
            f"class_loss was made for the class counts {loss.class_counts.tolist()}, but the training set has "
            f"{frequencies.counts.tolist()}, in the order of the model's classes. Make it with ClassFrequencies."
            "from_dataset(train_dataset).counts, and give the data the model's order of classes."
        )


def check_same_data(train_dataset: Any, counted: Any) -> None:
    """Raise a ValueError if the training set is not the one whose classes were counted (None: any may be used)."""
    if counted is not None and train_dataset is not counted:
        raise ValueError(
            "train_dataset was replaced after the trainer was made, and the loss has the class counts of the old one. "
            "Make a new SharpTrainer for it."
        )


def logits_of(outputs: Any, model: nn.Module) -> Tensor:
    """Return the logits (N, K) of a model's outputs, a mapping or a tuple; raise a ValueError if there are none."""
    if not isinstance(outputs, Mapping):
        return outputs[0]
    if "logits" not in outputs:
        raise ValueError(
            f"the output of {type(model).__name__} has no `logits`, only {', '.join(map(repr, outputs))}. Load a model "
            "with a classification head, such as AutoModelForImageClassification or "
            "AutoModelForSequenceClassification."
        )
    return outputs["logits"]


def check_head(model: nn.Module, loss: ClassFrequencyLoss) -> None:
    """Raise a ValueError if the loss needs cosine logits and the head does not compute cosines."""
    heads = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if any(isinstance(module, CosineHead) for module in model.modules()):
        return
    if loss.needs_cosine_logits and heads and model.get_submodule(heads[-1]).out_features == len(loss.class_counts):
        raise ValueError(
            f"loss={loss.name!r} needs cosine logits, and the head {heads[-1]!r} is an ordinary linear layer. Set "
            "cosine_head=True, or choose logit_adjusted or vs, which also shift the decision in favour of rare classes "
            "and take any logits."
        )


def check_parts(model: nn.Module, args: SharpTrainingArguments, loss: ClassFrequencyLoss) -> bool:
    """Tell whether a pass may use only some examples of a micro-batch, because their losses are independent.

    Args:
        model: the model; with BatchNorm, its outputs depend on the other examples.
        args: the arguments; some options need passes over some of the examples.
        loss: the loss; one that uses features depends on the other examples, too.

    Returns:
        True if each example's loss is independent of the other examples.

    Raises:
        ValueError: the losses are not independent, but an option requires it.
    """
    batch_norm = next(
        (name for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)), None
    )
    reason = f"the BatchNorm {batch_norm!r}" if batch_norm is not None else None
    if loss.needs_features:
        reason = f"loss={loss.name!r}"
    for name, default in (("ascent_fraction", 1.0), ("focal_sampling", "exact")):
        if reason is not None and getattr(args, name) != default:
            raise ValueError(
                f"{name}={getattr(args, name)!r} lets passes use only some examples of a micro-batch, but with "
                f"{reason} an example's loss depends on the others. Leave {name} at {default!r}."
            )
    return reason is None


def check_radius(model: nn.Module, rho_dataset: Any, args: SharpTrainingArguments, trains: bool) -> None:
    """Raise a ValueError if the data or the training mode does not support a learned radius."""
    if not args.learns_rho:
        return
    if rho_dataset is None and trains:  # switched on by a trial of a hyperparameter search
        raise ValueError(
            "rho_schedule='learned' needs validation examples, which are held out when the trainer is created. Create "
            "it with rho_schedule='learned'."
        )
    if isinstance(rho_dataset, STREAMS):
        raise ValueError("rho_dataset is a stream, but batches are drawn from all of it. Load it as a Dataset.")
    kwargs = args.gradient_checkpointing_kwargs
    if args.gradient_checkpointing and isinstance(kwargs, Mapping) and kwargs.get("use_reentrant"):
        raise ValueError(
            "rho_schedule='learned' computes gradients in the middle of a pass, which reentrant gradient checkpointing "
            "does not allow. Set gradient_checkpointing_kwargs={'use_reentrant': False}."
        )
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if args.rho_hessian == "exact" and attention not in (None, "eager"):
        raise ValueError(
            f"rho_hessian='exact' differentiates twice, which {attention} attention does not support. Load the model "
            "with attn_implementation='eager', or choose rho_hessian='secant'."
        )


def class_importance_of(importance: Any, frequencies: ClassFrequencies) -> Any:
    """Put the user's class importances into the order of the classes.

    Args:
        importance: K numbers, a mapping from class name (or index) to number, or None.
        frequencies: the class frequencies of the training set, with the class names.

    Returns:
        K values, with 1 for a class that the mapping does not contain. Anything but a mapping is returned unchanged.

    Raises:
        ValueError: the mapping contains an unknown class, or a class twice.
    """
    if not isinstance(importance, Mapping):
        return importance
    values = [1.0] * frequencies.num_classes
    indices = indices_of_classes(importance, frequencies.labels, "class_importance")
    for index, value in zip(indices, importance.values(), strict=True):
        values[index] = value
    return values


def cost_matrix_of(costs: Any, frequencies: ClassFrequencies) -> np.ndarray | None:
    """Read the user's costs as a (K, K) array, or None if there are none; see `read_costs`."""
    return None if costs is None else read_costs(costs, frequencies.labels)
