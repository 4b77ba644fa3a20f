"""A search for loss strength, method and radius on validation data; the test split is never used.

Optuna's TPE proposes a run, `SharpTrainer` trains it, and successive halving ends it early if it falls behind. The
study is an SQLite file, so that the same command continues the search after an interruption.

`Trainer.hyperparameter_search` is not used: its trials change one set of training arguments in place, without checking
the options, and options of an earlier trial stay set.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_sharp.recipe.budget import read_budget
from hf_sharp.recipe.config_file import read_config
from hf_sharp.recipe.flags import check_names
from hf_sharp.recipe.kind import recipe_for
from hf_sharp.recipe.parser import RecipeParser
from hf_sharp.recipe.planned import INCIDENTAL
from hf_sharp.recipe.search import Search
from hf_sharp.recipe.search_space import SEARCHED, SearchSpace
from hf_sharp.recipe.training import prepare_training, train_classifier
from hf_sharp.recipe.tuned_config import to_train
from hf_sharp.recipe.tuning_run import Runner, read_options

logger = logging.getLogger(__name__)

STUDY = "study.db"
BACKENDS = ("local", "ray")


def tune(
    config: str | Path,
    budget: str = "20runs",
    *,
    output_dir: str | Path | None = None,
    search: Sequence[str] = SEARCHED,
    seed: int = 0,
    retrain: bool = False,
    backend: str = "local",
    cpus_per_run: int | None = None,
    flags: Sequence[str] = (),
) -> dict[str, Any]:
    """Choose loss strength, method and radius for a config, on validation data held out of the training split.

    Args:
        config: a YAML file of options, as for `hf-sharp train`.
        budget: a number of runs, as in "20runs", or a time, as in "2h". Runs of earlier calls count.
        output_dir: the folder of the search; a search in it is continued. Default: outputs/tune/CONFIG.
        search: the options to search: method, rho, loss_tau, learning_rate, focal_gamma, loss_gamma, loss_margin,
            head_init.
        seed: the seed of the search; the trainings use the config's seed.
        retrain: train the chosen config on all training examples, and report the test split.
        backend: "local" for one run after the other on this machine; "ray" for several at once on a Ray cluster.
        cpus_per_run: with ray, the CPU cores per run. Default: one if the run has a GPU, else all of a machine.
        flags: options that override the config, as on the command line.

    Returns:
        The content of `tuning.json`: `runs`, `best` (the number of a run), `options` (the chosen options), `said` (the
        result in words).

    Raises:
        ValueError: the options do not fit each other, the model or the data; or the folder has another search.
        ModuleNotFoundError: Optuna, or Ray for that backend, is not installed.
    """
    import optuna  # noqa: F401 (if it is missing, fail before the data is loaded)

    check_names([backend], BACKENDS, "backend")
    if cpus_per_run is not None and (backend == "local" or cpus_per_run < 1):
        raise ValueError(
            f"cpus_per_run must be the number of cores per run, at least 1, with backend ray; got {cpus_per_run}."
        )
    if backend == "ray":
        import ray.tune  # noqa: F401
    allowed = read_budget(budget)
    argv = ["--config", str(config), *flags]
    folder = Path(output_dir or f"outputs/tune/{Path(config).stem}")
    parser, recipe = read_options(argv)
    _check_final_training(parser)
    space = SearchSpace(parser.values, search)
    ready = prepare_training(parser, recipe, without=["test"])  # first, so that a mistake in the data leaves no folder
    going = Search(open_study(folder, parser, space, seed), space, Runner(parser, ready, folder), seed)
    if backend == "ray":
        from hf_sharp.recipe.on_ray import go_on_with_ray

        go_on_with_ray(going, allowed, argv, cpus_per_run)
    else:
        going.go_on(allowed)
    result = going.finish()
    if retrain:
        train_chosen(folder, argv)
    return result


def train_chosen(folder: Path, argv: Sequence[str]) -> None:
    """Train the config that a search chose on all training examples, and save the model in the search's folder.

    The training continues if it was interrupted. A model of another choice is replaced.

    Args:
        folder: the folder of the search.
        argv: the config and the flags of the search.

    Raises:
        ValueError: as for a training.
    """
    recipe = recipe_for(argv)
    values = recipe.parser(argv).values
    chosen, begun, model = folder / "best.yaml", folder / "retrained.yaml", folder / "model"
    same = begun.is_file() and read_config(str(begun)) == read_config(str(chosen))
    if model.exists() and (not same or values.get("overwrite_output_dir")):
        logger.warning("The model in %r is replaced.", str(model))
        shutil.rmtree(model)
    shutil.copy(chosen, begun)
    words = ["--config", str(chosen), "--output_dir", str(model), "--resume_from_checkpoint", "true"]
    if token := values.get("hub_token"):  # no file contains it
        words += ["--hub_token", token]
    train_classifier(words, recipe)


def _check_final_training(parser: RecipeParser) -> None:
    # Before the search: options that need what the final training leaves out.
    left_out = parser.values.keys() - to_train(parser.values).keys()
    try:
        parser.build(**dict.fromkeys(left_out))
    except ValueError as error:
        raise ValueError(
            f"the chosen config is to be trained on all training examples, without evaluations, but {error}. Change "
            "this option."
        ) from error


def open_study(folder: Path, parser: RecipeParser, space: SearchSpace, seed: int) -> Any:
    """Open the study in a folder, or create it.

    Args:
        folder: the folder of the search.
        parser: the options.
        space: the options to search.
        seed: the seed of the search.

    Returns:
        The study. A run that was interrupted is queued again with the same options.

    Raises:
        ValueError: the folder contains something else, or a search with other options.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    file = folder / STUDY
    if folder.exists() and not file.is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"the output folder {str(folder)!r} is not empty and has no search. Choose another one.")
    folder.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
    study = optuna.create_study(study_name="tune", direction="maximize", storage=storage, load_if_exists=True)
    values = {name: value for name, value in parser.values.items() if name not in INCIDENTAL and value is not None}
    settings = {"search": list(space.search), "seed": seed, "options": json.loads(json.dumps(values, default=str))}
    known = study.user_attrs.get("settings")
    if known is not None and known != settings:
        before, now = known["options"] | known, settings["options"] | settings
        differ = [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]
        shown = ", ".join(f"{n}: {before.get(n)!r} then, {now.get(n)!r} now" for n in sorted(differ) if n != "options")
        raise ValueError(
            f"the search in {str(folder)!r} had other options ({shown}). Choose another --output_dir, or delete it."
        )
    study.set_user_attr("settings", settings)
    for trial in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
        storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.WAITING)  # next in the queue again
    return study
