"""Does a warning go to whoever listens in the same thread, and to nobody else?"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from reverie.errors import RequestWarning, listen, warn


def test_each_thread_hears_its_own_warnings() -> None:
    """The two listen at once, and the first to begin is the last to end."""
    steps, end = Barrier(2), Barrier(2)

    def work(name: str) -> list[str]:
        heard: list[str] = []
        with listen(heard.append):
            for index in range(3):
                steps.wait(10)
                warn(f"{name} {index}")
            if name == "a":
                end.wait(10)
        if name == "b":
            end.wait(10)
        return heard

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, "ab")) == [[f"{name} {index}" for index in range(3)] for name in "ab"]


def test_where_nobody_listens_python_is_told() -> None:
    with listen(str), ThreadPoolExecutor(1) as pool, pytest.warns(RequestWarning, match="a long prompt"):
        pool.submit(warn, "a long prompt", RequestWarning).result()
    with pytest.warns(UserWarning, match="from here") as caught:
        warn("from here")
    assert [warning.filename for warning in caught] == [__file__]


def test_an_inner_listener_hears_alone() -> None:
    outer: list[str] = []
    inner: list[str] = []
    with listen(outer.append):
        with listen(inner.append):
            warn("1")
        warn("2")
    assert (outer, inner) == (["2"], ["1"])
