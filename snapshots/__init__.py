"""Stored curves and verdicts, one folder per model; shipped as package data."""
