"""Do shards that lie elsewhere give the same pairs as those here, by few bytes, and stop where they cannot?"""

from __future__ import annotations

import http.server
import io
import re
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest

from reverie.corpora.shards import write
from reverie.data import remote
from reverie.data.captioned import CaptionedPictures, open_captioned
from reverie.data.loader import Batches, BatchPart
from reverie.data.remote import Unreachable, is_remote, list_shards
from reverie.errors import RequestWarning
from reverie.train.pairs import CaptionedPairs


class Files(http.server.SimpleHTTPRequestHandler):
    """Serve files, and parts of them, which Python's own handler does not."""

    asked: list[tuple[str, str]]
    failing: list[int]

    def log_message(self, *arguments: object) -> None:
        pass

    def send_head(self) -> None:  # type: ignore[override]
        wanted = self.headers.get("Range", "")
        self.asked.append((self.path, wanted))
        path = Path(self.translate_path(self.path))
        if self.failing:
            return self.send_error(self.failing.pop())
        if not wanted or not path.is_file():
            return super().send_head()  # type: ignore[return-value]
        first, last = map(int, re.findall(r"\d+", wanted))
        content = path.read_bytes()
        self.send_response(206)
        part = content[first : last + 1]
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", f'"{hash(content)}"')
        self.end_headers()
        self.wfile.write(part)
        return None

    def copyfile(self, source: object, outputfile: object) -> None:
        if source is not None:
            super().copyfile(source, outputfile)  # type: ignore[type-var]


@pytest.fixture
def shards(cldr: None, font: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REVERIE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE", 0.0)
    remote._read.cache_clear()
    list(write(tmp_path / "shards", subset="food", count=7, seed=3, shard_size=3))
    return tmp_path / "shards"


@pytest.fixture
def server(shards: Path) -> Iterator[tuple[str, type[Files]]]:
    class Handler(Files):
        asked, failing = [], []

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(shards))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", Handler
        server.shutdown()
        remote._client(0).close()
        remote._client.cache_clear()


@pytest.fixture
def stored(shards: Path) -> Iterator[str]:
    store = fsspec.filesystem("memory")
    for path in shards.glob("*.tar"):
        store.pipe(f"/data/{path.name}", path.read_bytes())
    yield "memory://data"
    store.rm("/data", recursive=True)


def assert_same(found: CaptionedPictures, here: CaptionedPictures) -> None:
    assert len(found) == len(here) == 7
    for index in (6, 0, 3, 2, 5, 1, 4):
        assert found.caption(index) == here.caption(index)
        assert np.array_equal(np.asarray(found.picture(index)), np.asarray(here.picture(index)))


def test_a_web_servers_shards_are_those_here(shards: Path, server: tuple[str, type[Files]]) -> None:
    url, handler = server
    here = open_captioned(shards)
    for address in (url, f"{url}/", f"{url}/{{00000..00002}}.tar"):
        found = open_captioned(address)
        assert_same(found, here)  # type: ignore[arg-type]
    sizes = {path.name: path.stat().st_size for path in shards.glob("*.tar")}
    assert [entry[:2] for entry in found.identity] == [[name, sizes[name]] for name in sorted(sizes)]  # type: ignore[index]
    handler.asked.clear()
    remote._read.cache_clear()
    found = open_captioned(url)
    assert len(handler.asked) == 4  # the listing, and what the three shards are: their indices are kept
    found.caption(5)
    assert len(handler.asked) == 4
    found.size(5), found.picture(5)
    (_, asked) = handler.asked[4]
    first, last = map(int, re.findall(r"\d+", asked))
    assert len(handler.asked) == 5
    assert last - first + 1 < min(sizes.values()) / 3  # the picture alone
    assert found.place(5).startswith(f"at byte {first} of {url}/00001.tar")


def test_a_stores_shards_are_those_here(shards: Path, stored: str) -> None:
    assert_same(open_captioned(stored), open_captioned(shards))  # type: ignore[arg-type]
    assert_same(open_captioned(f"{stored}/0000{{0..2}}.tar"), open_captioned(shards))  # type: ignore[arg-type]
    fsspec.filesystem("memory").pipe("/data/00001.tar", (shards / "00002.tar").read_bytes())  # changed: read again
    assert len(open_captioned(stored)) == 5


@pytest.mark.parametrize("workers", [0, 1])
def test_ranks_and_workers_share_the_pairs_of_a_step_from_any_on(stored: str, shards: Path, workers: int) -> None:
    """The second pass of 7 pairs begins within step 1: a run that goes on there sees what one from the start saw."""
    here, there = (CaptionedPairs(open_captioned(path), 5, 16, 1.0) for path in (shards, stored))
    whole = Batches(here, 4)
    expected = [whole(step)[1] for step in range(4)]
    for rank in range(2):
        part = BatchPart(rank, 2)
        goes_on = Batches(there, 4, workers)
        assert [list(goes_on(step, part)[1]) for step in (1, 2, 3)] == [
            list(captions[2 * rank : 2 * rank + 2]) for captions in expected[1:]
        ]


def test_what_cannot_be_opened_is_said_in_a_line(server: tuple[str, type[Files]], tmp_path: Path) -> None:
    url, handler = server
    refused = {
        f"{url}/none.tar": "cannot read .*/none.tar: its server answered 404",
        f"{url}/none": "cannot read .*/none/: its server answered 404",
        "http://127.0.0.1:9/a.tar": "cannot read http://127.0.0.1:9/a.tar: .*refused",
        "memory://nothing": "no shards in memory://nothing; give the address",
        "memory://nothing/a.tar": "cannot read memory://nothing/a.tar: there is no such file",
        "nonsense://a/b.tar": "cannot read nonsense://a/b.tar: Protocol not known: nonsense",
        "s3://key:secret@bucket/a.tar?X-Amz-Signature=abc": r"cannot read s3://bucket/a.tar: .*s3fs",
    }
    for address, message in refused.items():
        assert is_remote(address)
        with pytest.raises(Unreachable, match=message) as caught:
            open_captioned(address)
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)
        assert "abc" not in str(caught.value)
    handler.send_head = http.server.SimpleHTTPRequestHandler.send_head  # type: ignore[method-assign,assignment]
    with pytest.raises(Unreachable, match=r"does not give parts of files \(HTTP Range\); serve the shards by one that"):
        list_shards(f"{url}/00000.tar")


def test_a_server_that_stumbles_is_asked_again_and_one_that_is_gone_ends_the_run(
    server: tuple[str, type[Files]],
) -> None:
    url, handler = server
    found = open_captioned(url)
    expected = np.asarray(found.picture(4))
    remote._read.cache_clear()
    handler.failing.extend([503, 429, 500])
    assert np.array_equal(np.asarray(found.picture(4)), expected)
    assert not handler.failing
    remote._read.cache_clear()
    handler.failing.extend([503] * remote.ATTEMPTS)
    with pytest.raises(Unreachable, match="its server answered 503"):
        CaptionedPairs(found, 0, 16, 1.0)(0)  # a damaged picture would be passed over
    assert not handler.failing


def test_a_damaged_shard_elsewhere_is_told_each_time(stored: str, shards: Path) -> None:
    whole = (shards / "00001.tar").read_bytes()
    fsspec.filesystem("memory").pipe("/data/00001.tar", whole[: len(whole) // 2 - 700])
    for _ in range(2):
        with pytest.warns(RequestWarning, match=r"1 of 3 shards are damaged .*memory:///data/00001.tar after"):
            assert len(open_captioned(stored)) < 7


def test_captions_elsewhere_may_all_be_empty(stored: str) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name in ("1.png", "1.txt"):
            tar.addfile(tarfile.TarInfo(name))
    fsspec.filesystem("memory").pipe("/data/empty.tar", content.getvalue())
    assert open_captioned(f"{stored}/empty.tar").caption(0) == ""
