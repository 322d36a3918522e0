"""Reading the data sets that people have: what an importer is, and which there are. Free of torch at import."""

from .importer import Draft, Importer
from .registry import get_importer, importers, recognised, register
from .rows import BadRow, Row
from .source import Source

__all__ = ["BadRow", "Draft", "Importer", "Row", "Source", "get_importer", "importers", "recognised", "register"]
