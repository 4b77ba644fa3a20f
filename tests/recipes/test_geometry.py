"""The geometry recipe, at a small size."""

import json
import runpy
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "geometry.py"


def test_pictures_and_figures(tmp_path):
    main = runpy.run_path(str(RECIPE))["main"]
    argv = ["--output_dir", str(tmp_path), "--gammas", "-0.5", "0.5", "--ridges", "1e-1", "1e-4"]
    result = main([*argv, "--vit_gammas", "0", "--vit_steps", "3"])
    assert result == json.loads((tmp_path / "geometry.json").read_text())
    assert {(row["loss"], row["gamma"]) for row in result["ufm"]} == {
        (n, g) for n in ("cdt", "ldt") for g in (-0.5, 0.5)
    }
    for far, near in zip(result["ufm"][::2], result["ufm"][1::2], strict=True):
        assert all(a > b for a, b in zip(far["distances"], near["distances"], strict=True))
    assert len(result["vit"]) == 2
    assert result["vit"][0] == result["vit"][1], "with γ = 0 both are cross-entropy, trained once"
    assert sum(result["vit"][0]["class_counts"]) > 100
    for picture in ("geometry.png", "vit_cross_entropy.png"):
        assert (tmp_path / picture).stat().st_size > 20_000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--ratio 0", "--ratio must be an integer >= 1, got 0"),
        ("--ridges 0.1 0", "--ridges must be a finite number > 0, got 0.0"),
        ("--gammas nan", "--gammas must be a finite number, got nan"),
        ("--vit_gammas inf", "--vit_gammas must be a finite number, got inf"),
        ("--vit_steps 0", "--vit_steps must be an integer >= 1, got 0"),
        ("--seed -1", "--seed must be an integer >= 0"),
    ],
)
def test_numbers_are_checked_before_anything_is_trained(flags, message, tmp_path):
    main = runpy.run_path(str(RECIPE))["main"]
    with pytest.raises(ValueError, match=message):
        main(["--output_dir", str(tmp_path), *flags.split()])
