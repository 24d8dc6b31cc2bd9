"""syrupy's JSON files with tolerance, one per model and measurement, safe to update.

What differs from syrupy's own: a model's id is encoded in the path, not dropped from it;
updating with fewer models deletes nothing; CI cannot update; a curve matches within the
tolerance of its dtype, and a mismatch says which layer, how far, and how to accept it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syrupy.data import SnapshotCollection, SnapshotCollections
from syrupy.extensions.single_file import SingleFileSnapshotExtension, WriteMode

from residcheck.errors import ResidcheckError, RunFileError
from residcheck.snapshot import store

if TYPE_CHECKING:
    from syrupy.location import PyTestLocation
    from syrupy.types import SerializableData, SerializedData, SnapshotIndex

ACCEPT = "pytest --pyargs residcheck.claims --model MODEL --snapshot-update"


class ResidcheckSnapshotExtension(SingleFileSnapshotExtension):
    """Stores the documents of :mod:`residcheck.snapshot.store`.

    ``folder`` is where snapshots are read first and written; the plugin sets it. The
    snapshot's name (``snapshot(name=...)``) is its key, ``<encoded model>/<name>``.
    """

    folder = Path("snapshots")
    file_extension = "json"
    _write_mode = WriteMode.TEXT

    def serialize(self, data: SerializableData, **options: Any) -> SerializedData:
        return store.dumps(data)

    def matches(self, *, serialized_data: Any, snapshot_data: Any) -> bool:
        return _explain(serialized_data, snapshot_data) is None

    def diff_lines(self, serialized_data: Any, snapshot_data: Any) -> Iterator[str]:
        if snapshot_data:
            yield from (_explain(serialized_data, snapshot_data) or "").splitlines()

    @classmethod
    def get_location(cls, *, test_location: PyTestLocation, index: SnapshotIndex) -> str:
        return str(cls.folder / f"{index}.json")

    @classmethod
    def dirname(cls, *, test_location: PyTestLocation) -> str:
        return str(cls.folder)

    @classmethod
    def matches_test_location(cls, **location: Any) -> bool:
        return True  # files are named after models and curves, not after tests

    def discover_snapshots(self, **options: Any) -> SnapshotCollections:
        return SnapshotCollections()  # nothing is unused: other models have theirs here

    def read_snapshot_data_from_location(
        self, *, snapshot_location: str, snapshot_name: str, session_id: str
    ) -> str | None:
        key = Path(snapshot_location).relative_to(self.folder).with_suffix("")
        path = store.find(self.folder, key.as_posix())
        return None if path is None else path.read_text(encoding="utf-8")

    @classmethod
    def write_snapshot_collection(
        cls, *, snapshot_collection: SnapshotCollection, **options: Any
    ) -> None:
        if reason := store.writing_forbidden():
            raise ResidcheckError(reason)
        path = Path(snapshot_collection.location)
        partial = path.with_suffix(".partial")
        partial.write_text(str(next(iter(snapshot_collection)).data), encoding="utf-8")
        partial.replace(path)


def _explain(measured_text: str, stored_text: str) -> str | None:
    """Why two documents differ, or None if they are the same up to rounding."""
    try:
        measured = store.loads(measured_text, "that was measured")
        stored = store.loads(stored_text, "that is stored")
    except RunFileError as error:
        return str(error)
    if reason := store.otherwise(stored["provenance"], measured["provenance"]):
        return f"{reason}\n  make it again with: {ACCEPT}"
    if stored["kind"] == "verdict":
        then, now = stored["verdict"]["verdict"], measured["verdict"]["verdict"]
        if then == now:
            return None
        return f"verdict changed: {then} -> {now}\n  accept it with: {ACCEPT}"
    comparison = store.compare_documents(stored, measured)
    return None if comparison.same else comparison.message(ACCEPT)
