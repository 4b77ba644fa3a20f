"""The few-shot recipe, in small: trained, fused, chosen, evaluated, and nothing of it twice."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hf_sharp import SharpTrainer
from hf_sharp.few_shot import FewShotResult, compare, load_backbone

RECIPE = Path(__file__).parents[2] / "recipes" / "few_shot.py"
SMALL = ["--image_size", "8", "--hidden_size", "16", "--layers", "1", "--heads", "2", "--batch_size", "8", "--use_cpu"]
SMALL += ["--train_steps", "3", "--fuse_steps", "2", "--episodes", "4", "--examples_per_class", "10"]
SMALL += ["--parc_examples", "40", "--adaptations", "prototype", "affine"]


@pytest.fixture
def main():
    return runpy.run_path(str(RECIPE))["main"]


@pytest.fixture
def folders(tmp_path):
    """Two folders of images, of six classes each."""
    rng = np.random.default_rng(0)
    for name in ("squares", "stripes"):
        for label in range(6):
            folder = tmp_path / name / "train" / f"{label}"
            folder.mkdir(parents=True)
            for i in range(10):
                pixels = rng.integers(0, 60, (8, 8, 3), np.uint8)
                pixels[label : label + 2, slice(label) if name == "squares" else slice(None)] += 150
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return [str(tmp_path / name) for name in ("squares", "stripes")]


def test_seen_and_unseen_tables_pictures_and_resuming(main, folders, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    argv = ["--output_dir", str(out), "--domains", "digits", *folders, *SMALL]
    found = main(argv)
    domains = ["digits", "squares", "stripes"]
    assert json.loads((out / "few_shot.json").read_text()) == found
    assert found["licences"]["digits"] == "CC BY 4.0"
    backbones = [f"{s}/{name}" for s in ("none", "sam") for name in (*domains, "joint")]
    backbones += [f"{s}/joint_without_{name}" for s in ("none", "sam") for name in domains]
    for adaptation in ("prototype", "affine"):
        shown = found["adaptations"][adaptation]
        assert shown["backbones"].keys() == set(backbones)
        for which in ("seen", "unseen"):
            assert list(shown[which]) == ["none", "none + joint fusion", "sam", "sam + joint fusion"]
            assert all(set(row) == {*domains, "average"} for row in shown[which].values())
            pairs = shown[f"{which}_differences"]
            assert set(pairs) == {
                "none + joint fusion against none",
                "sam against none",
                "sam + joint fusion against none",
                "sam + joint fusion against sam",
                "sam + joint fusion against none + joint fusion",
            }
            assert (out / f"{adaptation}_{which}.png").stat().st_size > 10_000

        def saved(backbone, domain, adaptation=adaptation):
            return FewShotResult.from_dict(
                json.loads((out / "results" / backbone / f"{domain}-{adaptation}.json").read_text())
            )

        for domain in domains:
            # Seen: the domain's own backbone. Unseen: one that never saw it, fused, or chosen among the others'.
            assert shown["seen"]["sam"][domain]["accuracy"] == saved(f"sam/{domain}", domain).accuracy
            fused = saved(f"sam/joint_without_{domain}", domain)
            assert shown["unseen"]["sam + joint fusion"][domain]["accuracy"] == fused.accuracy
            chosen = found["chosen_by_parc"]["sam"][domain]
            assert set(chosen["scores"]) == {f"sam/{other}" for other in domains if other != domain}
            assert chosen["name"] == max(chosen["scores"], key=chosen["scores"].get)
            assert shown["unseen"]["sam"][domain]["accuracy"] == saved(chosen["name"], domain).accuracy
            assert len({saved(backbone, domain).episodes for backbone in backbones}) == 1, "the same episodes for all"
            paired = compare(saved(f"sam/{domain}", domain), saved(f"none/{domain}", domain))
            assert shown["seen_differences"]["sam against none"][domain] == paired._asdict()
    stage = json.loads((out / "backbones" / "sam" / "joint_without_digits" / "stage.json").read_text())["options"]
    assert "digits" not in [*stage["domains"], stage["source"]]
    assert {*stage["domains"], stage["source"]} == {"squares", "stripes"}
    model = load_backbone(out / "backbones" / "sam" / "joint")
    assert not model.pooler_is_trained
    assert model.processor is not None
    assert "unseen domains, 4 episodes each" in capsys.readouterr().out

    # Whatever exists is not made again: only what was lost.
    monkeypatch.setattr(SharpTrainer, "train", lambda self: pytest.fail("trained again"))
    lost = out / "results" / "none" / "digits" / "squares-affine.json"
    kept = lost.with_name("squares-prototype.json").stat().st_mtime_ns
    lost.unlink()
    again = main(argv)
    assert lost.exists()
    assert lost.with_name("squares-prototype.json").stat().st_mtime_ns == kept
    assert again == found, "the same episodes of the same backbones"
    with pytest.raises(ValueError, match="steps: 3 then, 5 now"):
        main([*argv, "--train_steps", "5"])
    with pytest.raises(ValueError, match="episodes: 4 then, 5 now"):
        main([*argv, "--episodes", "5"])


def test_one_domain_has_no_unseen_and_no_fusion(main, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setenv("HF_SHARP_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    argv = ["--output_dir", str(tmp_path / "out"), "--domains", "digits", "emoji", "--sharpness", "sam", *SMALL]
    found = main(argv)
    assert "skipping emoji: the emoji are not in" in caplog.text
    shown = found["adaptations"]["prototype"]
    assert list(shown["backbones"]) == ["sam/digits"]
    assert "unseen" not in shown
    assert shown["seen"]["sam"]["digits"]["accuracy"] > 0


def test_fusion_with_adapters_leaves_a_backbone_like_the_others(main, folders, tmp_path):
    pytest.importorskip("peft")
    argv = ["--output_dir", str(tmp_path / "out"), "--domains", *folders, "--sharpness", "none", *SMALL]
    main([*argv, "--adaptations", "prototype", "--fuse_lora_rank", "2", "--fuse_learning_rate", "0.01"])
    backbones = tmp_path / "out" / "backbones" / "none"
    stage = json.loads((backbones / "joint" / "stage.json").read_text())["options"]
    assert stage["lora_rank"] == 2
    fused, source = (load_file(backbones / name / "model.safetensors") for name in ("joint", stage["source"]))
    assert fused.keys() == source.keys(), "merged"
    moved = {name for name in source if name in fused and not torch.equal(fused[name], source[name])}
    assert all("classifier" in name or fused[name].ndim == 2 for name in moved), "norms, biases and the rest are frozen"
    assert len([name for name in moved if "attention" in name]) == 4
    for name in moved:
        if "classifier" not in name:
            assert torch.linalg.matrix_rank(fused[name] - source[name], rtol=1e-3) <= 2
    with pytest.raises(ValueError, match="lora_rank: 2 then, None now"):
        main([*argv, "--adaptations", "prototype", "--fuse_learning_rate", "0.01"])


def test_what_cannot_be_run_is_refused(main, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_SHARP_CACHE", str(tmp_path))
    out = ["--output_dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="unknown adaptation 'magic'"):
        main([*out, "--adaptations", "magic"])
    with pytest.raises(ValueError, match="none of the domains emoji is installed"):
        main([*out, "--domains", "emoji"])
    with pytest.raises(ValueError, match="two domains are called 'digits'"):
        main([*out, "--domains", "digits", "digits"])
