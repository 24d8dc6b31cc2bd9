"""Stored curves and verdicts, and the check that nothing has moved.

The syrupy extension is in :mod:`residcheck.snapshot.extension`; nothing here needs syrupy.
"""

from residcheck.snapshot.store import comparable as comparable
from residcheck.snapshot.store import compare_documents as compare_documents
from residcheck.snapshot.store import curve_document as curve_document
from residcheck.snapshot.store import dumps as dumps
from residcheck.snapshot.store import find as find
from residcheck.snapshot.store import key as key
from residcheck.snapshot.store import otherwise as otherwise
from residcheck.snapshot.store import read as read
from residcheck.snapshot.store import recorded_outcome as recorded_outcome
from residcheck.snapshot.store import verdict_document as verdict_document
from residcheck.snapshot.store import verdict_name as verdict_name
from residcheck.snapshot.store import verdict_of_controls as verdict_of_controls
from residcheck.snapshot.store import writing_forbidden as writing_forbidden
