"""Importing from a folder as its publishers have it."""

from __future__ import annotations

from safetykit.toolkit.data.importers import Source, get_importer
from safetykit.toolkit.data.importing import import_records


def read(kind, path, out, said=None, **options):
    return import_records(get_importer(kind), Source(path, **(said or {})), out, **options)
