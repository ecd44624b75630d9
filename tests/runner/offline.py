"""Reads an offline W&B log: LevelDB's framing around the protobuf records that wandb ships."""

import json
import struct

from wandb.proto import wandb_internal_pb2 as pb

BLOCK, HEADER = 32768, 7


def records(path):
    """Every record of a .wandb file."""
    data = path.read_bytes()
    position, fragment = 7, b""
    while position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + HEADER])
        if kind == 0 and length == 0:
            position += left
            continue
        part = data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        fragment = part if kind in (1, 2) else fragment + part
        if kind in (1, 4):
            record = pb.Record()
            record.ParseFromString(fragment)
            yield record


def put(into, item):
    """Set one update at its nested key."""
    path = list(item.nested_key) or [item.key]
    for key in path[:-1]:
        into = into.setdefault(key, {})
    into[path[-1]] = json.loads(item.value_json)


def load(path):
    """Run, config, summary, history, files, artifacts and exit code of a .wandb file."""
    out = {"run": None, "config": {}, "summary": {}, "history": [], "files": [], "artifacts": [], "exit": None}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            fields = ("run_id", "project", "run_group", "job_type")
            out["run"] = {f: getattr(record.run, f) for f in fields} | {"tags": list(record.run.tags)}
        if kind in ("run", "config"):
            for item in (record.run.config if kind == "run" else record.config).update:
                put(out["config"], item)
        elif kind == "summary":
            for item in record.summary.update:
                put(out["summary"], item)
        elif kind == "history":
            row = {}
            for item in record.history.item:
                put(row, item)
            out["history"].append(row)
        elif kind == "files":
            out["files"] += [f.path for f in record.files.files]
        elif kind == "artifact":
            contents = [c.path for c in record.artifact.manifest.contents]
            out["artifacts"].append((record.artifact.type, record.artifact.name, contents))
        elif kind == "exit":
            out["exit"] = record.exit.exit_code
    return out
