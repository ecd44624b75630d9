"""Rows of a table in any common format, with pictures left where they are."""

from __future__ import annotations

import csv
import sys
from collections.abc import Collection, Iterator
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from btp.tasks.files.images import PictureCell
from btp.tasks.files.json_nesting import json_of
from btp.tasks.files.local import read_json, read_text
from btp.tasks.shown import short

MOST_ROWS, MOST_BYTES = 2_000_000, 4 * 2**30  # of one table, pictures apart; rows become objects in memory
FORMATS = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
Row = dict[str, Any]


def read_rows(path: Path, key: str) -> list[Row]:
    """The rows of a table; a binary cell of a parquet file is a PictureCell, or a list of them, and a path where it
    holds {path} without bytes.

    Cells of csv and tsv that begin with [ are read as JSON lists; empty ones are left out.

    Args:
        path: .json (a list of objects, or an object that holds one), .jsonl, .csv, .tsv or .parquet.
        key: config key that named it.

    Raises:
        ValueError: the format is not known, the file is broken or not UTF-8, or it is too large to be read whole.
    """
    ending = path.suffix.lower()
    if ending not in FORMATS:
        raise ValueError(f"{key} is {path}, which is none of {', '.join(FORMATS)}. Name a file of one of these kinds.")
    if ending == ".parquet":
        return list(_parquet(path, key))
    _bounded(path, key, size=path.stat().st_size)
    if ending in (".csv", ".tsv"):
        rows = _csv(read_text(path, key), "\t" if ending == ".tsv" else ",")
        return _at_most(list(islice(rows, MOST_ROWS + 1)), path, key)
    found = read_json(path, key)
    if isinstance(found, dict):
        lists = [value for value in found.values() if _is_rows(value)]
        found = lists[0] if len(lists) == 1 else [found] if ending == ".jsonl" else None
    if not isinstance(found, list) or (found and not _is_rows(found)):
        raise ValueError(f"{path} holds no list of objects. Write one object per question, or correct {key}.")
    return _at_most(found, path, key)


def _at_most(rows: list[Row], path: Path, key: str) -> list[Row]:
    _bounded(path, key, rows=len(rows))
    return rows


def _bounded(path: Path, key: str, rows: int = 0, size: int = 0) -> None:
    """Refuse a table that would fill the memory."""
    if rows > MOST_ROWS or size > MOST_BYTES:
        found = f"more than {MOST_ROWS:,} rows" if rows > MOST_ROWS else f"{size / 2**30:.1f} GiB of text"
        found += f" ({rows:,})" if rows > MOST_ROWS + 1 else ""
        raise ValueError(
            f"{path} holds {found}, but a table is read whole: at most {MOST_ROWS:,} rows and {MOST_BYTES / 2**30:.0f} "
            f"GiB. Write the rows that you mean into a table of their own, and set {key} to it."
        )


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _csv(text: str, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    for row in csv.DictReader(StringIO(text, newline=""), delimiter=delimiter):
        yield {name: _cell(cell) for name, cell in row.items() if name is not None and cell not in (None, "")}


def _cell(text: str) -> Any:
    if not text.startswith("["):
        return text
    try:
        return json_of(text)
    except ValueError:
        return text


def _parquet(path: Path, key: str) -> Iterator[Row]:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no parquet file: {short(error)}. Get it anew, or correct {key}.") from None
    kinds = {field.name: _binary(field.type) for field in file.schema_arrow}
    plain = [name for name, kind in kinds.items() if kind is None]
    _bounded(path, key, rows=file.metadata.num_rows, size=_bytes(file.metadata, plain))
    pictures = [(name, kind) for name, kind in kinds.items() if kind is not None]
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        try:
            rows = file.read_row_group(group, columns=plain).to_pylist() if plain else [{} for _ in range(count)]
            cells = {name: _pictures(file, path, group, name, kind) for name, kind in pictures}
        except Exception as error:  # of a corrupt page arrow raises anything
            raise ValueError(
                f"{path} is broken: row group {group} of {file.num_row_groups} cannot be read: "
                f"{short(error).rstrip('.')}. Get it anew, or correct {key}."
            ) from None
        for i, row in enumerate(rows):
            found = row | {name: column[i] for name, column in cells.items()}
            yield {name: value for name, value in found.items() if value is not None}


def _bytes(metadata: Any, names: Collection[str]) -> int:
    """Bytes of columns once they are unpacked, as the file's foot says."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    return sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] in names)


def _binary(kind: pa.DataType) -> str | None:
    """one | several, where a column holds pictures as bytes or {bytes, path}; None where it does not."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return "several" if _binary(kind.value_type) == "one" else None
    if pa.types.is_struct(kind):
        return "one" if kind.get_field_index("bytes") >= 0 else None
    return "one" if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else None


def _pictures(file: pq.ParquetFile, path: Path, group: int, name: str, kind: str) -> list[Any]:
    """What each row of a group holds: a PictureCell, a path, None, or a list of these. Bytes are not kept."""
    whole = file.metadata.row_group(group)
    if kind == "one" and _nulls(whole, name) == 0:
        return [PictureCell(path, name, group, i) for i in range(whole.num_rows)]
    found: list[Any] = []
    for i, value in enumerate(file.read_row_group(group, columns=[name]).column(0)):
        if kind == "one":
            found.append(_picture(value, PictureCell(path, name, group, i)))
        else:
            listed = list(value.values) if value.is_valid else []
            found.append([_picture(v, PictureCell(path, name, group, i, place)) for place, v in enumerate(listed)])
    return found


def _nulls(group: Any, name: str) -> int | None:
    """Rows of a group without bytes in a column; None where the file does not say."""
    for i in range(group.num_columns):
        column = group.column(i)
        if column.path_in_schema in (name, f"{name}.bytes"):
            found = column.statistics
            return found.null_count if found is not None and found.has_null_count else None
    return None


def _picture(value: Any, cell: PictureCell) -> PictureCell | str | None:
    """The cell where it holds bytes, otherwise the path that it holds."""
    if not value.is_valid:
        return None
    if not pa.types.is_struct(value.type):
        return cell
    return cell if value["bytes"].is_valid else value["path"].as_py() if "path" in value else None
