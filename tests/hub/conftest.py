"""A Hub on the loopback interface, and its client in separate processes."""

import secrets
from pathlib import Path

import pytest

from tests.hub.client import Client
from tests.hub.server import Hub

TOKEN, READ_TOKEN, OTHER_TOKEN, ARGUMENT_TOKEN = (f"hf_{secrets.token_hex(17)}{end}" for end in ("", "_read", "", ""))


@pytest.fixture(scope="session")
def server():
    hub = Hub({TOKEN: "someone", READ_TOKEN: "someone", OTHER_TOKEN: "another", ARGUMENT_TOKEN: "someone"})
    yield hub
    hub.shutdown()
    hub.server_close()


@pytest.fixture(scope="session")
def client(server, tmp_path_factory):
    return Client(server.endpoint, tmp_path_factory.mktemp("client"))


@pytest.fixture
def hub(server, client, tmp_path):
    """An empty Hub. After the test, no file, log or push may contain a token."""
    server.reset()
    client.log.write_text("")
    yield server
    assert not server.errors
    places = places_of([TOKEN, READ_TOKEN, OTHER_TOKEN], server, client, tmp_path)
    assert not places, f"a token is in {places}"


def places_of(tokens: list[str], server: Hub, client: Client, folder: Path) -> list[str]:
    """Find the files, logs (which have the errors) and pushed contents that contain a token."""
    sought = [token.encode() for token in tokens]
    here = [client.log, *(file for top in (folder, client.home) for file in top.rglob("*"))]
    contents = [(str(file), file.read_bytes()) for file in here if file.is_file()]
    places = [*contents, *server.everything()]
    return [place for place, content in places if any(token in content or token in place.encode() for token in sought)]


@pytest.fixture
def as_user(client):
    """`client.run` with a token in the environment."""

    def run(function, *arguments, token=TOKEN):
        return client.run(function, *arguments, environment={"HF_TOKEN": token} if token else {})

    return run
