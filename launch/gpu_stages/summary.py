"""What the stages measured so far, in Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def summarize(out: Path, stages: Iterable[str]) -> str:
    """The results in a folder, stage by stage: single values, then tables."""
    lines = ["# GPU check", ""]
    for stage in stages:
        path = out / f"{stage}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        tables = {key: value for key, value in result.items() if _is_table(value)}
        lines += [f"## {stage}", ""]
        for key, value in result.items():
            if key not in tables:
                lines.append(f"- {key.replace('_', ' ')}: {_said(value)}")
        for rows in tables.values():
            lines += ["", *_table(rows)]
        lines.append("")
    return "\n".join(lines)


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = [_cell(row.get(column)) for column in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(entry)}" for key, entry in value.items())
    return _cell(value)


def _cell(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
