"""Faults during a push or a download are retried or reported; nothing is lost, and trying again is sufficient."""

import hashlib
from pathlib import Path

import pytest

from tests.hub import tasks
from tests.hub.client import Failed
from tests.hub.test_push import REPO, SAVES, contents, pushed

MEGABYTE = 1_000_000
CONFLICT = b'{"error": "Cannot create repo: another conflicting operation is in progress"}'
HTML = b"<html><body><h1>502 Bad Gateway</h1></body></html>"


def sums(folder) -> dict[str, str]:
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def model(as_user, hub, tmp_path):
    """A folder with some megabytes of weights, ready to be pushed."""
    as_user(tasks.save_large, str(tmp_path / "model"))
    as_user(tasks.call, "create_repo", "model")
    hub.requests.clear()
    return tmp_path / "model"


@pytest.mark.parametrize("fault", [{"status": 500, "times": 2}, {"status": 503, "body": HTML}, {"cut_after": 10}])
@pytest.mark.parametrize("where", ["POST .*/preupload/", "POST .*/objects/batch", "PUT /large/", "POST /api/verify/"])
def test_transient_faults_are_retried(hub, as_user, tmp_path, where, fault):
    fault = hub.fails(where, **fault)
    as_user(tasks.push, str(tmp_path / "model"), {})
    assert fault.happened == fault.times
    assert pushed(hub) == contents(tmp_path / "model")
    assert hub.repos[REPO].titles() == ["End of training", "initial commit"]


@pytest.mark.parametrize(
    ("where", "fault", "message"),
    [
        ("POST /api/validate-yaml", {"status": 500}, "(?s)500.*validate-yaml.*Internal Error"),
        ("POST .*/commit/", {"status": 500}, "(?s)500.*/commit/main.*Internal Error"),
        (
            "POST .*/commit/",
            {"status": 409, "body": b'{"error": "Another one runs"}'},
            "(?s)409.*/commit/main.*Another",
        ),
        ("POST .*/commit/", {"status": 412, "body": b'{"error": "A commit has happened"}'}, "(?s)412.*A commit has"),
        ("POST .*/commit/", {"cut_after": 100}, "disconnected|reset|closed|Broken pipe"),
        ("PUT /large/", {"status": 403, "body": b"expired"}, "uploading|403"),
    ],
)
def test_a_failed_push_is_reported_and_pushing_again_succeeds(hub, as_user, model, where, fault, message):
    before = sums(model)
    hub.fails(where, **fault)
    with pytest.raises(Failed, match=message):
        as_user(tasks.push_again, REPO, str(model))
    assert hub.repos[REPO].titles() == ["initial commit"]
    assert sums(model) == before
    as_user(tasks.push_again, REPO, str(model))
    assert pushed(hub) == contents(model)
    assert hub.repos[REPO].titles() == ["again", "initial commit"]
    assert len(hub.asked("PUT .* 200")) == 2  # the weights and the arguments, once each
    as_user(tasks.push_again, REPO, str(model))
    assert hub.repos[REPO].titles() == ["again", "initial commit"]


@pytest.mark.parametrize("fault", [None, {"status": 500, "times": 2}, {"unanswered": True}])
def test_a_client_with_xet_retries_commits(hub, as_user, tmp_path, fault):
    hub.large_patterns = ()
    as_user(tasks.push, str(tmp_path / "model"), {})
    (tmp_path / "model" / "more.txt").write_text("more")
    if fault is not None:
        hub.fails("POST .*/commit/", **fault)
    as_user(tasks.push_in_pipeline, REPO, str(tmp_path / "model"))
    as_user(tasks.push_in_pipeline, REPO, str(tmp_path / "model"))
    assert pushed(hub) == contents(tmp_path / "model")
    twice = fault is not None and "unanswered" in fault  # the client does not know that the first one succeeded
    assert hub.repos[REPO].titles() == ["again"] * (1 + twice) + ["End of training", "initial commit"]


def test_push_and_download_through_xet_storage(hub, as_user, model, tmp_path):
    """The storage is a folder here, which hf_xet writes and reads."""
    hub.xet_address = f"local://{tmp_path}/storage"
    hub.xet = as_user(tasks.names_in_xet, str(model))
    before = sums(model)
    for _ in range(2):
        as_user(tasks.push_in_pipeline, REPO, str(model))
    assert hub.repos[REPO].titles() == ["again", "initial commit"]
    assert pushed(hub) == contents(model)
    folder = as_user(tasks.download_from_xet, REPO, str(tmp_path / "cache"))
    assert sums(model) == before
    assert (Path(folder) / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert sum(file.stat().st_size for file in (tmp_path / "storage").rglob("*") if file.is_file()) > 3 * MEGABYTE
    assert not hub.asked("/large/")
    assert hub.asked("xet-write-token.* 200")
    assert hub.asked("xet-read-token.* 200")


def test_a_commit_whose_response_was_lost(hub, as_user, model):
    """The client does not retry a commit. Pushing again adds nothing."""
    hub.fails("POST .*/commit/", unanswered=True)
    with pytest.raises(Failed, match=r"disconnected|reset|closed"):
        as_user(tasks.push_again, REPO, str(model))
    assert hub.repos[REPO].titles() == ["again", "initial commit"]
    as_user(tasks.push_again, REPO, str(model))
    assert hub.repos[REPO].titles() == ["again", "initial commit"]
    assert pushed(hub) == contents(model)


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("part_size", [None, MEGABYTE], ids=["whole", "parts"])
def test_a_connection_lost_during_an_upload(hub, as_user, model, part_size, reset):
    before, hub.part_size = sums(model), part_size
    size = (model / "model.safetensors").stat().st_size
    assert size > 3 * MEGABYTE
    cut = hub.fails("PUT /large/.*/3$" if part_size else "PUT /large/", cut_after=MEGABYTE // 2, reset=reset)
    if part_size is None:
        (model / "training_args.bin").unlink()  # so that the connection is lost during the upload of the large file
        before.pop("training_args.bin")
    as_user(tasks.push_again, REPO, str(model))
    assert cut.happened == 1
    assert pushed(hub) == contents(model)
    assert sums(model) == before
    if part_size:  # only that part was sent again
        assert len(hub.asked("PUT /large/.*/[0-9]+ -> 200")) == -(-size // part_size)


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_connection_lost_during_a_download(hub, as_user, model, tmp_path, reset):
    as_user(tasks.push_again, REPO, str(model))
    weights = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    cut = hub.fails(f"GET /large/{weights}", cut_after=MEGABYTE, reset=reset)
    cache = str(tmp_path / "cache")
    if reset:  # an error that the client does not retry
        with pytest.raises(Failed, match=r"reset"):
            as_user(tasks.download, REPO, cache)
        assert not list(Path(cache).rglob("model.safetensors"))
        assert not list(Path(cache).rglob("*.incomplete"))
    folder = as_user(tasks.download, REPO, cache)
    assert cut.happened == 1
    assert contents(folder)["model.safetensors"] == (model / "model.safetensors").read_bytes()
    if not reset:
        assert any("range" in request.headers for request in hub.asked("GET /large/.* 206"))


def test_a_full_disk_while_downloading(hub, as_user, model, tmp_path):
    as_user(tasks.push_again, REPO, str(model))
    cache = tmp_path / "cache"
    with pytest.raises(Failed, match=r"File too large") as raised:
        as_user(tasks.download, REPO, str(cache), MEGABYTE)
    assert raised.value.kind == "OSError"
    assert not [file for file in cache.rglob("*") if file.name == "model.safetensors" or "incomplete" in file.name]
    folder = as_user(tasks.download, REPO, str(cache))
    assert contents(folder)["model.safetensors"] == (model / "model.safetensors").read_bytes()


def test_a_full_disk_while_saving_pushes_nothing(hub, as_user, model, tmp_path):
    as_user(tasks.push_again, REPO, str(model))
    before = hub.repos[REPO].oid_of("main")
    with pytest.raises(Failed, match=r"File too large|No space"):
        as_user(tasks.push, str(tmp_path / "full" / "model"), {}, 1, True, MEGABYTE)
    assert hub.repos[REPO].oid_of("main") == before


def test_an_unknown_token(hub, as_user, model):
    with pytest.raises(Failed, match=r"(?s)401.*Invalid credentials"):
        as_user(tasks.push_again, REPO, str(model), token="hf_" + "x" * 34)
    as_user(tasks.push_again, REPO, str(model))
    assert pushed(hub) == contents(model)


def test_an_unknown_token_is_an_error_before_training(hub, as_user, tmp_path):
    with pytest.raises(Failed, match=r"(?s)401.*/api/repos/create.*Invalid credentials"):
        as_user(tasks.train, str(tmp_path / "model"), {"push_to_hub": True}, token="hf_" + "x" * 34)
    assert not (tmp_path / "model").exists()


def test_without_a_token(hub, as_user, tmp_path):
    with pytest.raises(Failed, match=r"401"):
        as_user(tasks.train, str(tmp_path / "model"), {"push_to_hub": True}, token=None)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            {"status": 409, "body": b'{"error": "Cannot create repo: another conflicting operation is in progress"}'},
            None,
        ),
        ({"status": 500}, "(?s)500.*/api/repos/create"),
    ],
)
def test_creating_the_repository(hub, as_user, tmp_path, fault, message):
    hub.fails("POST /api/repos/create", **fault)
    if message:
        with pytest.raises(Failed, match=message):
            as_user(tasks.push, str(tmp_path / "model"), {})
    as_user(tasks.push, str(tmp_path / "model"), {})
    assert pushed(hub) == contents(tmp_path / "model")


def test_a_failed_push_does_not_stop_training(hub, as_user, tmp_path):
    hub.fails("POST .*/commit/", 500)
    as_user(tasks.train, str(tmp_path / "model"), SAVES, None, True)
    titles = ["End of training", "Training in progress, step 4", "initial commit"]
    assert hub.repos[REPO].titles() == titles
    assert pushed(hub) == contents(tmp_path / "model")


def test_failed_pushes_during_training_are_logged(hub, as_user, client, tmp_path):
    hub.fails("POST .*/commit/", 500, times=2)
    as_user(tasks.train, str(tmp_path / "model"), SAVES)
    assert hub.repos[REPO].titles() == ["initial commit"]
    logged = [line for line in client.log.read_text().splitlines() if "not pushed" in line]
    assert len(logged) == 2
    assert all("500" in line and REPO in line for line in logged)


@pytest.mark.parametrize(("where", "body"), [("validate-yaml", HTML), ("/commit/", HTML)])
def test_a_failed_final_push_says_where_the_model_is(hub, as_user, tmp_path, where, body):
    hub.fails(f"POST .*{where}", 502, body=body)
    with pytest.raises(Failed) as raised:
        as_user(tasks.train, str(tmp_path / "model"), {"push_to_hub": True}, None, True)
    assert str(tmp_path / "model") in raised.value.printed.splitlines()[-1]
    assert "push_to_hub" in raised.value.printed.splitlines()[-1]
