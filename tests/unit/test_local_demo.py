"""The parts of the demo that need no stack: data folder, ports, declarations, comparison, percentiles."""

import importlib.util
import socket
import stat
import sys
from pathlib import Path
from types import ModuleType

import pytest

from local import demo_spec
from local.demo_compare import Difference, _difference
from local.demo_freshness import percentiles
from local.demo_spec import BackOffice, Demo, User
from local.folder import Folder, Ports
from tidegate import bubble as bubbles
from tidegate.errors import Fatal


class TestFolder:
    def test_secrets_are_kept_and_private(self, tmp_path: Path) -> None:
        first = Folder(tmp_path, "parcels")
        with first.opened(reset=False):
            secret = first.secret("worker_login")
            assert secret != first.secret("reader_login")
        file = tmp_path / "parcels" / "secrets.json"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        second = Folder(tmp_path, "parcels")
        with second.opened(reset=False):
            assert second.secret("worker_login") == secret
        with second.opened(reset=True):
            assert second.secret("worker_login") != secret

    def test_only_one_demo_at_a_time(self, tmp_path: Path) -> None:
        with Folder(tmp_path, "parcels").opened(reset=False):
            with pytest.raises(Fatal, match="in use by another demo"), Folder(tmp_path, "parcels").opened(reset=False):
                pass
            with Folder(tmp_path, "flights").opened(reset=False):
                pass

    def test_the_front_starts_afresh_after_a_crash_and_the_back_offices_do_not(self, tmp_path: Path) -> None:
        folder = Folder(tmp_path, "parcels")
        with folder.opened(reset=False):
            (folder.front / "stream").touch()
            (folder.offices / "rows").touch()
            folder.left_in_order()
        with folder.opened(reset=False):
            assert (folder.front / "stream").exists()
            # Not left in order this time.
        with folder.opened(reset=False):
            assert not (folder.front / "stream").exists()
            assert (folder.offices / "rows").exists()
            folder.left_in_order()
        with folder.opened(reset=True):
            assert not (folder.offices / "rows").exists()

    def test_a_place_that_cannot_be_a_folder_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(Fatal, match="--data"), Folder(tmp_path / "file", "parcels").opened(reset=False):
            pass


def test_a_taken_port_gives_the_next_free_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        wanted = taken.getsockname()[1]
        ports = Ports()
        first = ports.take(wanted)
        assert first > wanted
        # Given out but not yet bound: not given twice.
        assert ports.take(first) > first


class TestDeclaration:
    @pytest.mark.parametrize("name", ["parcels", "flights"])
    def test_the_samples_declare_what_their_bubble_needs(self, name: str) -> None:
        path = demo_spec.bubble_path(name)
        bubble, demo = bubbles.load(path), demo_spec.load(path)
        offices = demo.back_offices
        told = {env for office in offices for env in (office.url_env, office.key_env, office.bucket_env)}
        assert {env.name for env in bubble.environment} <= told
        entities = {entity for office in offices for entity in office.entities}
        assert entities == {shape.name for shape in bubble.shapes}
        assert set(demo.observer_sees) <= entities
        burst = [office.burst for office in offices]
        assert sum(each.deletes for each in burst) >= 200

    def test_a_missing_demo_is_said(self) -> None:
        with pytest.raises(Fatal, match=r"there is no module tidegate.demo"):
            demo_spec.load("tidegate.bubble")

    def test_an_empty_demo_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module = ModuleType("empty_demo_sample.demo")
        module.__spec__ = importlib.util.find_spec("local.demo_spec")
        package = ModuleType("empty_demo_sample")
        package.__path__ = []
        monkeypatch.setitem(sys.modules, "empty_demo_sample", package)
        monkeypatch.setitem(sys.modules, "empty_demo_sample.demo", module)
        with pytest.raises(Fatal, match="no `demo = Demo"):
            demo_spec.load("empty_demo_sample.bubble")
        module.__dict__["demo"] = Demo(back_offices=(), users=(User("a", "A"),))
        with pytest.raises(Fatal, match="at least one back office"):
            demo_spec.load("empty_demo_sample.bubble")
        fine = Demo(back_offices=(BackOffice(name="x", entities=("y",)),), users=(User("a", "A"),))
        module.__dict__["demo"] = fine
        assert demo_spec.load("empty_demo_sample.bubble") is fine


class TestComparison:
    def test_each_kind_of_difference_is_counted_and_named(self) -> None:
        expected: dict[str, dict[str, object]] = {"1": {"a": 1}, "2": {"a": 2}, "3": {"a": 3}}
        found: dict[str, dict[str, object]] = {"2": {"a": 2}, "3": {"a": 0}, "4": {"a": 4}, "5": {"a": 5}}
        difference = _difference("thing", expected, found)
        assert (difference.missing, difference.stale, difference.ghosts) == (1, 1, 2)
        assert (difference.rows_back_office, difference.rows_front_office) == (3, 4)
        assert difference.examples == ("missing thing 1", "stale thing 3", "ghost thing 4", "ghost thing 5")
        assert not difference.is_none

    def test_equal_is_none_and_sums_add_up(self) -> None:
        rows: dict[str, dict[str, object]] = {"1": {"a": 1}}
        equal = _difference("thing", rows, rows)
        assert equal.is_none
        total = equal + _difference("thing", rows, {}) + Difference()
        assert (total.rows_back_office, total.missing) == (2, 1)


def test_percentiles_are_nearest_rank() -> None:
    result = percentiles(range(1, 101))
    assert (result.p50, result.p99, result.most, result.samples) == (50, 99, 100, 100)
    assert percentiles([7.4]).p99 == 7
    assert percentiles([]).p50 is None
