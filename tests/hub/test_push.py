"""Pushing with the real client: the trained model arrives on the Hub, and loads without hf_sharp."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from tests.conftest import assert_same_bits
from tests.hub import tasks
from tests.hub.client import Failed
from tests.hub.conftest import ARGUMENT_TOKEN, OTHER_TOKEN, READ_TOKEN, TOKEN, places_of
from tests.recipes.conftest import QUICK, TINY_VIT, image_folder  # noqa: F401

REPO = "someone/model"
SAVES = {"push_to_hub": True, "save_strategy": "steps", "save_steps": 2, "hub_always_push": True}
FRESH = """
import json, sys
sys.modules["hf_sharp"] = None  # importing it raises
from transformers import pipeline
from PIL import Image
pipe = pipeline("image-classification", model=sys.argv[1], revision=sys.argv[2], top_k=4)
print("THE END", json.dumps(pipe(Image.open(sys.argv[3]))))
"""


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def pushed(hub, revision: str = "main", repo: str = REPO) -> dict[str, bytes]:
    files = hub.repos[repo].files(revision)
    return {path: file.content for path, file in files.items() if path != ".gitattributes"}


def test_the_test_server(hub, as_user):
    """What the client needs besides a push: its user, repositories, branches and tags, listings in pages."""
    assert as_user(tasks.call, "whoami")["name"] == "someone"
    assert as_user(tasks.call, "create_repo", "model").endswith(REPO)
    with pytest.raises(Failed, match="already created"):
        as_user(tasks.call, "create_repo", "model")
    as_user(tasks.call, "create_repo", REPO, {"exist_ok": True})
    as_user(tasks.call, "create_repo", "someone/secret", {"private": True})
    assert {name: repo.private for name, repo in hub.repos.items()} == {REPO: False, "someone/secret": True}
    for name in "abcdef":
        as_user(tasks.upload, REPO, f"folder/{name}.txt", name)
    assert as_user(tasks.listing, REPO) == [".gitattributes", "folder", *(f"folder/{name}.txt" for name in "abcdef")]
    assert len(hub.asked(r"GET .*/tree/.*cursor")) == 1
    assert hub.repos[REPO].titles() == [f"Upload folder/{name}.txt with huggingface_hub" for name in "fedcba"] + [
        "initial commit"
    ]
    as_user(tasks.call, "create_tag", REPO, {"tag": "one"})
    as_user(tasks.call, "create_branch", REPO, {"branch": "two"})
    refs = as_user(tasks.call, "list_repo_refs", REPO)
    assert "refs/heads/two" in refs
    assert "refs/tags/one" in refs
    assert f"sha='{hub.repos[REPO].tags['one']}'" in as_user(tasks.call, "model_info", REPO, {"revision": "one"})
    with pytest.raises(Failed, match="Revision Not Found"):
        as_user(tasks.call, "model_info", REPO, {"revision": "three"})


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("---\ntags: {a: 1}\n---\n", "must be a string or a list"),
        ("---\ntags: [a\n---\n", "YAML is invalid"),
        ("---\nmodel-index:\n- name: m\n  results:\n  - task: {}\n    metrics: []\n---\n", "needs type"),
    ],
)
def test_the_hub_refuses_an_invalid_card(hub, as_user, card, message):
    as_user(tasks.call, "create_repo", "model")
    with pytest.raises(Failed, match=f"(?s)Invalid metadata in README.md.*{message}"):
        as_user(tasks.upload, REPO, "README.md", card)
    assert hub.repos[REPO].titles() == ["initial commit"]


def test_the_pushed_model_is_the_trained_one_and_pushing_again_changes_nothing(hub, as_user, tmp_path):
    as_user(tasks.train, str(tmp_path / "model"), {}, None, True)
    assert pushed(hub) == contents(tmp_path / "model")
    assert pushed(hub)["model.safetensors"] == (tmp_path / "model-end" / "model.safetensors").read_bytes()
    large = {path for path, file in hub.repos[REPO].files().items() if file.large}
    assert large == {"model.safetensors", "training_args.bin"}
    assert hub.repos[REPO].titles() == ["End of training", "initial commit"]
    uploads = len(hub.asked("PUT"))
    assert as_user(tasks.push_again, REPO, str(tmp_path / "model")) == hub.repos[REPO].oid_of("main")
    assert hub.repos[REPO].titles() == ["End of training", "initial commit"]
    assert len(hub.asked("PUT")) == uploads
    assert not any(request.authorized for request in hub.asked("/large/")), "a token was sent to the storage"


def test_a_pushed_model_loads_in_a_fresh_process_without_hf_sharp(hub, as_user, client, tmp_path):
    as_user(tasks.train, str(tmp_path / "model"), {}, None, True)
    trained = as_user(tasks.load_back, str(tmp_path / "model"))
    tasks.picture().save(tmp_path / "picture.png")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    ran = subprocess.run(
        [sys.executable, "-c", FRESH, REPO, hub.repos[REPO].oid_of("main"), str(tmp_path / "picture.png")],
        env=environment | client.environment | {"HF_HOME": str(tmp_path / "another home")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    answers = json.loads(ran.stdout.partition("THE END ")[2])
    assert [answer["label"] for answer in answers] == [answer["label"] for answer in trained]
    assert [answer["score"] for answer in answers] == pytest.approx([answer["score"] for answer in trained], abs=1e-6)
    assert hub.asked("GET /large/.* -> 200")


def test_strategy_end(hub, as_user, tmp_path):
    as_user(tasks.train, str(tmp_path / "model"), SAVES | {"hub_strategy": "end"})
    assert [str(request) for request in hub.requests] == ["POST /api/repos/create -> 200"]


def test_strategy_every_save(hub, as_user, tmp_path):
    options = SAVES | {"hub_model_id": "someone/named"}
    assert as_user(tasks.train, str(tmp_path / "model"), options, None, True)["repo"] == "someone/named"
    repo = hub.repos["someone/named"]
    steps = ["Training in progress, step 4", "Training in progress, step 2", "initial commit"]
    assert repo.titles() == ["End of training", *steps]
    for step, oid in zip((4, 2), repo.history()[1:3], strict=True):
        there = repo.files(oid)["model.safetensors"].content
        assert there == (tmp_path / "model" / f"checkpoint-{step}" / "model.safetensors").read_bytes()
    assert not any(path.startswith("checkpoint") for path in repo.files())
    assert pushed(hub, repo="someone/named") == contents(tmp_path / "model")


@pytest.fixture
def with_checkpoints(hub, as_user, tmp_path):
    """Train and push every checkpoint, and return the commit of the checkpoint of step 2."""
    as_user(tasks.train, str(tmp_path / "model"), SAVES | {"hub_strategy": "checkpoint"})
    repo = hub.repos[REPO]
    return next(oid for oid in repo.history() if repo.commits[oid].title.endswith("step 2, checkpoint"))


def test_resuming_from_a_revision_on_the_hub(hub, as_user, tmp_path, with_checkpoints):
    """Training resumed from a pushed checkpoint ends with the weights of uninterrupted training."""
    selected = {"revision": with_checkpoints, "allow_patterns": ["last-checkpoint/*"]}
    checkpoint = Path(as_user(tasks.download, REPO, str(tmp_path / "cache"), None, selected), "last-checkpoint")
    for name, content in contents(tmp_path / "model" / "checkpoint-2").items():
        assert (checkpoint / name).read_bytes() == content
    as_user(tasks.train, str(tmp_path / "resumed"), {}, str(checkpoint))
    first, second = (load_file(tmp_path / f"{name}-end" / "model.safetensors") for name in ("model", "resumed"))
    assert_same_bits(first, second)
    with pytest.raises(AssertionError, match="tensors differ"):
        assert_same_bits(first, load_file(checkpoint / "model.safetensors"))
    (checkpoint / "optimizer.pt").unlink()
    with pytest.raises(Failed, match=r"is incomplete: optimizer\.pt .* is missing"):
        as_user(tasks.train, str(tmp_path / "torn"), {}, str(checkpoint))


def test_resuming_from_a_revision_by_name(hub, as_user, tmp_path, with_checkpoints):
    as_user(tasks.train, str(tmp_path / "resumed"), {}, f"{REPO}@{with_checkpoints}")
    first, second = (load_file(tmp_path / f"{name}-end" / "model.safetensors") for name in ("model", "resumed"))
    assert_same_bits(first, second)


def test_strategy_all_checkpoints(hub, as_user, tmp_path):
    as_user(tasks.train, str(tmp_path / "model"), SAVES | {"hub_strategy": "all_checkpoints"})
    for step in (2, 4):
        there = {
            path.partition("/")[2]: content
            for path, content in pushed(hub).items()
            if path.startswith(f"checkpoint-{step}/")
        }
        assert there == contents(tmp_path / "model" / f"checkpoint-{step}")
        assert "method" in json.dumps(json.loads(there["trainer_state.json"])["stateful_callbacks"]["MethodState"])


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints"])
def test_no_push_of_an_adapter_names_a_folder_of_this_machine(hub, as_user, tmp_path, strategy):
    private = tmp_path / "private"
    options = SAVES | {"hub_strategy": strategy, "report_to": "tensorboard", "eval_strategy": "steps", "eval_steps": 2}
    options |= {"load_best_model_at_end": True}
    as_user(tasks.train_adapter, str(private / "model"), str(private / "base"), options, strategy != "checkpoint")
    repo = hub.repos[REPO]
    sent = {name for commit in repo.commits.values() for name in commit.files}
    assert {"adapter_config.json", "training_args.bin"} <= sent
    assert any("tfevents" in name for name in sent)
    assert any(name.endswith("/trainer_state.json") for name in sent) == (strategy != "every_save")
    assert [place for place, content in hub.everything() if str(tmp_path).encode() in content] == []
    # On this machine the folders are known again.
    for folder in (private / "model", *(private / "model").glob("checkpoint-*")):
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(private / "base")
    state = json.loads((private / "model" / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"].startswith(str(private))


def test_a_private_repository(hub, as_user, tmp_path):
    as_user(tasks.push, str(tmp_path / "model"), {"push_to_hub": True, "hub_private_repo": True})
    assert hub.repos[REPO].private
    for token in (None, OTHER_TOKEN):
        with pytest.raises(Failed, match="Repository Not Found"):
            as_user(tasks.download, REPO, str(tmp_path / "cache"), token=token)
    folder = as_user(tasks.download, REPO, str(tmp_path / "cache"), token=READ_TOKEN)
    assert Path(folder, "config.json").read_bytes() == (tmp_path / "model" / "config.json").read_bytes()
    with pytest.raises(Failed, match=r"(?s)403.*write token"):
        as_user(tasks.push, str(tmp_path / "again" / "model"), {}, token=READ_TOKEN)


def test_pushing_to_an_existing_revision(hub, as_user, tmp_path):
    as_user(tasks.push, str(tmp_path / "first" / "model"), {"seed": 1})
    before = hub.repos[REPO].oid_of("main")
    as_user(tasks.call, "create_branch", REPO, {"branch": "v2"})
    options = {"push_to_hub": True, "hub_revision": "v2"}
    as_user(tasks.train, str(tmp_path / "second" / "model"), options, None, True)
    assert hub.repos[REPO].oid_of("main") == before
    assert pushed(hub, "v2") == contents(tmp_path / "second" / "model")
    folder = as_user(tasks.download, REPO, str(tmp_path / "cache"), None, {"revision": "v2"})
    assert contents(folder)["model.safetensors"] == pushed(hub, "v2")["model.safetensors"]


def test_pushing_to_a_new_revision(hub, as_user, tmp_path):
    options = {"push_to_hub": True, "hub_revision": "v2"}
    as_user(tasks.train, str(tmp_path / "model"), options, None, True)
    assert pushed(hub, "v2") == contents(tmp_path / "model")
    assert hub.repos[REPO].titles("main") == ["initial commit"]


def test_a_recipe_pushes_the_card_with_the_figures_of_the_test(hub, as_user, tmp_path, image_folder):  # noqa: F811
    argv = ["--dataset", image_folder, "--model_config", TINY_VIT, *QUICK, "--push_to_hub", "true"]
    as_user(tasks.recipe, [*argv, "--compare_with", "baseline", "--output_dir", str(tmp_path / "model")])
    assert [*hub.repos] == [REPO], "the model to compare with is not published"
    there = pushed(hub)
    report = json.loads(there["all_results.json"])["report"]
    card = ModelCard(there["README.md"].decode())
    assert {r.metric_type: r.metric_value for r in card.data.eval_results}["accuracy"] == round(report["accuracy"], 4)
    assert f'pipeline("image-classification", "{REPO}")\n' in card.text
    assert {"recall_by_count.png", "confusion_matrix.png", "model.safetensors"} <= there.keys()
    assert "plain training" in card.text
    assert REPO not in (tmp_path / "model" / "baseline" / "README.md").read_text()


def test_a_recipe_pushes_its_own_card_of_an_adapter(hub, as_user, tmp_path, image_folder):  # noqa: F811
    """PEFT adds to the card whenever it saves the adapter, also when that is pushed."""
    argv = ["--dataset", image_folder, "--model_config", TINY_VIT, *QUICK, "--peft", "lora", "--peft_merge", "false"]
    as_user(tasks.recipe, [*argv, "--push_to_hub", "true", "--output_dir", str(tmp_path / "model")])
    card = ModelCard(pushed(hub)["README.md"].decode())
    assert "PEFT" not in card.text
    assert card.data.model_name == "model"
    assert f'"{REPO}"' in card.text


# ---- tokens ------------------------------------------------------------------------------------------------------


def test_a_token_passed_as_an_argument_is_never_written_or_pushed(hub, client, tmp_path):
    options = SAVES | {"hub_strategy": "checkpoint", "hub_token": ARGUMENT_TOKEN}
    client.run(tasks.train, str(tmp_path / "model"), options, None, True)
    assert places_of([ARGUMENT_TOKEN], hub, client, tmp_path) == []


@pytest.mark.parametrize("end", ["\n", " \r\n"])
def test_a_token_with_a_trailing_newline(hub, client, tmp_path, end):
    """As read with `open(file).read()`: stripped, as the client strips HF_TOKEN, or refused without being shown."""
    options = {"push_to_hub": True, "hub_token": ARGUMENT_TOKEN + end}
    with contextlib.suppress(Failed):  # the log has the error
        client.run(tasks.push, str(tmp_path / "model"), options)
    assert ARGUMENT_TOKEN not in client.log.read_text()
    assert pushed(hub)


def test_the_search_for_tokens_finds_them_everywhere(hub, client, as_user, tmp_path):
    """The search at the end of every test finds a token in each place."""
    as_user(tasks.push, str(tmp_path / "model"), {})
    assert places_of([TOKEN], hub, client, tmp_path) == []
    (tmp_path / "some" / "where").mkdir(parents=True)
    (tmp_path / "some" / "where" / "config.json").write_text(f"a {ARGUMENT_TOKEN} in it")
    client.run(print, ARGUMENT_TOKEN)
    as_user(tasks.upload, REPO, "notes.txt", f"a {ARGUMENT_TOKEN} in it")
    found = "\n".join(places_of([ARGUMENT_TOKEN], hub, client, tmp_path))
    for place in ("config.json", "log.txt", "notes.txt"):
        assert place in found
