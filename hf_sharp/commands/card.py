"""`hf-sharp card`: the model card of a folder that a recipe trained."""

from __future__ import annotations

import argparse

from hf_sharp.reports.model_card import write_card


def main(argv: list[str]) -> None:
    """Write the card, and say where.

    Args:
        argv: the words after `hf-sharp card`.

    Raises:
        ValueError: the folder has no results, or a language that the Hub does not take.
    """
    parser = argparse.ArgumentParser(
        prog="hf-sharp card",
        description="Write README.md of a model's folder from its all_results.json, where every figure comes from.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", help="has config.json and all_results.json")
    parser.add_argument("--licence", "--license", help="an identifier of the Hub's, such as apache-2.0")
    parser.add_argument("--language", nargs="+", help="ISO 639 codes, such as en")
    parser.add_argument("--tags", nargs="+", default=[], help="more tags")
    parser.add_argument("--repo_id", help="what `pipeline` opens, as user/name")
    arguments = parser.parse_args(argv)
    card = write_card(
        arguments.folder,
        licence=arguments.licence,
        language=arguments.language,
        tags=arguments.tags,
        **({"repo_id": arguments.repo_id} if arguments.repo_id else {}),
    )
    print(card)
