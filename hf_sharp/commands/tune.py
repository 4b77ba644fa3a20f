"""`hf-sharp tune`: choose loss strength, method and radius on validation data."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from hf_sharp.recipe.flags import Flags
from hf_sharp.recipe.search_space import EXTRA, SEARCHED
from hf_sharp.recipe.tune import BACKENDS, train_chosen, tune

_ABOUT = """Choose loss strength, method and radius for a config, on validation data held
out of the training split. The test split is not read. The same command goes
on after an interruption. Further flags override the config.

example: hf-sharp tune recipes/configs/quickstart.yaml --budget 20runs --retrain

--output_dir gets best.yaml (with a comment on each choice), sensitivity.png,
pareto.png, tuning.json and study.db.
exit status: 0 done; 1 an error; 130 interrupted"""


def _parser() -> Flags:
    parser = Flags(
        prog="hf-sharp tune",
        usage="hf-sharp tune CONFIG --budget 20runs|2h [options]",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", help="a YAML file of options, as for hf-sharp train")
    parser.add_argument(
        "--budget", required=True, help="a number of runs or a time: 20runs, 90m, 2h; earlier runs count"
    )
    parser.add_argument(
        "--search",
        nargs="+",
        default=list(SEARCHED),
        metavar="OPTION",
        help=f"what to search (default: {' '.join(SEARCHED)}); possible too: {', '.join(EXTRA)}",
    )
    parser.add_argument(
        "--output_dir", "--output", metavar="FOLDER", help="the folder of the search (default: outputs/tune/CONFIG)"
    )
    parser.add_argument("--search_seed", type=int, default=0, help="seed of the search (default: 0)")
    parser.add_argument(
        "--retrain",
        action="store_true",
        help="train the chosen config on all training examples, and report the test split",
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="local",
        help="local (default): one run after the other on this machine; ray: several at once, on a Ray cluster",
    )
    parser.add_argument(
        "--cpus_per_run",
        type=int,
        help="with ray: CPU cores per run (default: one if the run has a GPU, else all of a machine)",
    )
    return parser


def main(argv: list[str]) -> None:
    """Run the search, and show the result.

    Args:
        argv: the arguments after `hf-sharp tune`.

    Raises:
        ValueError: the options do not fit each other, the model or the data.
        SystemExit: with status 130, if the search was interrupted.
    """
    arguments, flags = _parser().parse_known_args(argv)
    folder = Path(arguments.output_dir or f"outputs/tune/{Path(arguments.config).stem}")
    result = tune(
        arguments.config,
        arguments.budget,
        output_dir=folder,
        search=arguments.search,
        seed=arguments.search_seed,
        backend=arguments.backend,
        cpus_per_run=arguments.cpus_per_run,
        flags=flags,
    )
    console = Console()
    console.print(escape(result["said"]), highlight=False)
    for file in ("best.yaml", "sensitivity.png", "pareto.png", "tuning.json"):
        console.print(f"{folder / file}", highlight=False, soft_wrap=True)
    if arguments.retrain:  # after the result is shown, so that an error does not lose it
        train_chosen(folder, ["--config", arguments.config, *flags])
        console.print(f"model    {folder / 'model'}", highlight=False, soft_wrap=True)
    else:
        console.print(
            f"train it: hf-sharp train {folder / 'best.yaml'} --output_dir ...", highlight=False, soft_wrap=True
        )
