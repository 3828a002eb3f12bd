"""Chapter 12: an event stream, a request's log by layer and in seconds, goodput, refusals, a load test to repair."""

from __future__ import annotations

from pagedlab.course.drivers import ch12 as drivers
from pagedlab.course.questions import ch12_http as http
from pagedlab.course.questions import ch12_load as load
from pagedlab.course.questions import ch12_logs as logs
from pagedlab.course.questions.mistakes import named
from pagedlab.course.questions.model import Kind, Question

QUESTIONS: tuple[Question, ...] = (
    Question(
        id="ch12.q1",
        title="An event stream by hand",
        kind=Kind.IMPLEMENT,
        difficulty=2,
        points=4,
        answer="read_stream",
        cases=http.stream_cases,
        fresh=http.stream_fresh,
        hints=(
            "The network knows nothing of events. What do you do with half a one?",
            "Keep bytes in `rest`. Add each piece to it, split at b'\\n\\n', and keep what follows the last split.",
            'For each whole event: take "data: " off its front, skip [DONE], json.loads, and look at every choice: '
            "add delta.get('content', ''), keep finish_reason if it is one, and note the seconds at the first text.",
        ),
        explain=http.explain_stream,
        tolerance=1e-9,
        drive=drivers.from_the_network,
    ),
    Question(
        id="ch12.q2",
        title="One request, three layers",
        kind=Kind.IMPLEMENT,
        difficulty=2,
        points=3,
        answer="by_layer",
        cases=logs.layers_cases,
        fresh=logs.layers_fresh,
        hints=(
            "Three kinds of lines concern a request. Which of them carry its id?",
            "Its own lines have request_id equal to it. Batches have request_id null and name it in details.requests. "
            "The HTTP line has an id that the request's id ends with.",
            "Read all lines, sort them by `time`, start with an empty list for each of the three layers, and append "
            "`message` to the list of the line's `layer` where one of the three conditions holds.",
        ),
        explain=lambda case, got: named(*logs.LAYERS_MISTAKES)(case, got) or logs.explain_layers(case, got),
        drive=drivers.sorted_out,
        seconds=30.0,
    ),
    Question(
        id="ch12.q3",
        title="TTFT from the log",
        kind=Kind.IMPLEMENT,
        difficulty=3,
        points=4,
        answer="times_of",
        cases=logs.times_cases,
        fresh=logs.times_fresh,
        hints=(
            "When is the first token known? Look at a request whose prompt needs three steps.",
            "A `schedule` line says [start, end) for each request. The first one whose end reaches num_prompt_tokens "
            "(of `add_request`) names the step; the `forward` line of that step says when it was over.",
            "Arrival: `time` of `admit`. End of a forward: time + milliseconds / 1000. First token: the end of the "
            "forward of the step found. Last token: the end of the last forward that has this request.",
        ),
        explain=lambda case, got: (
            named(*logs.TIMES_MISTAKES, tolerance=2e-5, absolute=True)(case, got) or logs.explain_times(case, got)
        ),
        tolerance=2e-5,
        absolute=True,
        drive=drivers.timed,
        seconds=30.0,
    ),
    Question(
        id="ch12.q4",
        title="Goodput",
        kind=Kind.IMPLEMENT,
        difficulty=1,
        points=3,
        answer="load_report",
        cases=load.report_cases,
        fresh=load.report_fresh,
        hints=(
            "Who counts? Make a list of the requests that were answered, before anything else.",
            "Nearest rank: sort, and take place ceil(p / 100 * n), counted from 1. Good: ttft at most its limit, and "
            "tpot None or at most its limit.",
            "times = sorted(ttft of the answered); p50 = times[math.ceil(0.50 * n) - 1]; goodput = number of good ones "
            "/ seconds.",
        ),
        explain=load.explain_report,
        tolerance=1e-9,
        drive=drivers.reported,
    ),
    Question(
        id="ch12.q5",
        title="A client that insists, politely",
        kind=Kind.IMPLEMENT,
        difficulty=1,
        points=3,
        answer="insist",
        cases=http.insist_cases,
        fresh=http.insist_fresh,
        hints=(
            "Sort the statuses into three heaps: done, never, later.",
            "Only 429 and 503 mean later. Sleep only if another try follows.",
            "A loop over range(most): send; if the status is neither 429 nor 503, or this was the last try, return it; "
            "else sleep float(headers.get('Retry-After', 1)).",
        ),
        explain=http.explain_insist,
        tolerance=1e-9,
        drive=drivers.refusing_server,
    ),
    Question(
        id="ch12.q6",
        title="The load test that is always content",
        kind=Kind.DIAGNOSE,
        difficulty=2,
        points=3,
        answer="load_test",
        cases=load.late_cases,
        fresh=load.late_fresh,
        hints=(
            "Give it a server that stalls for ten seconds once. What should users report, and what does it report?",
            "When does a user's clock start? And what is the 99th of 100 sorted values?",
            "begin = max(free, due), free = begin + seconds, latency = free - due; then sorted(latencies) at place "
            "ceil(0.99 * n) - 1.",
        ),
        explain=named(*load.LATE_MISTAKES),
        tolerance=1e-9,
    ),
)
