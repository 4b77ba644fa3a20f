"""Adapters in the recipes: what is trained, what is saved, and what is refused."""

import json
import sys

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageClassification,
    BertForMaskedLM,
    CLIPConfig,
    CLIPForImageClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    pipeline,
)

from hf_sharp import SharpTrainingArguments, cli
from hf_sharp.recipe import train_images, train_texts
from hf_sharp.recipe.adapters import AdapterArguments, add_adapters, head_modules
from tests.conftest import make_bert, make_vit
from tests.recipes.conftest import QUICK

TINY_CLIP = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def arguments(tmp_path, **options):
    return SharpTrainingArguments(str(tmp_path / "out"), use_cpu=True, **options)


def images(image_folder, vit_folder, tmp_path, *flags):
    argv = ["--dataset", image_folder, "--model_name_or_path", vit_folder, "--output_dir", str(tmp_path / "out")]
    return train_images([*argv, *QUICK, "--learning_rate", "1e-2", *flags])


@pytest.mark.parametrize("method", ["none", "sam", "focal_sam", "imbsam", "cc_sam"])
def test_a_merged_adapter_opens_in_a_pipeline(method, image_folder, vit_folder, tmp_path):
    flags = ["--peft", "lora", "--peft_rank", "2", "--sharpness", method, "--max_steps", "3"]
    (results,) = images(image_folder, vit_folder, tmp_path, *flags).values()
    assert results["adapter"] | {"trained_parameters": 0} == {
        "type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "trained_parameters": 0,
        "merged": True,
    }
    assert results["model"]["library"] == "transformers"
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert "merged into the saved weights" in (tmp_path / "out" / "README.md").read_text()
    classify = pipeline("image-classification", str(tmp_path / "out"))
    assert {score["label"] for score in classify(f"{image_folder}/test/cat/0.png")} == {"cat", "dog", "emu"}
    before = AutoModelForImageClassification.from_pretrained(vit_folder).state_dict()
    after = AutoModelForImageClassification.from_pretrained(str(tmp_path / "out")).state_dict()
    changed = {
        name for name in before if before[name].shape != after[name].shape or not before[name].equal(after[name])
    }
    assert "classifier.weight" in changed
    assert any(name.endswith(("q_proj.weight", "query.weight")) for name in changed)
    assert not any("layernorm" in name or "embeddings" in name for name in changed)


def test_an_adapter_is_saved_alone_if_asked_to(image_folder, vit_folder, tmp_path):
    (results,) = images(image_folder, vit_folder, tmp_path, "--peft", "lora", "--peft_merge", "false").values()
    assert results["adapter"]["merged"] is False
    assert results["model"]["library"] == "peft"
    assert (tmp_path / "out" / "adapter_config.json").exists()
    assert "saved without the model" in (tmp_path / "out" / "README.md").read_text()


def test_the_commands_open_an_adapter_and_save_a_merged_model(image_folder, vit_folder, tmp_path):
    flags = ["--peft", "lora", "--peft_merge", "false", "--validation_fraction", "0.3"]
    (results,) = images(image_folder, vit_folder, tmp_path, *flags).values()
    out = str(tmp_path / "out")
    assert cli.main(["evaluate", out, "--output_dir", str(tmp_path / "report")]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    for figure in ("per_class_recall", "per_class_predicted"):
        assert report[figure] == results["report"][figure], "it is the trained model"
    assert cli.main(["adjust", out, "--strength", "1", "--output_dir", str(tmp_path / "fair")]) == 0
    assert cli.main(["calibrate", str(tmp_path / "fair"), "--output_dir", str(tmp_path / "sure")]) == 0
    for name in ("fair", "sure"):
        folder = tmp_path / name
        assert not (folder / "adapter_config.json").exists()
        pipe = pipeline("image-classification", str(folder))
        assert {score["label"] for score in pipe(f"{image_folder}/test/cat/0.png")} == {"cat", "dog", "emu"}
        card = ModelCard.load(folder / "README.md")
        assert card.data.library_name == "transformers"
        assert "merged into the saved weights" in card.text
        assert "PeftModel" not in card.text
    assert cli.main(["calibrate", out, "--output_dir", str(tmp_path / "calibrated")]) == 0


def test_an_adapter_of_texts_says_its_task_and_classes(text_folder, bert_folder, tmp_path):
    BertForMaskedLM(make_bert().config).save_pretrained(bert_folder)
    argv = ["--dataset", str(text_folder / "csv"), "--model_name_or_path", bert_folder, *QUICK]
    train_texts([*argv, "--peft", "lora", "--peft_merge", "false", "--output_dir", str(tmp_path / "out")])
    words = ["adjust", str(tmp_path / "out"), "--cost", '{"gamma": 5}', "--output_dir", str(tmp_path / "costly")]
    assert cli.main(words) == 0
    assert pipeline("text-classification", str(tmp_path / "costly"))("w1 w2")[0]["label"] in ("alpha", "beta", "gamma")


def test_an_adapter_that_cannot_be_merged_is_saved_alone_and_opens_again(image_folder, vit_folder, tmp_path, caplog):
    flags = ["--peft", '{"type": "lily", "r": 2}', "--validation_fraction", "0.3"]
    (results,) = images(image_folder, vit_folder, tmp_path, *flags).values()
    assert "The adapters cannot be merged, and are saved alone" in caplog.text
    assert results["adapter"]["merged"] is False
    assert results["model"]["library"] == "peft"
    out = tmp_path / "out"
    assert (out / "adapter_config.json").exists()
    assert "saved without the model" in (out / "README.md").read_text()
    base = AutoModelForImageClassification.from_pretrained(vit_folder, num_labels=3, ignore_mismatched_sizes=True)
    reopened = peft.get_peft_model_state_dict(peft.PeftModel.from_pretrained(base, str(out)))
    written = load_file(out / "adapter_model.safetensors")
    assert written.keys() == reopened.keys()
    assert any("lily" in name for name in written)
    assert all(weight.equal(reopened[name]) for name, weight in written.items())
    assert "an adapter of a type that PEFT cannot merge into the base model" in cli.main(["evaluate", str(out)])


@pytest.mark.parametrize(("kind", "trained"), [("ln_tuning", "norm"), ("ia3", "ia3_l")])
@pytest.mark.parametrize("make", [make_vit, make_bert])
def test_other_types_find_their_layers_and_merge(kind, trained, make, tmp_path):
    model = add_adapters(make(), 4, AdapterArguments(peft=kind), arguments(tmp_path))
    heads = ("classifier", "pooler")
    names = {name for name, weight in model.named_parameters() if weight.requires_grad}
    own = {name for name in names if not any(head in name for head in heads)}
    assert own
    assert all(trained in name.lower() for name in own)
    assert type(model.merge_and_unload()) is type(make())


def test_an_adapter_without_its_base_model_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": null}')
    said = cli.main(["predict", str(tmp_path), "new.txt", "--output_dir", str(tmp_path / "out")])
    assert "is an adapter that names no base model" in said
    assert "Train again with --peft_merge true" in said


def test_cosine_head_class_means_and_lora_together(image_folder, vit_folder, tmp_path):
    flags = ["--peft", "lora", "--cosine_head", "true", "--head_init", "class_mean", "--max_steps", "20"]
    (results,) = images(image_folder, vit_folder, tmp_path, *flags, "--loss", "logit_adjusted").values()
    saved = AutoModelForImageClassification.from_pretrained(str(tmp_path / "out"))
    lengths = saved.classifier.weight.norm(dim=1)
    torch.testing.assert_close(lengths, torch.full((3,), 25 / 16**0.5), rtol=1e-4, atol=1e-4)
    assert saved.vit.layernorm.weight.eq(1).all()
    classify = pipeline("image-classification", str(tmp_path / "out"))
    names = [
        classify(f"{image_folder}/test/{name}/{i}.png")[0]["label"] for name in ("cat", "dog", "emu") for i in range(3)
    ]
    correct = [got == name for got, name in zip(names, ["cat"] * 3 + ["dog"] * 3 + ["emu"] * 3, strict=True)]
    assert sum(correct) / 9 == pytest.approx(results["report"]["accuracy"])


def test_ldam_sets_the_scale_of_the_head_that_is_trained(image_folder, vit_folder, tmp_path):
    flags = ["--peft", "lora", "--cosine_head", "true", "--loss", "ldam", "--loss_scale", "20"]
    images(image_folder, vit_folder, tmp_path, *flags)
    saved = AutoModelForImageClassification.from_pretrained(str(tmp_path / "out"))
    torch.testing.assert_close(
        saved.classifier.weight.norm(dim=1), torch.full((3,), 20 / 16**0.5), rtol=1e-4, atol=1e-4
    )


def test_a_mapping_names_another_type_and_a_run_resumes(text_folder, bert_folder, tmp_path):
    config = tmp_path / "peft.yaml"
    config.write_text("peft: {type: ia3, feedforward_modules: []}\npeft_targets: [query, value]\n")
    argv = ["--config", str(config), "--dataset", str(text_folder / "csv"), "--model_name_or_path", bert_folder, *QUICK]
    argv += ["--save_strategy", "steps", "--save_steps", "1", "--output_dir", str(tmp_path / "out")]
    (whole,) = train_texts(argv).values()
    assert whole["adapter"]["type"] == "IA3"
    (tmp_path / "out" / "all_results.json").unlink()
    for file in (tmp_path / "out" / "checkpoint-2").iterdir():
        file.unlink()
    (tmp_path / "out" / "checkpoint-2").rmdir()
    (resumed,) = train_texts([*argv, "--resume_from_checkpoint", "true"]).values()
    assert resumed["report"] == whole["report"]
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"] == 2


def test_the_head_and_its_pooler_are_trained_whole():
    clip = CLIPForImageClassification(
        CLIPConfig(text_config=TINY_CLIP, vision_config=TINY_CLIP | {"image_size": 8, "patch_size": 4})
    )
    roberta = RobertaForSequenceClassification(RobertaConfig(vocab_size=20, **TINY_CLIP))
    assert head_modules(make_vit()) == ["classifier"]
    assert head_modules(make_bert()) == ["classifier", "bert.pooler.dense"]
    assert head_modules(clip) == ["classifier"]
    assert head_modules(roberta) == ["classifier.dense", "classifier.out_proj"]


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"pip install 'hf-sharp\[peft\]'"):
        add_adapters(make_vit(), 4, AdapterArguments(peft="lora"), arguments(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peft_rank": 4}, "peft_rank has no effect without peft"),
        ({"peft_merge": False}, "peft_merge has no effect without peft"),
        ({"peft": "lora", "peft_rank": 0}, "peft_rank must be an integer > 0"),
        ({"peft": "{rank: 4}"}, "peft is neither JSON"),
        ({"peft": {"r": 4}}, "peft needs a type, such as lora; it has 'r'"),
        ({"peft": "ia3", "peft_rank": 4}, "peft_rank is an option of lora"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        AdapterArguments(**options)


@pytest.mark.parametrize(
    ("options", "training", "message"),
    [
        ({"peft": "lorra"}, {}, "unknown type of peft 'lorra'; PEFT has .*lora"),
        ({"peft": "prompt_tuning"}, {}, "adapts no layers"),
        ({"peft": {"type": "lora", "ranks": 2}}, {}, "'ranks' is not an option of 'lora'"),
        ({"peft": "lora", "peft_targets": ["nowhere"]}, {}, "cannot be added to ViTForImageClassification"),
        ({"peft": "lora", "peft_merge": False}, {"cosine_head": True}, "Leave peft_merge on, or cosine_head off"),
    ],
)
def test_adapters_that_cannot_be_added(options, training, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        add_adapters(make_vit(), 4, AdapterArguments(**options), arguments(tmp_path, **training))
