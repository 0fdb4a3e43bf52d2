"""Thin adapters: keep your trainer, change about three lines (docs/integrations.md).

`lightning`, `huggingface` and `skorch` are modules of this package; each needs the library of its name and says so.
"""
