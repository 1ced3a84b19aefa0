"""Is what was kept taken again only where it was made of the same, and is whole?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reverie.errors import ReverieError
from reverie.train.kept import is_kept, keep, read_tensor


def test_what_is_kept_comes_back_for_what_it_was_made_of(tmp_path: Path) -> None:
    path, content = tmp_path / "new" / "kept.safetensors", torch.arange(6).view(2, 3).half()
    assert not is_kept("八音盒", path)
    keep(content, "八音盒", path)
    assert torch.equal(read_tensor(path), content)
    assert is_kept("八音盒", path)
    assert not is_kept("koto", path)
    assert list(path.parent.iterdir()) == [path]
    path.write_bytes(path.read_bytes()[:-4])
    assert not is_kept("八音盒", path)


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "kept.safetensors" / "taken").mkdir(parents=True)
    with pytest.raises(ReverieError, match=r"cannot write '.*kept\.safetensors'"):
        keep(torch.zeros(1), "", tmp_path / "kept.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.safetensors"]
