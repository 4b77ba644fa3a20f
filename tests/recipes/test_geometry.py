"""The geometry recipe, at a small size."""

import json
import runpy
from pathlib import Path

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
