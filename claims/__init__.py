"""The documented claims, one family to a file. Installed as ``residcheck.claims``."""
