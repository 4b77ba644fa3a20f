"""Logs the geometry of head and features at every evaluation."""

from __future__ import annotations

import logging
from collections.abc import Sized
from typing import Any, cast

from torch.utils.data import DataLoader, Dataset, Subset
from transformers import TrainerCallback

from hf_sharp.data.labels import read_labels
from hf_sharp.geometry.measure import MeasuredGeometry, measure
from hf_sharp.model.group_batches import stratified_sample
from hf_sharp.model.predicted_geometry import Geometry, predict_for_loss
from hf_sharp.registry.limits import check_number

logger = logging.getLogger(__name__)


class GeometryCallback(TrainerCallback):
    """Measures head and features at every evaluation, and logs their distance from the predicted geometry.

    Logs `geometry_classifier_distance`, `geometry_embedding_distance` and `geometry_centred_embedding_distance` (from 0
    to 2; omitted for a loss without a prediction), `geometry_nc1`, `geometry_norm_ratio` (the norm of the most frequent
    class's row divided by that of the rarest) and `geometry_minimum_angle` (degrees between the two nearest rows).

    Args:
        trainer: the SharpTrainer that the callback is added to.
        dataset: the examples to measure the features on; None for the training set.
        max_examples: the maximum number of examples; if there are more, a stratified sample is drawn once.

    Example:
        >>> trainer.add_callback(GeometryCallback(trainer))  # doctest: +SKIP
    """

    def __init__(self, trainer: Any, dataset: Any = None, max_examples: int = 2000) -> None:
        self.trainer = trainer
        self.dataset: Any = trainer.train_dataset if dataset is None else dataset
        check_number("max_examples", max_examples, least=1, whole=True)
        if not hasattr(self.dataset, "__len__"):
            raise ValueError("the examples to measure are a stream, which has no length. Give others with dataset=.")
        if len(cast(Sized, self.dataset)) > max_examples:
            label2id = getattr(getattr(trainer.model, "config", None), "label2id", None)
            labels = read_labels(self.dataset, trainer.args.label_column, label2id=label2id)
            chosen = stratified_sample(labels, max_examples)  # the distances need examples of every class
            self.dataset = Subset(cast(Dataset, self.dataset), chosen.tolist())
        self.last: MeasuredGeometry | None = None
        self.predicted: Geometry | None = None
        try:
            self.predicted = predict_for_loss(trainer.class_loss)
        except ValueError as error:
            logger.warning("No distance to a predicted geometry: %s", error)

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure and log."""
        # On every process, because a sharded model needs all of them for a forward pass.
        frequencies, trainer = self.trainer.class_frequencies, self.trainer
        collate = trainer._get_collator_with_removed_columns(trainer.data_collator, "geometry")
        batches = DataLoader(self.dataset, args.per_device_eval_batch_size, collate_fn=collate)
        self.last = measure(model, batches, frequencies.num_classes, args.head, progress_bar=False)
        logs = {
            "geometry_nc1": self.last.nc1,
            "geometry_norm_ratio": self.last.head_to_tail_norm_ratio(frequencies.counts),
            "geometry_minimum_angle": float(self.last.minimum_angles().min()),
        }
        if self.predicted is not None and not (self.last.class_counts > 0).all():
            logger.warning("No distance to the predicted geometry: not every class is among the measured examples.")
            self.predicted = None
        if self.predicted is not None:
            distances = self.last.distances(self.predicted)
            logs |= {f"geometry_{name}_distance": distance for name, distance in distances.items()}
        self.trainer.log(logs)
