"""The engine view as one HTML file: opens from disk, plays, needs no server, no other file and no network."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from IPython.display import display

from pagedlab.errors import CourseError
from pagedlab.model_authoring.recording import EngineRecording
from pagedlab.visualize.block_map import HATCHES, OWNER_COLOURS
from pagedlab.visualize.engine_frames import Frame, make_frames, shown_blocks
from pagedlab.visualize.widgets import has_frontend

MAX_BLOCKS = 1024
MAX_STEPS = 600
FRAME_HEIGHT = 840


def engine_page(recording: EngineRecording, title: str = "The engine, step by step") -> str:
    """The page as text.

    Whatever requests are called and whatever their prompts say stays text: the data stand in a JSON block in which no
    character can end it, the script makes text nodes of them, and a policy in the page lets no other script run.

    Raises:
        CourseError: the recording is too long, or used more blocks than a page can show.
    """
    if len(recording) > MAX_STEPS:
        raise CourseError(f"A page shows {MAX_STEPS} steps at most, and the recording has {len(recording)}.")
    template = files(__package__).joinpath("engine_view.html").read_text(encoding="utf-8")
    script = template.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "TITLE": html.escape(title),
        "DATA": as_script_data(page_data(recording)),
        "POLICY": f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:",
    }
    # In one pass, so that a title cannot name another part.
    return re.sub("@@(TITLE|DATA|POLICY)@@", lambda found: parts[found[1]], template)


def save_engine_page(recording: EngineRecording, path: str | Path, title: str = "The engine, step by step") -> Path:
    """Write `engine_page` to a file and return its path."""
    path = Path(path)
    path.write_text(engine_page(recording, title), encoding="utf-8")
    return path


def show_engine_page(
    recording: EngineRecording, title: str = "The engine, step by step", height: int = FRAME_HEIGHT
) -> None:
    """The page inside a notebook, in a frame of its own `height` pixels high; one sentence where nobody looks."""
    page = engine_page(recording, title)
    if not has_frontend():
        print(f"Here JupyterLab shows the {len(recording)} steps as a page that plays.")
        return
    style = f"width:100%;height:{height}px;border:1px solid #8C8C8C;border-radius:6px"
    # The frame may run the page's script and nothing else: no access to the notebook around it.
    frame = (
        f'<iframe sandbox="allow-scripts" title="{html.escape(title)}" style="{style}" srcdoc="{html.escape(page)}">'
    )
    display({"text/plain": f"[page] {title}", "text/html": f"{frame}</iframe>"}, raw=True)


def as_script_data(value: Any) -> str:
    """JSON that stays inside its <script> element: ASCII, with no <, > or & in it."""
    text = json.dumps(value, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def page_data(recording: EngineRecording) -> dict[str, Any]:
    """What the page's script draws: requests by their number, blocks and rows as short lists."""
    frames = make_frames(recording)
    numbers = {info.request_id: number for number, info in enumerate(recording.requests)}
    blocks = shown_blocks(frames, MAX_BLOCKS)
    return {
        "block_size": recording.block_size,
        "num_usable_blocks": recording.num_usable_blocks,
        "token_budget": recording.token_budget,
        "max_num_seqs": recording.max_num_seqs,
        "policy": recording.policy,
        "longest": max(row.num_tokens for frame in frames for row in frame.rows),
        "requests": [
            {
                "id": info.request_id,
                "prompt": info.prompt,
                "colour": OWNER_COLOURS[number % len(OWNER_COLOURS)],
                "hatch": number // len(OWNER_COLOURS) % len(HATCHES),
            }
            for number, info in enumerate(recording.requests)
        ],
        "blocks": blocks,
        "num_hidden": recording.num_blocks - len(blocks),
        "frames": [frame_data(frame, blocks, numbers) for frame in frames],
    }


def frame_data(frame: Frame, blocks: list[int], numbers: dict[str, int]) -> dict[str, Any]:
    """One frame. rows: status, reason, tokens known, start, end, cached, kind, block table.
    blocks: owners, filled slots, can be hit, is null, first written slot, end of the written slots."""
    record = frame.record
    return {
        "is_after": frame.is_after,
        "tokens": record.num_tokens,
        "seconds": record.seconds,
        "free": frame.num_free,
        "texts": {numbers[one.request_id]: one.text for one in record.sampled if one.text},
        "rows": [
            [r.status, r.reason, r.num_tokens, r.start, r.end, r.num_cached, r.kind, r.block_ids] for r in frame.rows
        ],
        "blocks": [
            [
                [numbers[owner] for owner in block.owners],
                block.num_filled,
                block.is_cached,
                block.is_null,
                *frame.written.get(block.block_id, (0, 0)),
            ]
            for block in (frame.blocks[block_id] for block_id in blocks)
        ],
        "copies": [[copy.source, copy.target] for copy in record.copies],
        "events": [[event.kind, numbers[event.request_id], event.text] for event in frame.events],
    }
