"""Rows of a table in any common format, with pictures left where they are."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from btp.tasks.local import read_json
from btp.tasks.pictures import PictureCell

FORMATS = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
Row = dict[str, Any]


def read_rows(path: Path, key: str) -> list[Row]:
    """The rows of a table; a binary cell of a parquet file is a PictureCell, or a list of them.

    Cells of csv and tsv that begin with [ are read as JSON lists; empty ones are left out.

    Args:
        path: .json (a list of objects, or an object that holds one), .jsonl, .csv, .tsv or .parquet.
        key: config key that named it.

    Raises:
        ValueError: the format is not known, or the file is broken.
    """
    if path.suffix not in FORMATS:
        raise ValueError(f"{key} is {path}, which is none of {', '.join(FORMATS)}. Name a file of one of these kinds.")
    if path.suffix == ".parquet":
        return list(_parquet(path, key))
    if path.suffix in (".csv", ".tsv"):
        return list(_csv(path, "\t" if path.suffix == ".tsv" else ","))
    found = read_json(path, key)
    if isinstance(found, dict):
        lists = [value for value in found.values() if _is_rows(value)]
        found = lists[0] if len(lists) == 1 else [found] if path.suffix == ".jsonl" else None
    if found != [] and not _is_rows(found):
        raise ValueError(f"{path} holds no list of objects. Write one object per question, or correct {key}.")
    return found


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _csv(path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    with path.open(newline="", encoding="utf-8-sig") as file:
        for row in csv.DictReader(file, delimiter=delimiter):
            yield {name: _cell(text) for name, text in row.items() if name is not None and text not in (None, "")}


def _cell(text: str) -> Any:
    if not text.startswith("["):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _parquet(path: Path, key: str) -> Iterator[Row]:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is no parquet file: {error}. Get it anew, or correct {key}.") from None
    kinds = {field.name: _binary(field.type) for field in file.schema_arrow}
    plain = [name for name, kind in kinds.items() if kind is None]
    pictures = [(name, kind) for name, kind in kinds.items() if kind is not None]
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        rows = file.read_row_group(group, columns=plain).to_pylist() if plain else [{} for _ in range(count)]
        sizes = {name: _lengths(file, group, name) for name, kind in pictures if kind == "several"}
        for i, row in enumerate(rows):
            row = {name: value for name, value in row.items() if value is not None}
            for name, kind in pictures:
                places: Sequence[int] = range(sizes[name][i]) if kind == "several" else ()
                cells = [PictureCell(path, name, group, i, place) for place in places]
                row[name] = cells if kind == "several" else PictureCell(path, name, group, i)
            yield row


def _binary(kind: pa.DataType) -> str | None:
    """one | several, where a column holds pictures as bytes or {bytes, path}; None where it does not."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return "several" if _binary(kind.value_type) == "one" else None
    if pa.types.is_struct(kind):
        return "one" if kind.get_field_index("bytes") >= 0 else None
    return "one" if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else None


def _lengths(file: pq.ParquetFile, group: int, name: str) -> list[int]:
    column = file.read_row_group(group, columns=[name]).column(0)
    return [len(value) if value.is_valid else 0 for value in column]
