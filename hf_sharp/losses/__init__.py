"""Class-frequency-aware losses: one value per example, buffers and no parameters.

Every module of this package is imported, so that a new loss only needs a new file.
"""

import importlib
import pkgutil

# Tables list the losses in this order.
# isort: off
from hf_sharp.losses.base import ClassFrequencyLoss
from hf_sharp.losses.registry import LOSSES, build_loss, register_loss
from hf_sharp.losses.reweighting import ClassBalancedLoss, FocalLoss, WeightedLoss
from hf_sharp.losses.margin import LDAMLoss
from hf_sharp.losses.logit_adjustment import BalancedSoftmaxLoss, CDTLoss, LDTLoss, LogitAdjustedLoss, VSLoss
from hf_sharp.losses.large_margin import LargeMarginLoss
# isort: on

for _module in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
    importlib.import_module(_module.name)

__all__ = [
    "LOSSES",
    "BalancedSoftmaxLoss",
    "CDTLoss",
    "ClassBalancedLoss",
    "ClassFrequencyLoss",
    "FocalLoss",
    "LDAMLoss",
    "LDTLoss",
    "LargeMarginLoss",
    "LogitAdjustedLoss",
    "VSLoss",
    "WeightedLoss",
    "build_loss",
    "register_loss",
]
