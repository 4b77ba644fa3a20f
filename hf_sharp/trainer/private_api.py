"""The private parts of transformers' Trainer that hf_sharp depends on, in one list.

A new transformers release may change or remove any of them; `tests/trainer/test_private_api.py` then says which one.
"""

from __future__ import annotations

from typing import NamedTuple


class PrivateMethod(NamedTuple):
    """A private method of `Trainer`.

    Args:
        parameters: the names of its parameters, without `self`.
        purpose: what hf_sharp uses it for.
    """

    parameters: tuple[str, ...]
    purpose: str


#: Overridden by `SharpTrainer` and the classes between it and `Trainer`.
OVERRIDDEN = {
    "_finish_current_push": PrivateMethod((), "reports failed pushes"),
    "_get_train_sampler": PrivateMethod(("train_dataset",), "draws examples by class"),
    "_hp_search_setup": PrivateMethod(("trial",), "rebuilds the method with the trial's options"),
    "_issue_warnings_after_load": PrivateMethod(("load_result",), "makes missing and unexpected keys an error"),
    "_load_best_model": PrivateMethod((), "converts key names"),
    "_load_callback_state": PrivateMethod((), "keeps the record of the present method"),
    "_load_from_checkpoint": PrivateMethod(("resume_from_checkpoint", "model"), "converts key names"),
    "_load_optimizer_and_scheduler": PrivateMethod(("checkpoint",), "loads the method's state"),
    "_push_from_checkpoint": PrivateMethod(("checkpoint_folder",), "reports failed pushes, and hides paths"),
    "_save_checkpoint": PrivateMethod(("model", "trial"), "marks a checkpoint as complete last"),
    "_save_optimizer_and_scheduler": PrivateMethod(("output_dir",), "saves the method's state"),
    "_set_signature_columns_if_needed": PrivateMethod((), "keeps the label column"),
}
#: Called.
CALLED = {
    "_get_collator_with_removed_columns": PrivateMethod(("data_collator", "description"), "LETS: validation batches"),
    "_get_learning_rate": PrivateMethod((), "LETS: the step size"),
    "_get_output_dir": PrivateMethod(("trial",), "finds the checkpoint's folder"),
    "_prepare_inputs": PrivateMethod(("inputs",), "moves micro-batches to the device"),
}
