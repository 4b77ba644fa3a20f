"""`hf-sharp card`: write the model card of a trained model's folder."""

from __future__ import annotations

from pathlib import Path

from hf_sharp.recipe.boundary import stage
from hf_sharp.recipe.flags import Flags
from hf_sharp.reports.card_changes import check_same_model
from hf_sharp.reports.model_card import config_of, write_card
from hf_sharp.reports.results import read_results


def main(argv: list[str]) -> None:
    """Write the card and print its path.

    Args:
        argv: the arguments after `hf-sharp card`.

    Raises:
        ValueError: the folder has no results, or its model was changed after they were written; or the Hub does not
            accept the language.
    """
    parser = Flags(
        prog="hf-sharp card",
        usage="hf-sharp card FOLDER [options]",
        description="Write README.md for a model's folder; all figures come from its all_results.json.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="the folder with config.json and all_results.json")
    parser.add_argument("--licence", "--license", help="a licence identifier of the Hub, such as apache-2.0")
    parser.add_argument("--language", nargs="+", help="ISO 639 codes, such as en")
    parser.add_argument("--tags", nargs="+", default=[], help="more tags")
    parser.add_argument("--repo_id", help="the name on the Hub, as user/name")
    arguments = parser.read(argv)
    with stage(f"no card can be written for {arguments.folder!r}"):
        results = read_results(arguments.folder)
        check_same_model(config_of(Path(arguments.folder)), results)
        card = write_card(
            arguments.folder,
            results,
            licence=arguments.licence,
            language=arguments.language,
            tags=arguments.tags,
            **({"repo_id": arguments.repo_id} if arguments.repo_id else {}),
        )
    print(card)
