"""Corpora: one file each, read-only on the user's data."""
