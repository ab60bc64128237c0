import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from minitron_cli.checkpoint import hub
from minitron_cli.errors import EnvironmentFault, InputError


@pytest.fixture(autouse=True)
def _online(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def refused():
    with pytest.raises(EnvironmentFault) as caught:
        hub.upload("me/small", {"a": b"b"}, private=True, message="m")
    assert caught.value.exit_code == 3
    return str(caught.value)


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://hub.invalid",  # no such name
        "http://127.0.0.1:9",  # nobody listens
        "http://192.0.2.1",  # nobody answers
    ],
)
def test_without_a_network_it_is_said_in_a_moment(endpoint, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    assert "cannot be reached: check the connection" in refused()
    assert hub.REACH_SECONDS < 3


def test_offline_is_offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused()


class Refusing(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.dumps({"error": "no"}).encode()
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def test_strangers_and_tokens_that_may_not_write_are_told_to_log_in(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
        assert "not logged in" in refused()
        monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_made_up")
        assert "this token may not write to me/small (403)" in refused()
    finally:
        server.shutdown()


def test_everything_goes_up_in_one_commit(monkeypatch, tmp_path):
    (tmp_path / "weights").write_bytes(b"w" * 9)
    calls = []

    class Api:
        def __init__(self, **options):
            pass

        def create_repo(self, repo, **options):
            calls.append((repo, options))
            return "https://hub.example/me/small"

        def create_commit(self, repo, operations, **options):
            calls.append((repo, {o.path_in_repo: o.upload_info.size for o in operations}, options))

    monkeypatch.setattr(hub, "_check_reachable", lambda: None)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_made_up")
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    files = {"model.safetensors": tmp_path / "weights", "README.md": b"card"}
    assert hub.upload("me/small", files, private=True, message="m") == "https://hub.example/me/small"
    assert calls == [
        ("me/small", {"private": True, "exist_ok": True}),
        ("me/small", {"model.safetensors": 9, "README.md": 4}, {"commit_message": "m"}),
    ]


@pytest.mark.parametrize("name", ["a b/c", "a/b/c", "../x", "", "-/x", "a/" + "x" * 200])
def test_a_name_that_the_hub_could_not_have_is_refused(name):
    with pytest.raises(InputError, match="write OWNER/NAME"):
        hub.check_name(name)
    with pytest.raises(InputError, match="write OWNER/small"):
        hub.check_name("small")
