"""The logs that the exercises of chapter 12 are made of come from a real server, and leave no trace here."""

from __future__ import annotations

import json
import logging

from pagedlab.course.questions.ch12_logs import TIGHT
from pagedlab.course.served_log import bodies, events_of, served_log


def test_a_log_is_of_a_real_run_and_agrees_with_the_engines_trace() -> None:
    logger = logging.getLogger("pagedlab")
    before = (logger.level, list(logger.handlers), logger.propagate)
    log = served_log(bodies({"prompt": list(range(100, 250)), "max_tokens": 3}, {"prompt": "Hi", "max_tokens": -1}))
    assert (logger.level, list(logger.handlers), logger.propagate) == before
    lines = [json.loads(line) for line in log.lines]
    (request_id,) = log.request_ids
    starts = {
        (event.name, event.step): event.start for event in events_of(log, request_id, ("schedule", "pack", "forward"))
    }
    written = {
        (line["message"], line["details"]["step"]): line["time"]
        for line in lines
        if line["message"] in ("schedule", "pack", "forward")
    }
    assert written.keys() == starts.keys() and len(starts) == 3 * (3 + 2), "three chunks, then two more tokens"
    offsets = [written[key] - starts[key] for key in starts]
    assert max(offsets) - min(offsets) < 1e-5, "the log's times differ from the trace's by one constant"
    posts = [line for line in lines if line["message"].startswith("POST")]
    assert sorted(line["status"] for line in posts) == [200, 400]


def test_a_tight_pool_preempts() -> None:
    log = served_log(TIGHT, max_num_batched_tokens=96, num_blocks=13)
    assert any(event.name == "preempt" for event in log.events)
    assert len(log.request_ids) == len(TIGHT)


def test_the_same_run_is_made_once() -> None:
    wanted = bodies({"prompt": [5, 6, 7], "max_tokens": 2})
    assert served_log(wanted) is served_log(wanted)
