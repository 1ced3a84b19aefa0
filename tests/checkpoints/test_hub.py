"""Are models found on the hub? Against a stand-in over loopback that speaks its protocol and remembers the requests."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pytest
from huggingface_hub import constants

from reverie.checkpoints import hub
from reverie.checkpoints.hub import folder_files, single_file
from reverie.errors import ReverieError

COMMITS = {"main": "a" * 40, "v2": "b" * 40}
BIG = bytes(range(256)) * 1200
PARTS = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "image_encoder": [None, None],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
CONFIGS = ["model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json", "unet/config.json"]
CONFIGS += ["vae/config.json", "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json"]
STEMS = ["text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"]
PLAIN = {*CONFIGS, *(f"{stem}.safetensors" for stem in STEMS)}
HALF = {*CONFIGS, *(f"{stem}.fp16.safetensors" for stem in STEMS)}
NEVER = ["README.md", "v1-5.ckpt", "v1-5.safetensors", "safety_checker/model.safetensors", "unet/model.onnx"]
NEVER += ["unet/diffusion_flax_model.msgpack", "unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin"]
NEVER += ["unet/diffusion_pytorch_model.non_ema.safetensors", "vae/diffusion_pytorch_model.bin"]


@dataclass
class Hub:
    """Hold repositories of the stand-in, what was asked of it, and what it does wrong."""

    repos: dict[str, dict[str, bytes]]
    address: str = ""
    storage: str = ""  # the same server by another name: where the weights are is not to see the token
    asked: list[str] = field(default_factory=list)
    tokens: set[tuple[bool, str | None]] = field(default_factory=set)
    drops: int = 0  # how many answers to cut off in the middle
    gated: bool = False
    broken: bool = False

    @property
    def fetched(self) -> set[str]:
        """Name the files whose content was asked for."""
        return {line.split("/cdn/")[1].split("/", 3)[3] for line in self.asked if line.startswith("GET /cdn/")}


def handler(state: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            state.asked.append(f"{self.command} {self.path}")
            state.tokens.add((self.path.startswith("/cdn/"), self.headers.get("Authorization")))
            parts = self.path.split("?")[0].strip("/").split("/")
            if state.broken:
                self.reply(500)
            elif state.gated:
                self.reply(403, {"X-Error-Code": "GatedRepo"})
            elif parts[:2] == ["api", "models"]:
                self.describe("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main")
            elif parts[0] == "cdn":
                self.content(state.repos["/".join(parts[1:3])]["/".join(parts[4:])], body)
            elif "resolve" not in parts:
                self.reply(404)
            else:
                self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

        def describe(self, repo: str, revision: str) -> None:
            if repo not in state.repos:
                return self.reply(401, {"X-Error-Code": "RepoNotFound"})
            if revision not in COMMITS:
                return self.reply(404, {"X-Error-Code": "RevisionNotFound"})
            files = [{"rfilename": name, "size": len(data)} for name, data in state.repos[repo].items()]
            told = {"id": repo, "sha": COMMITS[revision], "siblings": files, "private": False, "tags": []}
            return self.reply(200, {"Content-Type": "application/json"}, json.dumps(told).encode())

        def resolve(self, repo: str, revision: str, file: str) -> None:
            data, commit = state.repos[repo][file], COMMITS.get(revision, revision)
            etag = hashlib.sha256(data + commit.encode()).hexdigest()
            known = {"X-Repo-Commit": commit, "X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
            self.reply(302, known | {"ETag": f'"{etag}"', "Location": f"{state.storage}/cdn/{repo}/{commit}/{file}"})

        def content(self, data: bytes, body: bool) -> None:
            first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
            part = data[first:]
            self.send_response(206 if first else 200)
            self.send_header("Content-Length", str(len(part)))
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if body and state.drops and len(data) == len(BIG):
                state.drops -= 1
                self.wfile.write(part[: len(part) // 2])
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
            elif body:
                self.wfile.write(part)

        def reply(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    weights = {*PLAIN, *HALF, *NEVER} - {"model_index.json"}
    folder = {name: f"content of {name}".encode() for name in sorted(weights)}
    folder |= {"model_index.json": json.dumps(PARTS).encode(), "unet/diffusion_pytorch_model.safetensors": BIG}
    single = {"model.safetensors": BIG, "model.ckpt": b"2", "README.md": b"3"}
    several = {"a.safetensors": b"1", "b.safetensors": b"2", "vae/c.safetensors": b"3"}
    state = Hub({"owner/folder": folder, "owner/single": single, "owner/several": several})
    served = ThreadingHTTPServer(("127.0.0.1", 0), handler(state))
    state.address = f"http://127.0.0.1:{served.server_port}"
    state.storage = f"http://localhost:{served.server_port}"
    thread = threading.Thread(target=served.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", state.address)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", state.address + template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield state
    served.shutdown()
    thread.join()
    served.server_close()


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_only_needed_files_and_only_once(server: Hub) -> None:
    told: list[hub.Download] = []
    place = hub.find("owner/folder", report=told.append)
    assert names(place) == server.fetched == PLAIN
    assert (place / "unet/diffusion_pytorch_model.safetensors").read_bytes() == BIG
    assert told[-1].done == told[-1].total == sum(len(server.repos["owner/folder"][name]) for name in PLAIN)
    assert all(before.done <= after.done for before, after in pairwise(told))
    server.asked.clear()
    assert hub.find("owner/folder") == place
    assert server.asked == []


def test_variant(server: Hub) -> None:
    place = hub.find("owner/folder", variant="fp16")
    assert names(place) == HALF
    server.asked.clear()
    assert hub.find("owner/folder", variant="fp16") == place
    assert hub.find("owner/folder") == place  # half precision is taken where there is nothing else
    assert server.asked == []
    with pytest.raises(ReverieError, match=r"has no variant 'bf16'; choose from fp16, non_ema, or leave it out$"):
        hub.find("owner/folder", variant="bf16")


def test_revision(server: Hub) -> None:
    place = hub.find("owner/single", revision="v2")
    assert place.parent.name == COMMITS["v2"]
    assert hub.find("owner/single").parent.name == COMMITS["main"]
    server.asked.clear()
    assert hub.find("owner/single", revision="v2") == place == hub.find("owner/single", revision=COMMITS["v2"])
    assert server.asked == []
    with pytest.raises(ReverieError, match="'owner/single' has no revision 'v3'; leave it out"):
        hub.find("owner/single", revision="v3")
    with pytest.raises(ReverieError, match=r"revision '\.\./x' is not possible"):
        hub.find("owner/single", revision="../x")


def test_single_files(server: Hub) -> None:
    assert hub.find("owner/single").name == "model.safetensors"
    assert server.fetched == {"model.safetensors"}
    with pytest.raises(ReverieError, match=r"add one to the name, after a slash: a\.safetensors, b\.safetensors$"):
        hub.find("owner/several")
    assert hub.find("owner/several/vae/c.safetensors").read_bytes() == b"3"
    with pytest.raises(ReverieError, match=r"holds no file 'd\.safetensors'; it has a\.safetensors, b\.safetensors"):
        hub.find("owner/several/d.safetensors")


def test_some_files_of_a_repository(server: Hub) -> None:
    wanted = ["tokenizer/vocab.json", "tokenizer/merges.txt"]
    place = hub.fetch("owner/folder", wanted)
    assert names(place) == set(wanted)
    server.asked.clear()
    assert hub.fetch("owner/folder", wanted) == place
    assert server.asked == []


def test_offline(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    place = hub.find("owner/single")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.asked.clear()
    assert hub.find("owner/single") == place
    with pytest.raises(ReverieError, match=r"is not whole in the cache \(.*cache\), and HF_HUB_OFFLINE is set"):
        hub.find("owner/folder")
    assert server.asked == []


def test_token(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.find("owner/single")
    assert server.tokens == {(False, "Bearer hf_secret"), (True, None)}


def test_cut_off_answers_are_taken_up_again(server: Hub) -> None:
    server.drops = 1
    assert hub.find("owner/single").read_bytes() == BIG
    assert sum(line.startswith("GET /cdn/owner/single") for line in server.asked) == 2


def test_what_is_not_whole_is_no_model(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that ends in the middle leaves nothing that a second one would take for the model."""

    def interrupted(download: hub.Download) -> None:
        if download.file.startswith("unet/diffusion"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.find("owner/folder", report=interrupted)
    assert names(hub.find("owner/folder")) == PLAIN
    assert (hub.find("owner/folder") / "unet/diffusion_pytorch_model.safetensors").read_bytes() == BIG


def test_no_such_model(server: Hub) -> None:
    with pytest.raises(ReverieError, match=r"^there is no model 'owner/none' at http://.*, or it is private; check"):
        hub.find("owner/none")
    server.gated = True
    with pytest.raises(ReverieError, match=r"^'owner/folder' asks for its conditions .*, and set HF_TOKEN$"):
        hub.find("owner/folder")
    server.gated, server.broken = False, True
    with pytest.raises(ReverieError, match=r"^cannot fetch 'owner/folder' from http://.* \(it answers 500\); check"):
        hub.find("owner/folder")


def test_no_network(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(ReverieError, match=r"^cannot fetch 'owner/folder' from http://127\.0\.0\.1:9 \(.*refused.*\)"):
        hub.find("owner/folder")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "name", ["owner/name", "stable-diffusion-v1-5/stable-diffusion-v1-5", "a/b/c.safetensors", "a/b/c/d.pt"]
)
def test_names(name: str) -> None:
    assert hub.is_name(name)


@pytest.mark.parametrize(
    "name",
    ["name", "/a/b", "./a/b", "a/../b", "a//b", "a/b/", "a b/c", "../a", "a/b/../c", "C:/a/b", "", "a/b.safetensors"],
)
def test_no_names(name: str) -> None:
    assert not hub.is_name(name)
    with pytest.raises(ReverieError, match="is no name on the hub; write owner/name"):
        hub.find(name)


def test_shards_and_pickles() -> None:
    parts = {"unet": ["diffusers", "UNet2DConditionModel"]}
    stem = "unet/diffusion_pytorch_model"
    shards = [f"{stem}-0000{part}-of-00002.safetensors" for part in (1, 2)]
    names = ["unet/config.json", f"{stem}.safetensors.index.json", f"{stem}.bin", *shards]
    assert set(folder_files(names, parts, None)) == {"model_index.json", *names} - {f"{stem}.bin"}
    with pytest.raises(LookupError, match="holds 1 of 2 shards"):
        folder_files(names[:-1], parts, None)
    assert folder_files(["unet/config.json", f"{stem}.bin"], parts, None)[-1] == f"{stem}.bin"
    with pytest.raises(LookupError, match="holds no weights for unet"):
        folder_files(["unet/config.json"], parts, None)
    with pytest.raises(LookupError, match=r"holds no unet/config\.json"):
        folder_files([f"{stem}.bin"], parts, None)


def test_the_one_checkpoint() -> None:
    assert single_file(["x.ckpt", "x.safetensors", "y.txt"], None) == "x.safetensors"
    assert single_file(["x.safetensors", "x-fp16.safetensors"], "fp16") == "x-fp16.safetensors"
    with pytest.raises(LookupError, match=r"holds neither model_index\.json nor a checkpoint"):
        single_file(["y.txt"], None)
