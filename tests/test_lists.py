"""README and docs agree with the code: methods, losses, options, configs, commands and paths."""

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from transformers import TrainingArguments, pipeline

from hf_sharp import SharpTrainingArguments, cli
from hf_sharp.cli import COMMANDS
from hf_sharp.geometry import GeometryCallback
from hf_sharp.losses import LOSSES
from hf_sharp.losses.registry import loss_options
from hf_sharp.recipe import (
    AdapterArguments,
    ModelArguments,
    RecipeParser,
    RunArguments,
    TextArguments,
    TrainImageArguments,
)
from hf_sharp.sharpness import METHODS, RHO_SCHEDULES
from tests.conftest import make_images
from tests.recipes.conftest import bert_folder, image_folder, texts, vit_folder  # noqa: F401

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*.yaml"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OURS = [item for item in fields(SharpTrainingArguments) if item.name not in {f.name for f in fields(TrainingArguments)}]


def rows_of(page, heading):
    table = (ROOT / "docs" / page).read_text().split(f"| {heading} |", 1)[1].split("\n\n", 1)[0]
    return [re.findall(r"`([^`]+)`", row.split("|")[1])[0] for row in table.splitlines() if row.startswith("| `")]


def test_the_docs_have_a_row_for_every_method_and_every_loss():
    assert rows_of("options.md", "sharpness") == METHODS.builtin
    assert rows_of("options.md", "loss") == LOSSES.builtin


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 120


def test_the_matrix_of_modes_and_methods_is_what_the_tests_run():
    section = (ROOT / "docs" / "tested.md").read_text()
    head, _, *rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in section.splitlines() if "|" in row]
    methods = head[1:-1]
    assert methods == ["none", "sam", "asam", "imbsam", "focal_sam"]
    tests = [cells[-1].strip("`") for cells in rows]
    files = sorted({f"tests/{test.split('::')[0]}" for test in tests})
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:xdist", *files]
    done = subprocess.run(collect, capture_output=True, text=True, cwd=ROOT, check=True)
    run: dict[str, set[str]] = {}
    for line in done.stdout.splitlines():
        name, _, parameters = line.removeprefix("tests/").partition("[")
        run.setdefault(name, set()).update(part.rstrip("0123456789") for part in parameters.rstrip("]").split("-"))
    assert len(rows) > 20
    for mode, *cells, test in rows:
        ran = run.get(test.strip("`"), set())
        # A test without a parameter for the method runs the one that its row names.
        if not ran & set(methods):
            assert test.strip("`") in run, f"there is no test {test}"
            continue
        assert cells == ["✓" if method in ran else "–" for method in methods], f"{mode}: the tests run {ran}"


def test_the_docs_have_a_row_for_every_option():
    assert rows_of("options.md", "option") == [item.name for item in OURS]


def test_prefixed_options_of_methods_and_losses_are_fields():
    # An option with another name has no field: it is set in sharpness_options or loss_options.
    names = {item.name for item in OURS}
    for method in METHODS.values():
        assert {name for name in method.options if name.startswith(("rho", "ascent", "focal_", "cc_"))} <= names
    for loss in LOSSES:
        assert {name for name in loss_options(loss) if name.startswith(("loss_", "lm_"))} <= names


@pytest.mark.parametrize("field", ["sharpness", "loss", "rho_schedule"])
def test_help_lists_the_choices(field):
    choices = {"sharpness": METHODS.builtin, "loss": LOSSES.builtin, "rho_schedule": RHO_SCHEDULES}[field]
    text = next(item for item in OURS if item.name == field).metadata["help"]
    assert text.endswith(f"One of: {', '.join(choices)}.")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda file: file.stem)
def test_every_config_has_a_row_in_the_docs_and_an_output_folder(config):
    assert f"recipes/configs/{config.name}" in (ROOT / "docs" / "recipes.md").read_text()
    assert yaml.safe_load(config.read_text())["output_dir"] == f"outputs/{config.stem}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_paths_in_the_docs_exist(page):
    named = set(re.findall(r"(?<![\w./-])(?:recipes|benchmarks|docs|hf_sharp|tests)/[\w./-]+\.\w+", page.read_text()))
    places = (ROOT, ROOT / "tests")  # docs/tested.md leaves out tests/
    assert [path for path in sorted(named) if not any((place / path).exists() for place in places)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_make_targets_in_the_docs_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tests_in_the_docs_exist(page):
    for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text()):
        assert f"def {name}(" in (ROOT / file).read_text()


def commands():
    """Every command of README and docs, without comments, as the words of a shell."""
    for page in PAGES:
        for block in re.findall(r"^```\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip().startswith(("python ", "hf-sharp ", "accelerate launch ")):
                    words = shlex.split(line, comments=True)
                    yield pytest.param(words, id=f"{page.stem}: {' '.join(words)[:60]}")


@pytest.mark.parametrize("words", list(commands()))
def test_commands_in_the_docs_have_options_that_exist(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    if words[0] == "hf-sharp":
        assert words[1] in COMMANDS
        return
    if "hf_sharp.cli" in words:  # of several processes
        assert words[words.index("hf_sharp.cli") + 1] in COMMANDS
        return
    if "--validation_fraction" in words and "few_shot.py" not in " ".join(words):
        assert {"--eval_strategy", "--load_best_model_at_end"} <= {*words}, "what is held out is used"
    script = next(index for index, word in enumerate(words) if word.endswith(".py"))
    assert Path(words[script]).exists()
    if "_classification.py" not in words[script]:
        return
    data = TextArguments if "text" in words[script] else TrainImageArguments
    parser = RecipeParser(
        (data, ModelArguments, RunArguments, AdapterArguments, SharpTrainingArguments), words[script + 1 :]
    )
    parser.set_defaults(use_cpu=True)
    parser.build(bf16=False)


def hf_sharp_commands():
    """Every `hf-sharp` command of README and docs with options of its own, in blocks and in sentences."""
    own = set(COMMANDS) - {"train", "tune", "compare"}  # which pass options on to the recipes
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for line in re.findall(r"(?:^|`|\| )(hf-sharp [a-z]+ [^`\n;>]+)", text, re.MULTILINE):
            words = shlex.split(line, comments=True)
            if words[1] in own and not words[2].startswith("-"):  # else a sentence about an option
                yield pytest.param(words, id=f"{page.stem}: {' '.join(words)[:60]}")


@pytest.mark.parametrize("words", list(hf_sharp_commands()))
def test_hf_sharp_commands_in_the_docs_have_options_that_exist(words):
    assert cli.main([*words[1:], "--no_such_flag"]).startswith("error: unknown flag: 'no_such_flag'.")


def test_every_page_is_in_the_index_of_the_readme_and_of_the_site():
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in PAGES[2:]}
    assert pages <= set(re.findall(r"\]\(docs/([\w/]+\.md)", README))
    assert pages <= set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text()))


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES[2:], ids=lambda page: page.stem)
def test_code_in_the_docs_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    names: dict[str, object] = {}
    try:
        for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            exec(compile(code, page.name, "exec"), names)
    finally:
        for registry in (METHODS, LOSSES):
            for name in set(registry) - set(registry.builtin):
                registry.unregister(name)


def test_generated_tables_are_up_to_date():
    check = [sys.executable, str(ROOT / "benchmarks" / "tables.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_script_in_the_readme_runs(image_folder, vit_folder, tmp_path, monkeypatch):  # noqa: F811
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    shutil.copytree(image_folder, "photos")
    assert "num_train_epochs=10" in code
    code = code.replace("google/vit-base-patch16-224-in21k", vit_folder).replace("num_train_epochs=10", "max_steps=3")
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert "eval_balanced_accuracy" in names["metrics"]


def test_the_script_for_texts_with_lora_runs(bert_folder, tmp_path, monkeypatch):  # noqa: F811
    page = (ROOT / "docs" / "migrating.md").read_text()
    code = re.findall(r"```\n(.*?)```", page.partition("### Texts, with LoRA")[2], re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    rows = [f"{word} {n},{word}" for word, number in (("ham", 20), ("spam", 8)) for n in range(number)]
    Path("mails.csv").write_text("\n".join(["text,label", *rows]))
    code = code.replace("google-bert/bert-base-uncased", bert_folder).replace("learning_rate=5e-4", "max_steps=2")
    exec(compile(code, "migrating.md", "exec"), {})
    assert pipeline("text-classification", "outputs/mails/merged", device="cpu")("ham 1")[0]["label"] in ("ham", "spam")


def test_git_holds_no_weights_no_data_and_no_path_of_a_machine():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    assert not [file for file in files if file.endswith((".safetensors", ".bin", ".pt", ".arrow", ".parquet", ".whl"))]
    for file in filter(None, files):
        path = ROOT / file
        if path.exists() and path.suffix in (".py", ".md", ".yaml", ".toml", ".json", ".txt", ".cff"):
            assert not re.search(r"/(work|root|home)/[a-z]", path.read_text()), file


def test_what_is_logged_is_on_one_page_of_the_docs(make_trainer):
    page = (ROOT / "docs" / "logged_metrics.md").read_text()
    rows = [row.split("|")[1] for row in page.splitlines() if row.startswith("| `")]
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    of_trainer = {"loss", "grad_norm", "learning_rate", "epoch", "step", "total_flos"}
    logged = set()
    for options in (
        {"rho_schedule": "learned", "rho_update_every": 1},
        {"sharpness": "cc_sam"},
        {"sharpness": "none", "cost_matrix": {"class 3": 9}},
    ):
        data = make_images([150, 30, 8, 4], seed=2)
        options |= {"logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2}
        trainer = make_trainer(train_dataset=data, eval_dataset=data, **options)
        trainer.add_callback(GeometryCallback(trainer))
        trainer.train()
        logged |= {name for log in trainer.state.log_history for name in log}
    measured = {name.removeprefix("eval_") for name in logged if not name.startswith("train_")} - of_trainer
    assert {name for name in measured if not name.endswith(("runtime", "per_second"))} == documented
