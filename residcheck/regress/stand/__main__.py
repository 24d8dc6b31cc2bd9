"""``python stand`` serves: see ``witness.serving``."""

from witness.serving import serve  # type: ignore[import-not-found]

serve()
