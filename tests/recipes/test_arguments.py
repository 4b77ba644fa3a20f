import datasets
import pytest
from transformers import BertConfig

from hf_sharp import SharpTrainingArguments
from hf_sharp.recipe import DataArguments, ModelArguments, RecipeParser, RunArguments, load_splits, plan_runs

CLASSES = (DataArguments, ModelArguments, RunArguments, SharpTrainingArguments)
MODEL = ["--model_name_or_path", "m"]


@pytest.fixture
def config(tmp_path):
    def write(text):
        file = tmp_path / "config.yaml"
        file.write_text(text)
        return ["--config", str(file)]

    return write


def test_config_gives_defaults_and_flags_override_them(config):
    argv = config(
        "model_name_or_path: m\nsharpness: sam\nrho: 0.3\nlearning_rate: 1e-3\nadaptive: true\nuse_cpu: true\n"
    )
    data, model, _, args = RecipeParser(CLASSES, [*argv, "--rho", "0.7"]).build()
    assert (args.rho, args.learning_rate, args.adaptive) == (0.7, 1e-3, True)
    assert (model.model_name_or_path, data.dataset) == ("m", "digits")


def test_a_flag_at_its_default_overrides_the_config(config):
    argv = [*config("model_name_or_path: m\nsharpness: sam\nrho: 0.3\nuse_cpu: true\n"), "--rho", "0.05"]
    assert RecipeParser(CLASSES, argv).build()[3].rho == 0.05


def test_the_config_file_of_a_model_is_a_model_config(tmp_path):
    BertConfig(hidden_size=24, num_attention_heads=2, num_labels=3).save_pretrained(tmp_path)
    argv = ["--model_config", str(tmp_path / "config.json"), "--use_cpu"]
    made = RecipeParser(CLASSES, argv).build()[1].make_config(num_labels=5)
    assert (made.model_type, made.hidden_size, made.num_labels) == ("bert", 24, 5)


def test_a_model_config_is_a_mapping_in_yaml_or_json_on_the_command_line(config):
    argv = config("model_config: {model_type: vit, hidden_size: 8}\nuse_cpu: true\n")
    assert RecipeParser(CLASSES, argv).build()[1].make_config().hidden_size == 8
    argv = ["--model_config", '{"model_type": "bert"}', "--use_cpu"]
    assert RecipeParser(CLASSES, argv).build()[1].make_config().model_type == "bert"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rh0: 0.3\n", r"unknown key in .*config.yaml: 'rh0'. Did you mean 'rho'\?"),
        ("zzzzz: 0.3\n", r"unknown key in .*: 'zzzzz'. --help lists the options"),
        ("- rho\n", r"must be a mapping of options; got list"),
        ("rho: [0.3\n", r"cannot be read: while parsing"),
        ("", r"must be a mapping of options; got NoneType"),
        ("rho: small\n", r"rho must be a number, got 'small'"),
        ("rho: [0.1]\n", r"rho must be a number, got \[0.1\]"),
        ("rho: true\n", r"rho must be a number, got True"),
    ],
)
def test_bad_config_files(config, text, message):
    with pytest.raises(ValueError, match=message):
        RecipeParser(CLASSES, config(text))


def test_a_missing_config_file():
    with pytest.raises(ValueError, match=r"config file 'nowhere.yaml' does not exist"):
        RecipeParser(CLASSES, ["--config", "nowhere.yaml"])


def test_an_unknown_flag_gives_the_nearest():
    with pytest.raises(ValueError, match=r"unknown flag: 'sharpnes'. Did you mean 'sharpness'\?"):
        RecipeParser(CLASSES, [*MODEL, "--sharpnes", "sam"])


def test_flags_are_not_abbreviated():
    with pytest.raises(ValueError, match="unknown flag: 'sharp'"):
        RecipeParser(CLASSES, [*MODEL, "--sharp", "sam"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "say which model"),
        ([*MODEL, "--model_config", '{"model_type": "vit"}'], "say which model"),
        (["--model_config", '{"hidden_size": 8}'], "needs a model_type"),
        ([*MODEL, "--validation_split", "test"], "--validation_split and --test_split are both 'test'"),
        ([*MODEL, "--sharpness", "smart"], "unknown sharpness 'smart'"),
        ([*MODEL, "--split_lists", "train.txt"], "expected split=file, such as train=train.txt; got 'train.txt'"),
        ([*MODEL, "--split_lists", "a=b", "--dataset_config", "c"], "split_lists is for a folder of images"),
    ],
)
def test_bad_arguments(argv, message):
    with pytest.raises(ValueError, match=message):
        RecipeParser(CLASSES, [*argv, "--use_cpu"]).build()


@pytest.mark.parametrize(
    ("model_config", "message"),
    [
        ('{"model_type": "brt"}', r"unknown model_type 'brt'. Did you mean 'bert'\?"),
        (
            '{"model_type": "vit", "hiden_size": 9}',
            r"'hiden_size' is not an option of 'vit'. Did you mean 'hidden_size'\?",
        ),
    ],
)
def test_bad_model_configs(model_config, message):
    model = RecipeParser(CLASSES, ["--model_config", model_config, "--use_cpu"]).build()[1]
    with pytest.raises(ValueError, match=message):
        model.make_config()


def test_images_for_a_network_without_an_image_size_are_resized_to_one():
    from hf_sharp.recipe.images import load_image_processor

    argv = ["--model_config", '{"model_type": "resnet", "image_size": 32}', "--use_cpu"]
    model = RecipeParser(CLASSES, argv).build()[1]
    assert load_image_processor(model).size == {"height": 32, "width": 32}
    argv[1] = '{"model_type": "bert", "image_size": 32}'
    with pytest.raises(ValueError, match="'image_size' is not an option of 'bert'"):
        RecipeParser(CLASSES, argv).build()[1].make_config()


def test_numbers_that_yaml_reads_as_text_inside_the_model_config(config):
    argv = config("model_config: {model_type: vit, layer_norm_eps: 1e-12}\nuse_cpu: true\n")
    assert RecipeParser(CLASSES, argv).build()[1].make_config().layer_norm_eps == 1e-12


def test_a_flag_for_one_way_to_name_the_model_overrides_the_other(config):
    argv = config("model_config: {model_type: vit}\nuse_cpu: true\n")
    model = RecipeParser(CLASSES, [*argv, "--model_name_or_path", "m"]).build()[1]
    assert (model.model_name_or_path, model.model_config) == ("m", None)


def test_one_name_where_a_list_is_meant(config):
    argv = config("model_name_or_path: m\ncompare_with: baseline\nuse_cpu: true\n")
    assert RecipeParser(CLASSES, argv).values["compare_with"] == ["baseline"]


# ---- runs -------------------------------------------------------------------------------------------------------


def runs(tmp_path, *argv):
    return plan_runs(RecipeParser(CLASSES, [*MODEL, "--use_cpu", "--output_dir", str(tmp_path / "out"), *argv]))


def test_a_single_run_has_the_output_folder_for_itself(tmp_path):
    (run,) = runs(tmp_path, "--sharpness", "sam")
    assert (run.name, run.args.output_dir) == ("sam+logit_adjusted", str(tmp_path / "out"))


def test_baseline_is_plain_training_with_all_else_equal(tmp_path):
    argv = ["--sharpness", "focal_sam", "--rho", "0.3", "--focal_gamma", "2", "--loss", "logit_adjusted"]
    argv += ["--loss_tau", "1.5", "--learning_rate", "0.1", "--seed", "7", "--rare_threshold", "5"]
    plain, sharp = runs(tmp_path, *argv, "--compare_with", "baseline")
    assert (plain.name, sharp.name) == ("baseline", "focal_sam+logit_adjusted")
    assert (plain.args.sharpness, plain.args.loss) == ("none", "cross_entropy")
    for run in (plain, sharp):
        assert (run.args.learning_rate, run.args.seed, run.args.rare_threshold) == (0.1, 7, 5)
    assert (sharp.args.rho, sharp.args.loss_tau) == (0.3, 1.5)


def test_a_file_of_differences_is_a_run(tmp_path):
    (tmp_path / "no_sharpness.yaml").write_text("sharpness: none\n")
    other, main = runs(tmp_path, "--sharpness", "sam", "--compare_with", str(tmp_path / "no_sharpness.yaml"))
    assert (other.name, other.args.sharpness, other.args.loss) == ("no_sharpness", "none", "logit_adjusted")
    assert main.args.sharpness == "sam"


def test_what_has_no_effect_in_a_run_is_not_taken_over_from_the_other(tmp_path):
    inherited = [
        "--sharpness",
        "focal_sam",
        "--rho",
        "0.2",
        "--focal_gamma",
        "2",
        "--loss",
        "vs",
        "--loss_gamma",
        "0.1",
    ]
    compared = ["sharpness=none", "sharpness=sam,ascent=momentum", "loss=focal"]
    none, momentum, focal, main = runs(tmp_path, *inherited, "--ascent_scope", "window", "--compare_with", *compared)
    assert "rho" not in none.options
    assert "focal_gamma" not in none.options
    assert none.args.loss_gamma == 0.1
    assert (momentum.args.rho, momentum.args.ascent_scope) == (0.2, "micro_batch")
    assert (focal.args.loss_gamma, focal.args.focal_gamma) == (0.1, 2)
    assert (main.args.rho, main.args.focal_gamma, main.args.ascent_scope) == (0.2, 2, "window")
    with pytest.raises(ValueError, match=r"rho=0\.3 has no effect with sharpness='none'"):
        runs(tmp_path, *inherited, "--compare_with", "sharpness=none,rho=0.3")
    with pytest.raises(ValueError, match="unknown sharpness 'sma'"):
        runs(tmp_path, *inherited, "--compare_with", "sharpness=sma")


def test_differences_on_the_command_line(tmp_path):
    main_run = ["--sharpness", "sam", "--loss", "cdt"]
    other, vs, main = runs(tmp_path, *main_run, "--compare_with", "loss=ldt", "loss=vs,loss_gamma=1e-1,rho=0.2")
    assert (other.name, vs.name, main.name) == ("loss=ldt", "loss=vs,loss_gamma=1e-1,rho=0.2", "sam+cdt")
    assert (other.args.loss, other.args.radius) == ("ldt", 0.05)
    assert (vs.args.loss, vs.args.loss_gamma, vs.args.rho) == ("vs", 0.1, 0.2)
    for text, message in (
        ("los=ldt", "unknown option in 'los=ldt': 'los'. Did you mean 'loss'"),
        ("loss=ldt,rho", "expected option=value,option=value; got 'loss=ldt,rho'"),
        ("rho=big", "rho must be a number, got 'big'"),
        ("imbalance_factor=7", "'imbalance_factor=7' may only contain training options that differ"),
    ):
        with pytest.raises(ValueError, match=message):
            runs(tmp_path, "--compare_with", text)


def test_a_file_of_differences_holds_training_options_only(tmp_path):
    (tmp_path / "other.yaml").write_text("imbalance_factor: 7\noutput_dir: elsewhere\n")
    with pytest.raises(ValueError, match=r"it also has imbalance_factor, output_dir\. Data, model and output folder"):
        runs(tmp_path, "--compare_with", str(tmp_path / "other.yaml"))


def test_what_lies_beside_the_runs_is_not_written_over(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recall_by_count.png").write_text("an earlier picture")
    with pytest.raises(ValueError, match="is not empty"):
        runs(tmp_path, "--compare_with", "baseline")


def test_one_checkpoint_cannot_serve_two_runs(tmp_path):
    with pytest.raises(ValueError, match=r"is the checkpoint of one run, but there are 2 runs. Set it to true"):
        runs(tmp_path, "--compare_with", "baseline", "--resume_from_checkpoint", "somewhere/checkpoint-5")


def test_two_runs_of_one_name(tmp_path):
    with pytest.raises(ValueError, match="have the same name"):
        runs(tmp_path, "--compare_with", "baseline", "baseline")


def test_an_output_folder_with_something_in_it_is_not_written_over(tmp_path):
    (tmp_path / "out").mkdir()
    runs(tmp_path)
    (tmp_path / "out" / "precious").write_text("mine")
    with pytest.raises(ValueError, match=r"is not empty.*--resume_from_checkpoint true.*--overwrite_output_dir"):
        runs(tmp_path)
    with pytest.raises(ValueError, match="is not empty"):
        runs(tmp_path, "--resume_from_checkpoint", "false")
    assert runs(tmp_path, "--overwrite_output_dir")
    assert runs(tmp_path, "--resume_from_checkpoint", "true")


def test_a_finished_run_with_other_options_is_not_taken_for_this_one(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (run,) = runs(tmp_path, "--sharpness", "sam", "--rho", "0.1")
    import json

    (folder / "all_results.json").write_text(json.dumps({"options": run.options}))
    assert runs(tmp_path, "--sharpness", "sam", "--rho", "0.1", "--resume_from_checkpoint", "true")
    with pytest.raises(ValueError, match=r"had other options \(rho: 0.1 then, 0.2 now\)"):
        runs(tmp_path, "--sharpness", "sam", "--rho", "0.2", "--resume_from_checkpoint", "true")


@pytest.fixture
def lesions(tmp_path):
    # Each lesion has three pictures, and the test split repeats pictures that the training split has.
    rows = [{"image": f"{i}-{k}", "lesion": f"lesion {i}", "dx": "ab"[i % 4 == 0]} for i in range(40) for k in range(3)]
    splits = {"train": rows[:90], "validation": rows[90:], "test": rows[:30]}
    data = datasets.DatasetDict({name: datasets.Dataset.from_list(part) for name, part in splits.items()})
    data.save_to_disk(str(tmp_path / "lesions"))
    return str(tmp_path / "lesions")


def test_splits_that_leak_are_joined_without_repeats_and_split_again_by_group(lesions):
    options = {"unique_column": "image", "group_column": "lesion", "test_fraction": 0.2, "validation_fraction": 0.25}
    splits = load_splits(DataArguments(lesions, train_split="train+validation+test", **options), "dx")
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 72, "test": 24, "validation": 24}
    lesion_ids = [set(rows["lesion"]) for rows in splits.values()]
    assert len(set.union(*lesion_ids)) == sum(map(len, lesion_ids)) == 40
    assert len({name for rows in splits.values() for name in rows["image"]}) == 120


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_column": "lesion"}, r"--group_column lesion has no effect, because nothing is held out"),
        ({"train_split": "train+dev"}, r"'train\+dev': there is no split 'dev'; the splits are 'train', 'validation'"),
        ({"train_split": "train+test"}, r"there is no split 'test'; the splits are 'validation', 'train\+test'"),
        ({"unique_column": "name"}, r"there is no column 'name'; the columns are 'image', 'lesion', 'dx'"),
    ],
)
def test_splits_that_cannot_be_joined_or_divided(lesions, options, message):
    with pytest.raises(ValueError, match=message):
        load_splits(DataArguments(lesions, **options), "dx")
