"""Predictions by least expected cost, and costs folded into the head if that gives the same predictions.

    expected cost of predicting j for x:    r_j(x) = Σ_c p_c(x) C[c, j]        prediction: argmin_j r_j(x)

If a mistake on class c costs the same whatever is predicted, C[c, j] = C[c, c] + k_c for all j ≠ c, then

    argmin_j r_j = argmax_j k_j p_j = argmax_j (logit_j + log k_j)

so that adding log k to the head's bias is exact. With two classes this always holds. In all other cases the costs are
kept as a table, which is applied to the model's probabilities.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_sharp.model.posthoc import Head, Model, change_head, check_unadjusted
from hf_sharp.registry.arrays import as_array


def expected_costs(probabilities: Tensor, costs: Any) -> Tensor:
    """Compute the expected cost of every possible prediction.

    Args:
        probabilities: (N, K), rows that sum to 1, calibrated for the class shares of the deployment.
        costs: (K, K), a row per true class and a column per predicted class.

    Returns:
        (N, K), in the unit of the costs; the prediction of least expected cost is its `argmin(1)`.

    Example:
        >>> expected_costs(torch.tensor([[0.75, 0.25]]), [[0, 1], [5, 0]])
        tensor([[1.2500, 0.7500]])

    Reference:
        Elkan, The Foundations of Cost-Sensitive Learning, IJCAI 2001, equation 1.
    """
    return probabilities @ torch.as_tensor(as_array(costs), dtype=probabilities.dtype, device=probabilities.device)


def class_costs(costs: Any) -> np.ndarray | None:
    """Find the cost of a mistake on each class, if it does not depend on the predicted class.

    Args:
        costs: (K, K), a row per true class and a column per predicted class.

    Returns:
        (K,) k_c > 0, the cost of a mistake minus that of a correct prediction; None if costs depend on the predicted
        class, or if a mistake does not cost more than a correct prediction.

    Raises:
        ValueError: costs of another shape.

    Example:
        >>> class_costs([[0, 1, 1], [1, 0, 1], [5, 5, 0]])
        array([1., 1., 5.])
        >>> class_costs([[0, 1, 1], [1, 0, 1], [5, 9, 0]]) is None
        True
    """
    matrix = as_array(costs, np.float64)
    if matrix.ndim != 2 or len(matrix) != matrix.shape[1] or len(matrix) < 2:
        raise ValueError(f"expected costs (K, K), row the true class; got {matrix.shape}. Use read_costs for others.")
    others = ~np.eye(len(matrix), dtype=bool)
    rows = matrix[others].reshape(len(matrix), -1)
    extra = rows[:, 0] - np.diag(matrix)
    same = np.isclose(rows, rows[:, :1], rtol=1e-9, atol=0).all()
    return extra if same and (extra > 0).all() else None


def fold_costs(model: Model, costs: Any, *, head: str | None = None) -> Model:
    """Fold costs into the head's bias, so that the most likely class is the one of least expected cost.

        b_c ← b_c + log k_c

    Args:
        model: an image or sequence classification model with a linear head and a bias. It is not changed. Its
            probabilities should be calibrated for the deployment: a model that was trained or adjusted to treat all
            classes alike minimizes costs for data in which all classes are equally common.
        costs: (K, K), a row per true class and a column per predicted class.
        head: the name of the layer that computes the logits, if several linear layers have K outputs.

    Returns:
        A copy of the model. Its config records the costs of the classes (`hf_sharp_adjustment`). Its softmax weighs
        the probabilities by the costs; it is no longer calibrated.

    Raises:
        ValueError: the costs depend on the predicted class; the head has no bias or is not linear; or the model was
            adjusted before.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2))
        >>> folded = fold_costs(model, [[0, 1], [5, 0]])
        >>> (folded[0].bias - model[0].bias).tolist()  # log 1 and log 5
        [0.0, 1.6094...]
    """
    check_unadjusted(model)
    per_class = class_costs(costs)
    if per_class is None:
        raise ValueError(
            "the costs depend on the predicted class, or a mistake costs no more than a correct prediction, so no bias "
            "gives the same predictions. Use expected_costs(probabilities, costs).argmin(1)."
        )
    shift = torch.tensor(np.log(per_class))

    def change(old: Head) -> Head:
        if old.bias is None:
            raise ValueError(
                "costs are folded into the head's bias, but this head has none, and a bias added now would be lost "
                "when the model is loaded. Use expected_costs(probabilities, costs).argmin(1)."
            )
        return Head(old.weight, old.bias + shift)

    record: dict[str, Any] = {"method": "cost", "strength": 1.0, "class_costs": per_class.tolist()}
    correct = np.diag(as_array(costs, np.float64))
    if correct.any():
        record["correct_costs"] = correct.tolist()
    return change_head(model, change, record, len(per_class), head)
