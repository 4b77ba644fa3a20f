"""The few-shot recipe on tiny data: training, fusion, the choice of backbones, evaluation and resuming."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import ViTImageProcessor

from hf_sharp import SharpTrainer
from hf_sharp.few_shot import FewShotResult, compare, load_backbone
from hf_sharp.few_shot.arguments import _LIMITS, FewShotArguments
from tests.conftest import make_vit

RECIPE = Path(__file__).parents[2] / "recipes" / "few_shot.py"
SMALL = ["--image_size", "8", "--hidden_size", "16", "--layers", "1", "--heads", "2", "--batch_size", "8", "--use_cpu"]
SMALL += ["--train_steps", "3", "--fuse_steps", "2", "--episodes", "4", "--examples_per_class", "10"]
SMALL += ["--parc_examples", "40", "--adaptations", "prototype", "affine"]
SMALL += ["--validation_fraction", "0.3", "--validation_episodes", "5", "--validations", "2"]


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


def saved_result(out, backbone, domain, adaptation):
    return FewShotResult.from_dict(json.loads((out / "results" / backbone / f"{domain}-{adaptation}.json").read_text()))


def saved_stage(out, backbone):
    return json.loads((out / "backbones" / backbone / "stage.json").read_text())


def test_seen_and_unseen_tables_pictures_and_resuming(main, folders, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    argv = ["--output_dir", str(out), "--domains", "digits", *folders, *SMALL]
    figures = main(argv)
    domains = ["digits", "squares", "stripes"]
    assert json.loads((out / "few_shot.json").read_text()) == figures
    assert figures["licences"]["digits"] == "CC BY 4.0"
    tuned = ["squares_from_digits", "stripes_from_digits", "stripes_from_squares"]
    backbones = [f"{method}/{name}" for method in ("none", "sam") for name in (*domains, *tuned)]
    for adaptation in ("prototype", "affine"):
        shown = figures["adaptations"][adaptation]
        assert shown["backbones"].keys() == set(backbones)
        for which in ("seen", "unseen"):
            assert list(shown[which]) == ["none", "none + per-domain fusion", "sam", "sam + per-domain fusion"]
            assert all(set(row) == {*domains, "average"} for row in shown[which].values())
            assert set(shown[f"{which}_differences"]) == {
                "none + per-domain fusion against none",
                "sam against none",
                "sam + per-domain fusion against none",
                "sam + per-domain fusion against sam",
                "sam + per-domain fusion against none + per-domain fusion",
            }
            assert (out / f"{adaptation}_{which}.png").stat().st_size > 10_000
        for domain in domains:
            # Seen: the domain's own backbone, without and with fusion.
            own = saved_result(out, f"sam/{domain}", domain, adaptation)
            assert shown["seen"]["sam"][domain]["accuracy"] == own.accuracy
            fused = "digits" if domain == "digits" else f"{domain}_from_digits"
            expected = saved_result(out, f"sam/{fused}", domain, adaptation).accuracy
            assert shown["seen"]["sam + per-domain fusion"][domain]["accuracy"] == expected
            assert len({saved_result(out, name, domain, adaptation).episodes for name in backbones}) == 1
            paired = compare(own, saved_result(out, f"none/{domain}", domain, adaptation))
            assert shown["seen_differences"]["sam against none"][domain] == paired._asdict()
            # Unseen: for each episode the candidate with the best PARC score.
            for row, candidates in {
                "sam": [f"sam/{name}" for name in domains if name != domain],
                "sam + per-domain fusion": {
                    "digits": ["sam/squares", "sam/stripes_from_squares"],
                    "squares": ["sam/digits", "sam/stripes_from_digits"],
                    "stripes": ["sam/digits", "sam/squares_from_digits"],
                }[domain],
            }.items():
                scores = {
                    name: json.loads((out / "results" / name / f"{domain}-parc.json").read_text())["scores"]
                    for name in candidates
                }
                accuracies = {name: saved_result(out, name, domain, adaptation).accuracies for name in candidates}
                best = [max(candidates, key=lambda name: scores[name][i] or -1e9) for i in range(4)]
                chosen = np.mean([accuracies[name][i] for i, name in enumerate(best)])
                assert shown["unseen"][row][domain]["accuracy"] == pytest.approx(chosen)
                shares = figures["chosen_by_parc"][row][domain]["shares"]
                assert shares == {name: best.count(name) / 4 for name in candidates}
    stage = saved_stage(out, "sam/stripes_from_squares")["options"]
    assert (stage["domains"], stage["source"], stage["sharpness"]) == (["stripes"], "squares", "none")
    model = load_backbone(out / "backbones" / "sam" / "stripes_from_squares")
    assert not model.pooler_is_trained
    assert model.processor is not None
    assert "unseen domains, 4 episodes each" in capsys.readouterr().out

    # Finished stages are reused; only the missing one runs.
    monkeypatch.setattr(SharpTrainer, "train", lambda self: pytest.fail("trained again"))
    lost = [out / "results" / "none" / "digits" / f"squares-{what}.json" for what in ("affine", "parc")]
    kept = lost[0].with_name("squares-prototype.json").stat().st_mtime_ns
    for file in lost:
        file.unlink()
    assert main(argv) == figures, "the same episodes of the same backbones"
    assert all(file.exists() for file in lost)
    assert lost[0].with_name("squares-prototype.json").stat().st_mtime_ns == kept
    with pytest.raises(ValueError, match="steps: 3 then, 5 now"):
        main([*argv, "--train_steps", "5"])
    with pytest.raises(ValueError, match="episodes: 4 then, 5 now"):
        main([*argv, "--episodes", "5"])
    with pytest.raises(ValueError, match="components: None then, 32 now"):
        main([*argv, "--parc_components", "32"])


def test_both_fusions_and_one_probe_set_per_domain(main, folders, tmp_path):
    out = tmp_path / "out"
    argv = ["--output_dir", str(out), "--domains", "digits", *folders, *SMALL, "--sharpness", "none"]
    argv += ["--adaptations", "prototype", "--fusion", "per_domain", "joint", "--parc_on", "domain"]
    figures = main([*argv, "--parc_components", "32", "--parc_examples", "20"])
    shown = figures["adaptations"]["prototype"]
    for which in ("seen", "unseen"):
        assert list(shown[which]) == ["none", "none + per-domain fusion", "none + joint fusion"]
    assert "none + joint fusion against none + per-domain fusion" in shown["unseen_differences"]
    for domain in ("digits", "squares", "stripes"):
        expected = saved_result(out, "none/joint", domain, "prototype").accuracy
        assert shown["seen"]["none + joint fusion"][domain]["accuracy"] == expected
        without = saved_result(out, f"none/joint_without_{domain}", domain, "prototype").accuracy
        assert shown["unseen"]["none + joint fusion"][domain]["accuracy"] == without
        choice = figures["chosen_by_parc"]["none"][domain]
        best = max(choice["scores"], key=choice["scores"].get)
        assert choice["shares"] == {name: float(name == best) for name in choice["scores"]}, "one for all episodes"
    stage = saved_stage(out, "none/joint_without_digits")["options"]
    assert {*stage["domains"], stage["source"]} == {"squares", "stripes"}
    assert saved_stage(out, "none/joint")["options"]["domains"] == ["squares", "stripes"], "without the source"


def test_seen_domains_have_the_lower_rates(main, folders, tmp_path):
    out = tmp_path / "out"
    main(["--output_dir", str(out), "--domains", "digits", *folders, *SMALL, "--sharpness", "none"])
    for backbone, seen in {"digits": ["digits"], "stripes_from_squares": ["squares", "stripes"]}.items():
        for domain in ("digits", "squares", "stripes"):
            saved = json.loads((out / "results" / "none" / backbone / f"{domain}-affine.json").read_text())
            assert saved["options"]["learning_rate"] == (0.1 if domain in seen else 1.0)


def test_validation_episodes_choose_the_checkpoint(main, folders, tmp_path):
    argv = ["--domains", *folders, *SMALL, "--sharpness", "none", "--adaptations", "prototype", "--train_steps", "6"]
    main(["--output_dir", str(tmp_path / "chosen"), *argv, "--validations", "3", "--learning_rate", "0.02"])
    stage = saved_stage(tmp_path / "chosen", "none/squares")
    assert list(stage["validation_accuracies"]) == ["2", "4", "6"]
    best = max(stage["validation_accuracies"].values())
    assert stage["validation_accuracies"][str(stage["saved_step"])] == best
    main(["--output_dir", str(tmp_path / "last"), *argv, "--validation_fraction", "0"])
    assert "saved_step" not in saved_stage(tmp_path / "last", "none/squares")
    with pytest.raises(ValueError, match=r"squares: too little data for validation.*Raise --validation_fraction"):
        main(["--output_dir", str(tmp_path / "little"), *argv, "--validation_fraction", "0.1"])


def test_pretrained_models_and_radii_by_domain(main, folders, tmp_path):
    source = tmp_path / "pretrained"
    make_vit(num_labels=2, num_channels=3).save_pretrained(source)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(source)
    argv = ["--domains", *folders, *SMALL, "--fusion", "per_domain", "--adaptations", "prototype"]
    out = tmp_path / "as_it_is"
    main(["--output_dir", str(out), *argv, "--sharpness", "sam", "--train_steps", "0", "--pretrained", str(source)])
    ours, given = (load_file(folder / "model.safetensors") for folder in (out / "backbones/sam/squares", source))
    assert all(torch.equal(ours[name], given[name]) for name in given if name.startswith("vit."))
    assert saved_stage(out, "sam/stripes_from_squares")["options"]["pretrained"] is None, "from the stage's source"

    out = tmp_path / "trained"
    flags = ["--pretrained", f"squares={source}", "--rho", "0.2", "stripes=0.1", "focal_sam/stripes=0.7"]
    main(["--output_dir", str(out), *argv, "--sharpness", "sam", "focal_sam", "--fuse_steps", "0", *flags])
    options = {name: saved_stage(out, name)["options"] for name in ("sam/squares", "sam/stripes", "focal_sam/stripes")}
    assert {name: o["rho"] for name, o in options.items()} == {
        "sam/squares": 0.2,
        "sam/stripes": 0.1,
        "focal_sam/stripes": 0.7,
    }
    assert (options["sam/squares"]["pretrained"], options["sam/stripes"]["pretrained"]) == (str(source), None)
    ours = load_file(out / "backbones/sam/squares/model.safetensors")
    assert ours["vit.embeddings.cls_token"].shape == given["vit.embeddings.cls_token"].shape
    assert not torch.equal(ours["vit.embeddings.cls_token"], given["vit.embeddings.cls_token"]), "it was trained"
    assert torch.allclose(ours["vit.embeddings.cls_token"], given["vit.embeddings.cls_token"], atol=0.02), "a little"


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
    assert saved_stage(tmp_path / "out", "none/stripes_from_squares")["options"]["lora_rank"] == 2
    names = ("stripes_from_squares", "squares")
    fused, source = (load_file(backbones / name / "model.safetensors") for name in names)
    assert fused.keys() == source.keys(), "merged"
    moved = {name for name in source if not torch.equal(fused[name], source[name])}
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
    with pytest.raises(ValueError, match="unknown fusion 'all'; expected one of per_domain, joint"):
        main([*out, "--domains", "digits", "--fusion", "all"])
    with pytest.raises(ValueError, match="source='emoji' is not one of the domains: digits"):
        main([*out, "--domains", "digits", "--source", "emoji"])
    with pytest.raises(ValueError, match="unknown parc_on 'class'"):
        main([*out, "--parc_on", "class"])
    with pytest.raises(ValueError, match=r"PARC has no score for 1-shot episodes\. Add --parc_on domain"):
        main([*out, "--shots", "1"])
    with pytest.raises(ValueError, match="train_steps=0 needs pretrained models"):
        main([*out, "--train_steps", "0"])
    with pytest.raises(ValueError, match=r"--pretrained has no model for none/digits"):
        main([*out, "--domains", "digits", "--train_steps", "0", "--pretrained", "sam/digits=somewhere"])
    with pytest.raises(ValueError, match=r"--rho digit=0\.1: 'digit' is not one of digits, none/digits, sam/digits"):
        main([*out, "--domains", "digits", "--rho", "digit=0.1"])
    with pytest.raises(ValueError, match="--rho has two values for everything"):
        main([*out, "--domains", "digits", "--rho", "0.1", "0.2"])
    with pytest.raises(ValueError, match="unknown sharpness 'sharp'"):
        main([*out, "--domains", "digits", "--sharpness", "none", "sharp"])
    for flags, message in [
        ("--validations 0", "--validations must be an integer >= 1, got 0"),
        ("--episodes 0", "--episodes must be an integer >= 1, got 0"),
        ("--rho big", "--rho big: the radius must be a finite number >= 0, got 'big'"),
        ("--rho digits=-1", "--rho digits=-1: the radius must be a finite number >= 0, got -1"),
        ("--ways 1", "--ways must be an integer >= 2, got 1"),
        ("--shots 0", "--shots must be an integer >= 1, got 0"),
        ("--held_out 1", "--held_out must be a number > 0 and < 1, got 1"),
        ("--validation_fraction 20", "--validation_fraction must be a number >= 0 and < 1, got 20.0. For 20 % write"),
        ("--learning_rate nan", "--learning_rate must be a finite number >= 0, got nan"),
        ("--parc_examples 1", "--parc_examples must be an integer >= 2, got 1"),
        ("--seed -1", "--seed must be an integer >= 0 and < 4294967296, got -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            main([*out, "--domains", "digits", *flags.split()])
    (tmp_path / "texts.csv").write_text("text,label\n" + "so,good\nso so,bad\n" * 9)
    with pytest.raises(ValueError, match=r"texts.csv' holds texts, and this recipe trains backbones on images\. Eval"):
        main([*out, "--domains", str(tmp_path / "texts.csv"), "--validation_fraction", "0"])
    assert not (tmp_path / "out" / "backbones").exists(), "refused before any training"


def test_every_number_is_checked():
    values = vars(FewShotArguments())
    numbers = {name for name, value in values.items() if isinstance(value, (int, float)) and type(value) is not bool}
    assert numbers | {"ways", "shots"} == _LIMITS.keys()
