"""The geometry of classifier and embeddings under class imbalance: predicted from the class counts, and measured."""

from hf_sharp.geometry.callback import GeometryCallback
from hf_sharp.geometry.measure import GeometryMeter, MeasuredGeometry, measure
from hf_sharp.geometry.ufm import train_ufm
from hf_sharp.model.predicted_geometry import Geometry, balancing_gamma, gram_distance, predict, predict_for_loss

__all__ = [
    "Geometry",
    "GeometryCallback",
    "GeometryMeter",
    "MeasuredGeometry",
    "balancing_gamma",
    "gram_distance",
    "measure",
    "predict",
    "predict_for_loss",
    "train_ufm",
]
