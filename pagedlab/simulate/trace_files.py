"""Replay: a workload read from a CSV or JSONL file, with a sentence for each row that cannot be used."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pagedlab.errors import TraceFileError
from pagedlab.simulate.workloads import TraceRequest

COLUMNS = {"arrival": "arrival", "prompt_tokens": "prompt_tokens", "output_tokens": "output_tokens"}
"""Field of TraceRequest -> its name in the file."""
SHOWN = 20
"""Problems that the error's message lists; its attribute has all."""


def read_trace(
    path: str | Path, columns: Mapping[str, str] | None = None, seconds_per_unit: float = 1.0, window: int | None = None
) -> list[TraceRequest]:
    """The requests of a file, sorted by arrival, the first at 0 s.

    Args:
        path: `.csv` with a header line, or `.jsonl` with one JSON object a line. Blank lines are skipped.
        columns: names that differ in this file, such as {"arrival": "TIMESTAMP", "prompt_tokens": "ContextTokens",
            "output_tokens": "GeneratedTokens"}. Other columns are ignored.
        seconds_per_unit: 0.001 if arrivals are in milliseconds. Dates with times (ISO 8601) work too.
        window: longest prompt + output allowed; None for no limit.

    Raises:
        TraceFileError: the file cannot be read, has no such column, or has bad rows, all of which are named.
    """
    path = Path(path)
    names = {**COLUMNS, **(columns or {})}
    if unknown := set(names) - set(COLUMNS):
        raise TraceFileError(f"columns= can rename {', '.join(COLUMNS)}, not {', '.join(sorted(unknown))}.")
    requests, problems = [], []
    for line, row in read_rows(path, names):
        try:
            requests.append(read_request(row, names, seconds_per_unit, window))
        except ValueError as error:
            problems.append(f"line {line}: {error}")
    if problems:
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        listed = "".join(f"\n  {problem}" for problem in problems[:SHOWN])
        raise TraceFileError(
            f"{path.name} has {len(problems)} bad rows; correct or remove them:{listed}{more}", problems
        )
    if not requests:
        raise TraceFileError(f"{path.name} holds no request: give it at least one row.")
    first = min(request.arrival for request in requests)
    return sorted((r._replace(arrival=r.arrival - first) for r in requests), key=lambda r: r.arrival)


def read_rows(path: Path, names: Mapping[str, str]) -> Iterator[tuple[int, Any]]:
    """Line number, and the row: a mapping of CSV, or the text of a line of JSONL."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TraceFileError(f"{path.name} cannot be read as UTF-8 text ({type(error).__name__}).") from error
    if path.suffix == ".jsonl":
        # Not splitlines(): texts may hold U+2028 and others of its kind, which end no line of JSONL.
        yield from ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
        return
    if path.suffix != ".csv":
        raise TraceFileError(f"{path.name}: a trace is a .csv or a .jsonl file; rename it to say which.")
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        missing = [name for name in names.values() if name not in (reader.fieldnames or ())]
        if missing:
            raise TraceFileError(
                f"{path.name} has no column {', '.join(missing)}: its first line must name the columns "
                f"(it names {', '.join(reader.fieldnames or ['none'])}); say in columns= what they are called there."
            )
        for row in reader:
            if any(value for value in row.values()):
                yield reader.line_num, row
    except csv.Error as error:
        raise TraceFileError(f"{path.name} is no CSV after line {reader.line_num} ({error}).") from error


def read_request(row: Any, names: Mapping[str, str], seconds_per_unit: float, window: int | None) -> TraceRequest:
    """One row, checked; ValueError says what is wrong with it."""
    if isinstance(row, str):
        try:
            row = json.loads(row)
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON ({error.msg})") from None
        if not isinstance(row, dict):
            raise ValueError("not a JSON object; write {...}")
    arrival = read_time(names["arrival"], row.get(names["arrival"]), seconds_per_unit)
    prompt = read_count(names["prompt_tokens"], row.get(names["prompt_tokens"]))
    output = read_count(names["output_tokens"], row.get(names["output_tokens"]))
    if window is not None and prompt + output > window:
        raise ValueError(f"{prompt} + {output} tokens are more than the window of {window}")
    return TraceRequest(arrival, prompt, output)


def read_count(name: str, value: Any) -> int:
    """A whole number, 1 or more; "12" and 12.0 are fine."""
    if value is None or value == "":
        raise ValueError(f"{name} is missing")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} is not a number: {value!r}") from None
    if isinstance(value, bool) or not math.isfinite(number) or number != int(number) or number < 1:
        raise ValueError(f"{name} must be a whole number, 1 or more, not {value!r}")
    return int(number)


def read_time(name: str, value: Any, seconds_per_unit: float) -> float:
    """Seconds, from a number or from a date with a time."""
    if value is None or value == "":
        raise ValueError(f"{name} is missing")
    if isinstance(value, bool):
        raise ValueError(f"{name} must be a number or a date with a time, not {value!r}")
    try:
        seconds = float(value) * seconds_per_unit
    except (TypeError, ValueError, OverflowError):
        try:
            moment = datetime.fromisoformat(str(value).strip())
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except ValueError:
            raise ValueError(f"{name} must be a number or a date with a time, not {value!r}") from None
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"{name} must be a time of 0 or more, not {value!r}")
    return seconds
