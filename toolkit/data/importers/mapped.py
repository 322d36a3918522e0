"""Rows whose columns are called as people call them, for formats that are no data set of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, ClassVar

from ..record import CARRIERS, PICTURED, SEEN, Carrier, Label
from ..record import LABELS as SAID
from .conversation import conversation, pictures_of
from .importer import Draft, Importer
from .rows import BadRow, Row, require_columns
from .source import LABELS, Option, Source

# Column → the label that a yes in it says; a no says the other.
_YES: Mapping[str, Label] = MappingProxyType(
    {
        **dict.fromkeys(("harmful", "is_harmful", "unsafe", "is_unsafe"), "harmful"),
        **dict.fromkeys(("harmless", "is_harmless", "safe", "is_safe", "benign", "is_benign"), "harmless"),
    }
)
_ANSWERS: Mapping[str, bool] = MappingProxyType(
    {
        **dict.fromkeys(("true", "yes", "1", "1.0"), True),
        **dict.fromkeys(("false", "no", "0", "0.0"), False),
    }
)

# Field of a record → the columns that are taken for it, the first that is there.
ALIASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "id": ("id", "question_id", "uid"),
        "prompt": ("prompt", "question", "instruction", "query", "text"),
        "messages": ("messages",),
        "image": ("image", "image_path", "img", "file_name", "picture"),
        "images": ("images",),
        "label": ("label", *_YES),
        "response": ("response", "answer"),
        "category": ("category", "policy", "topic"),
        "carrier": ("carrier",),
        "group": ("group",),
    }
)
_CARRIERS: Mapping[str, Carrier] = {name: name for name in CARRIERS}
_LISTS = ("messages", "images")  # fields for which no text is taken, unless it is named
_CORRECT = "Correct the row, or say which of them counts, such as"
_MESSAGES = "It is a list of objects of `role` and `content`."
NAMED = (*ALIASES, *SAID)  # what a column may be named for
_TABLES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".txt", ".xls", ".xlsx", ".gz", ".zip")


def column_of(field: str, found: Mapping[str, object], source: Source) -> str | None:
    """The column of ``found`` that holds a field of a record; None without one."""
    if field in source.columns:
        return source.columns[field]
    if field == "messages" and column_of("prompt", found, source) is not None:
        return None  # what is asked is said already
    if field == "label" and (stated := [source.columns[one] for one in SAID if one in source.columns]):
        return stated[0]
    fit = (name for name in ALIASES[field] if name in found)
    return next((name for name in fit if field not in _LISTS or not isinstance(found[name], str)), None)


def require_mapping(file: str, names: list[str], source: Source) -> None:
    """Refuse a table whose columns do not say what a record needs.

    Raises:
        BadRow: a column that was named is not there, or there is neither a column nor an option for a field.
    """
    require_columns(file, names, source.columns.values())
    for field, given in (("prompt", source.prompt), ("label", source.label)):
        if field == "prompt" and column_of("messages", dict.fromkeys(names), source) is not None:
            continue
        if given is None and column_of(field, dict.fromkeys(names), source) is None:
            raise BadRow(
                file,
                "",
                field,
                f"no column is called {' or '.join(ALIASES[field])}, but {', '.join(names)}",
                f"Name it (--column {field}=NAME), or give all records one: --{field}.",
            )


def drafted(row: Row, source: Source) -> Draft:
    """A record of a row, whose picture is a path, the bytes of a file, or a mapping of ``bytes`` and ``path``.

    Raises:
        BadRow: a value is wrong, or a picture is not there.
    """
    column = {field: column_of(field, row.values, source) for field in ALIASES}

    def word(field: str) -> str:
        name = column[field]
        return row.word(name) if name is not None and row.has(name) else ""

    held, several = _picture(row, column["image"], source), _pictures(row, column["images"], source)
    carrier, said = column["carrier"], None
    label = source.stated("label") if column["label"] is None else _agreed(row, column["label"], source)
    if column["messages"] is not None:
        if column["prompt"] is not None and row.has(column["prompt"]):
            raise row.bad(column["messages"], "stands beside a prompt, and a record has one of them")
        said = conversation(row, column["messages"], source)
        several += said.named
        if (given := len(several) + (held is not None)) != said.shown:
            raise row.bad(column["messages"], f"shows {said.shown} pictures, and the row names {given}")
        prompt: Any = ""
    else:
        prompt = source.stated("prompt") if column["prompt"] is None else row.text(column["prompt"])
    if held is not None and several:
        raise row.bad(column["images"] or "image", "holds pictures beside that of another column")
    if label is None or prompt is None:
        if prompt is None and isinstance(row.values.get("messages"), str):
            raise row.bad("messages", "is a text, and no list of messages", _MESSAGES)
        field = "prompt" if prompt is None else "label"
        raise row.bad(field, "is missing", f"Name its column (--column {field}=NAME), or pass --{field}.")
    shown = held is not None or bool(several)
    found: Carrier = PICTURED if shown else "text"
    if carrier is not None and row.has(carrier):
        found = row.one_of(carrier, _CARRIERS)
    if not shown and found in SEEN:
        raise row.bad(column["image"] or "image", f"there is no picture, but the carrier is {found}")
    return Draft(
        word("id") or row.key,
        prompt,
        label,
        found,
        held,
        field=column["image"] or "image",
        response=word("response") or (said.answer if said else "") or None,
        category=word("category") or source.stated("category") or "",
        group=word("group"),
        pictures=several,
        messages=said.messages if said else (),
    )


def _agreed(row: Row, column: str, source: Source) -> Label:
    """The label that a column says, and no other one denies.

    Raises:
        BadRow: it says none, or two columns, neither of which the user names, say different ones.
    """
    label = _labelled(row, column, source)
    if column in source.columns.values():
        return label
    for other in ALIASES["label"]:
        if other != column and row.has(other):
            try:
                denied = _labelled(row, other, source) != label
            except BadRow:  # a column of something else
                continue
            if denied:
                raise row.bad(other, f"says another label than {column}", f"{_CORRECT} --column label={column}.")
    return label


def _labelled(row: Row, column: str, source: Source) -> Label:
    """The label that a column says: in words, or with a yes where the column's name or the user says what that means.

    Raises:
        BadRow: it says neither.
    """
    stated = [one for one in SAID if source.columns.get(one) == column]
    yes = stated[0] if stated else _YES.get(column.casefold())
    known = {name: label for name, label in LABELS.items() if not stated}
    if yes is not None:
        (no,) = (one for one in SAID if one != yes)
        known |= {name: yes if answer else no for name, answer in _ANSWERS.items()}
    try:
        return row.one_of(column, known)  # type: ignore[no-any-return]
    except BadRow as error:
        fix = error.next_step
        if yes is None and error.reason != "is missing":
            fix += f" Or state what a yes means: --column harmful={column} or --column harmless={column}."
        raise row.bad(column, error.reason, fix) from None


def keyed(rows: Iterable[Row], name: str, files: Sequence[str]) -> Iterator[Row]:
    """Rows of one of several ``files``, whose keys say which."""
    if len(files) < 2:
        yield from rows
        return
    path = PurePosixPath(name)
    for row in rows:
        within = path.parent if row.key.startswith(f"{path.stem}/") else path.with_suffix("")
        yield replace(row, key=str(within / row.key))


def _picture(row: Row, column: str | None, source: Source) -> Path | bytes | None:
    """What the column of pictures holds; None where it is empty."""
    found = None if column is None else row.values.get(column)
    if isinstance(found, Mapping):
        found = found.get("bytes") or found.get("path")
    if column is None or not found or isinstance(found, bytes):
        return found or None
    if not isinstance(found, str):
        raise row.bad(column, f"is {type(found).__name__}, and no picture", "It holds paths or the bytes of files.")
    return source.picture(row, column, found)


def _pictures(row: Row, column: str | None, source: Source) -> tuple[Path | bytes, ...]:
    """What the column of lists of pictures holds; nothing where it is empty."""
    return pictures_of(row, column, source) if column is not None and row.values.get(column) else ()


class MappedImporter(Importer):
    """Reads a format of rows whose columns are called as people call them.

    Attributes:
        alone: the folder holds nothing else that could be meant.
    """

    takes: ClassVar[tuple[Option, ...]] = ("images", "label", "category", "prompt", "columns")
    alone: ClassVar[bool] = False

    def drafts(self, row: Row, source: Source) -> Iterable[Draft]:
        """One record of each row."""
        yield drafted(row, source)

    def unused(self, row: Row, source: Source) -> Iterable[str]:
        """All columns that no field of a record is taken from."""
        used = {column_of(field, row.values, source) for field in ALIASES}
        return [name for name in row.values if name not in used]

    def unread(self, source: Source) -> Iterable[str]:
        """Files that may hold rows in another form, or lie deeper."""
        if self.alone or source.path.is_file():
            return ()
        read = set(source.find(*self.files))
        found = sorted(path for pattern in ("*.*", "*/*.*") for path in source.matching(pattern) if path.is_file())
        names = [path.relative_to(source.folder).as_posix() for path in found if path.suffix.lower() in _TABLES]
        return [name for name in names if name not in read]
