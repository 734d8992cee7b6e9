"""What is kept in the user's cache folder is trusted only where it is intact and was made from the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from roadmap.config import DataSpec
from roadmap.data import digits
from roadmap.provenance import CACHE_FOLDER, cache_folder, cached
from roadmap.report import runs as gather
from roadmap.steps import load_roadmap, resolve


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / CACHE_FOLDER


def maker(made: list[str], text: str = "97.5 ±\n") -> Callable[[], str]:
    def make() -> str:
        made.append(text)
        return text

    return make


def test_what_was_made_is_made_once_for_each_that_decides_it(cache: Path) -> None:
    made: list[str] = []
    assert [cached("a", key, maker(made)) for key in ("one", "one", "other", "one")] == ["97.5 ±\n"] * 4
    assert len(made) == len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: text[:-1],
        lambda text: text.replace(b"7", b"8"),
        lambda text: b"\xff\n\xff",
    ],
)
def test_a_damaged_file_is_made_again(cache: Path, damage: Callable[[bytes], bytes]) -> None:
    made: list[str] = []
    cached("a", "one", maker(made))
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert cached("a", "one", maker(made)) == "97.5 ±\n"
    assert (len(made), path.read_bytes()) == (2, whole)


def test_a_file_that_was_made_from_something_else_is_not_taken(cache: Path) -> None:
    cached("a", "one", lambda: "1")
    (one,) = cache.iterdir()
    cached("a", "two", lambda: "2")
    (two,) = set(cache.iterdir()) - {one}
    one.write_bytes(two.read_bytes())
    assert cached("a", "one", lambda: "1 again") == "1 again"


def test_without_a_writable_folder_nothing_is_cached(cache: Path) -> None:
    cache.parent.write_text("a file", encoding="utf-8")
    made: list[str] = []
    assert [cached("a", "one", maker(made)) for _ in range(2)] == ["97.5 ±\n"] * 2
    assert len(made) == 2


def test_a_relative_cache_folder_does_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert cache_folder() == tmp_path / ".cache" / CACHE_FOLDER


def test_the_regression_is_trained_once_for_each_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = resolve(load_roadmap(), "gelu", profile="digits").data
    other = spec.model_copy(update={"noise": 2.0})
    trained, real = [], digits.logistic_regression

    def train(data: DataSpec) -> float:
        trained.append(data)
        return real(data)

    monkeypatch.setattr(digits, "logistic_regression", train)
    gather._logistic_regression.cache_clear()
    first = [gather._logistic_regression(data) for data in (spec, other)]
    gather._logistic_regression.cache_clear()  # as in another process
    assert [gather._logistic_regression(data) for data in (spec, other)] == first == [real(spec), real(other)]
    assert trained == [spec, other]
