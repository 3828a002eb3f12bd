"""Answers to the questions of chapter 12."""

from __future__ import annotations

from answers import Answers

# ---- question 1 ------------------------------------------------------------------------------------------------------


def stream(
    body: str = "text += content",
    first: str = "content and ttft is None",
    split: str = "*events, rest = (rest + data).split(b'\\n\\n')",
    reason: str = "reason = choice['finish_reason'] or reason",
    load: str = "json.loads(data)",
    choices: str = "json.loads(data)['choices']",
    done: str = "if data == b'[DONE]':\n                continue",
    result: str = "text, reason, ttft",
) -> str:
    choices = choices.replace("json.loads(data)", load)
    return f"""
def read_stream(pieces):
    text, reason, ttft, rest = "", None, None, b""
    for seconds, data in pieces:
        {split}
        for event in events:
            data = event.removeprefix(b"data: ")
            {done}
            for choice in {choices}:
                content = choice["delta"].get("content") or ""
                if {first}:
                    ttft = seconds
                {body}
                {reason}
    return {result}
"""


STREAM = Answers(
    right=[
        ("as in the solution, a list", stream(result="[text, reason, ttft]")),
        (
            "by index, a generator of events",
            """
            def events(pieces):
                buffer = bytearray()
                for moment, data in pieces:
                    buffer.extend(data)
                    while (end := buffer.find(b"\\n\\n")) >= 0:
                        yield moment, bytes(buffer[:end]).decode("utf-8")[6:]
                        del buffer[: end + 2]

            def read_stream(pieces):
                words, why, when = [], [], []
                for moment, payload in events(pieces):
                    if payload != "[DONE]":
                        for one in json.loads(payload)["choices"]:
                            word = one["delta"].get("content")
                            if word:
                                words.append(word)
                                when.append(moment)
                            if one.get("finish_reason"):
                                why.append(one["finish_reason"])
                return "".join(words), why[0], when[0]
            """,
        ),
    ],
    wrong=[
        ("the first event", stream(first="ttft is None"), "holds the role and no text"),
        ("the last text's time", stream(first="content"), "piece that completes it"),
        (
            "the end of the stream",
            stream(result="text, reason, pieces[-1][0]"),
            "stop the clock at the first text",
        ),
        (
            "each piece by itself",
            stream(split="events = [e for e in data.split(b'\\n\\n') if e]"),
            "middle of an event",
        ),
        (
            "pieces by themselves, errors swallowed",
            """
            def read_stream(pieces):
                text, reason, ttft = "", None, None
                for seconds, data in pieces:
                    for event in data.split(b"\\n\\n"):
                        try:
                            choice = json.loads(event.removeprefix(b"data: "))["choices"][0]
                        except (ValueError, IndexError):
                            continue
                        content = choice["delta"].get("content", "")
                        if content and ttft is None:
                            ttft = seconds
                        text += content
                        reason = choice["finish_reason"] or reason
                return text, reason, ttft
            """,
            "keep the incomplete rest",
        ),
        ("[DONE] read as JSON", stream(done="pass"), "[DONE] is no JSON"),
        ("the first choice of everything", stream(choices="[json.loads(data)['choices'][0]]"), "usage chunk has no"),
        ("latin-1", stream(load="json.loads(data.decode('latin-1'))"), "JSON is UTF-8"),
        (
            "decoded before it is cut",
            """
            def read_stream(pieces):
                text, reason, ttft, rest = "", None, None, ""
                for seconds, data in pieces:
                    *events, rest = (rest + data.decode()).split("\\n\\n")
                    for event in events:
                        if event == "data: [DONE]":
                            continue
                        for choice in json.loads(event[6:])["choices"]:
                            content = choice["delta"].get("content", "")
                            if content and ttft is None:
                                ttft = seconds
                            text += content
                            reason = choice["finish_reason"] or reason
                return text, reason, ttft
            """,
            "middle of a character",
        ),
        (
            "the text backwards, and the last finish reason",
            stream(reason="reason = str(choice['finish_reason'])", body="text = content + text"),
            "of all events in order",
        ),
        ("any event's reason", stream(reason="reason = reason or str(choice['finish_reason'])"), "others have null"),
        ("two things", stream(result="text, reason"), "Return three things"),
    ],
)

# ---- question 2 ------------------------------------------------------------------------------------------------------


def layers(
    order: str = "sorted(map(json.loads, lines), key=lambda line: line['time'])",
    own: str = "line['request_id'] is not None and request_id.endswith(line['request_id'])",
    batch: str = "request_id in line.get('details', {}).get('requests', ())",
    found: str = "{'interfaces': [], 'model_authoring': [], 'runtime': []}",
    append: str = "found[line['layer']].append(line['message'])",
) -> str:
    return f"""
def by_layer(lines, request_id):
    found = {found}
    for line in {order}:
        if ({own}) or ({batch}):
            {append}
    return found
"""


BY_LAYER = Answers(
    right=[
        ("two passes", layers(order="sorted([json.loads(text) for text in lines], key=lambda one: one['time'])")),
        (
            "one layer after the other",
            """
            def concerns(line, wanted):
                short = line.get("request_id") or "nobody"
                batch = line.get("details", {}).get("requests", [])
                return short == wanted or wanted.split("-", 1)[1] == short or wanted in list(batch)

            def by_layer(lines, request_id):
                mine = [line for line in map(json.loads, lines) if concerns(line, request_id)]
                mine.sort(key=lambda line: line["time"])
                layers = ("runtime", "interfaces", "model_authoring")
                return {layer: [x["message"] for x in mine if x["layer"] == layer] for layer in layers}
            """,
        ),
    ],
    wrong=[
        ("equal ids only", layers(own="line['request_id'] == request_id", batch="False"), "neither"),
        ("no batches", layers(batch="False"), "batches are missing"),
        ("no HTTP line", layers(own="line['request_id'] == request_id"), "HTTP line (POST ...) is missing"),
        ("in the order of the file", layers(order="map(json.loads, lines)"), "sort by `time`"),
        ("everybody's lines", layers(batch="True"), "lines of all requests"),
        ("batches alone", layers(own="False"), "Only the batches' lines"),
        ("null ids not looked at", layers(own="request_id.endswith(line['request_id'])"), "may be null"),
        ("details taken for granted", layers(batch="request_id in line['details']['requests']"), "use .get"),
        ("the file as one JSON", layers(order="json.loads('\\n'.join(lines))"), "each line"),
        ("one list", layers(found="[]", append="found.append(line['message'])"), "dictionary"),
        (
            "only one layer",
            "def by_layer(lines, request_id):\n    return {'runtime': []}",
            "three layers",
        ),
        (
            "everything that was written for somebody",
            layers(own="line['request_id']", batch="line.get('details', {}).get('requests')"),
            "other requests",
        ),
        (
            "newest first",
            layers(order="sorted(map(json.loads, lines), key=lambda line: -line['time'])"),
            "order of time",
        ),
    ],
)

# ---- question 3 ------------------------------------------------------------------------------------------------------


def times(
    since: str = "admit",
    step: str = "reached[0]",
    end: str = "line['time'] + details['milliseconds'] / 1000",
    who: str = "request_id in details.get('requests', ())",
    reach: str = ">= prompt",
    result: str = "first - arrival, last - arrival",
    last: str = "max(ends.values())",
) -> str:
    return f"""
def times_of(lines, request_id):
    lines = sorted(map(json.loads, lines), key=lambda line: line["time"])
    def mine(line):
        details = line.get("details", {{}})
        return line["request_id"] == request_id or request_id in details.get("requests", ())
    arrival = next(line["time"] for line in lines if line["message"] == "{since}" and mine(line))
    prompt = next(l["details"]["num_prompt_tokens"] for l in lines if l["message"] == "add_request" and mine(l))
    reached, ends = [], {{}}
    for line in lines:
        details = line.get("details", {{}})
        if line["message"] == "schedule" and mine(line) and details["requests"][request_id][1] {reach}:
            reached.append(details["step"])
        if line["message"] == "forward" and {who}:
            ends[details["step"]] = {end}
    first = ends[{step}]
    last = {last}
    return {result}
"""


TIMES = Answers(
    right=[
        ("a list", times(result="[first - arrival, last - arrival]")),
        (
            "with dictionaries of steps",
            """
            def times_of(lines, request_id):
                table = [json.loads(line) for line in lines]
                here = [x for x in table if x["request_id"] == request_id]
                begin = min(x["time"] for x in here if x["message"] == "admit")
                (size,) = {x["details"]["num_prompt_tokens"] for x in here if x["message"] == "add_request"}
                batches = [x for x in table if request_id in (x.get("details", {}).get("requests") or {})]
                upto = {x["details"]["step"]: x["details"]["requests"][request_id][1]
                        for x in batches if x["message"] == "schedule"}
                done = {x["details"]["step"]: x["time"] + 1e-3 * x["details"]["milliseconds"]
                        for x in batches if x["message"] == "forward"}
                first = min(step for step, end in upto.items() if end >= size)
                return done[first] - begin, done[max(done)] - begin
            """,
        ),
    ],
    wrong=[
        ("the first step", times(reach=">= 0"), "A prompt in chunks"),
        ("a step too late", times(step="reached[min(1, len(reached) - 1)]"), "one too late"),
        ("more than the prompt", times(reach="> prompt", step="reached[0] if reached else max(ends)"), "one too late"),
        ("the forward's begin", times(end="line['time']"), "when it began"),
        ("milliseconds as seconds", times(end="line['time'] + details['milliseconds']"), "divide by 1000"),
        ("since add_request", times(since="add_request"), "when the engine hears of it"),
        ("since schedule", times(since="schedule"), "waiting counts too"),
        (
            "until the HTTP answer",
            times(last="max(l['time'] for l in lines if l['request_id'] and request_id.endswith(l['request_id']))"),
            "HTTP answer",
        ),
        (
            "until finished",
            times(last="next(l['time'] for l in lines if l['message'] == 'finished' and mine(l))"),
            "end of the last forward",
        ),
        ("anybody's forward", times(who="True"), "not this request's"),
        ("in milliseconds", times(result="1e3 * (first - arrival), 1e3 * (last - arrival)"), "in milliseconds"),
        ("swapped", times(result="last - arrival, first - arrival"), "swapped"),
        ("moments", times(result="first, last"), "not times since the arrival"),
        ("since the first token", times(result="first - arrival, last - first"), "not from the first token"),
    ],
)

# ---- question 4 ------------------------------------------------------------------------------------------------------


def report(
    answered: str = "r['error'] is None",
    good: str = "r['ttft'] <= max_ttft and (r['tpot'] is None or r['tpot'] <= max_tpot)",
    rank: str = "times[math.ceil(p * len(times) / 100) - 1] if times else None",
    goodput: str = "len(good) / seconds",
) -> str:
    return f"""
def load_report(requests, seconds, max_ttft, max_tpot):
    answered = [r for r in requests if {answered}]
    good = [r for r in answered if {good}]
    times = sorted(r["ttft"] for r in answered)
    p50, p90 = ({rank} for p in (50, 90))
    return {{"p50": p50, "p90": p90, "goodput": {goodput}}}
"""


LOAD_REPORT = Answers(
    right=[
        ("comprehensions", report()),
        (
            "counting",
            """
            def load_report(requests, seconds, max_ttft, max_tpot):
                times, kept = [], 0
                for request in requests:
                    if request["error"] is not None:
                        continue
                    times.append(request["ttft"])
                    kept += request["ttft"] <= max_ttft and (request["tpot"] or 0) <= max_tpot
                times.sort()
                def at(percent):
                    return next((t for i, t in enumerate(times, 1) if 100 * i >= percent * len(times)), None)
                return dict(p50=at(50), p90=at(90), goodput=kept / seconds)
            """,
        ),
    ],
    wrong=[
        ("failed ones counted", report(answered="r['ttft'] is not None"), "Failed requests were counted"),
        ("TPOT forgotten", report(good="r['ttft'] <= max_ttft"), "TPOT was not looked at"),
        ("TTFT forgotten", report(good="r['tpot'] is None or r['tpot'] <= max_tpot"), "TTFT was not looked at"),
        ("a share", report(goodput="len(good) / len(requests)"), "not their share"),
        (
            "single tokens are bad",
            report(good="r['ttft'] <= max_ttft and r['tpot'] is not None and r['tpot'] <= max_tpot"),
            "An answer of one token",
        ),
        ("None compared", report(good="r['ttft'] <= max_ttft and r['tpot'] <= max_tpot"), "look before you compare"),
        ("all requests sorted", report(answered="True"), "None"),
        ("one place too high", report(rank="times[min(len(times) - 1, p * len(times) // 100)]"), "one place too high"),
        ("nobody answered", report(rank="times[math.ceil(p * len(times) / 100) - 1]"), "Nobody was answered"),
        ("interpolated", report(rank="float(__import__('numpy').percentile(times, p))"), "between two measurements"),
        ("mean and maximum", report(rank="sum(times) / len(times) if p == 50 else times[-1]"), "p50 is the median"),
        (
            "the limit itself is too late",
            report(good="r['ttft'] < max_ttft and (r['tpot'] is None or r['tpot'] < max_tpot)"),
            "exactly at a limit",
        ),
    ],
)

# ---- question 5 ------------------------------------------------------------------------------------------------------


def insisting(
    again: str = "status in (429, 503)",
    tries: str = "range(1, most + 1)",
    last: str = "attempt == most",
    wait: str = "float(headers.get('Retry-After', 1))",
    result: str = "status",
) -> str:
    return f"""
def insist(send, sleep, most):
    for attempt in {tries}:
        status, headers = send()
        if not ({again}) or {last}:
            break
        sleep({wait})
    return {result}
"""


INSIST = Answers(
    right=[
        ("break", insisting()),
        (
            "recursion",
            """
            def insist(send, sleep, most):
                code, head = send()
                later = code == 429 or code == 503
                if most > 1 and later:
                    sleep(int(head["Retry-After"]) if "Retry-After" in head else 1.0)
                    return insist(send, sleep, most - 1)
                return code
            """,
        ),
    ],
    wrong=[
        ("every error again", insisting(again="status != 200"), "the same the next time"),
        ("only 503", insisting(again="status == 503"), "gives up too soon"),
        ("only 429", insisting(again="status == 429"), "gives up too soon"),
        ("for ever", insisting(tries="iter(int, 1)", last="False"), "never gives up"),
        ("one try too many", insisting(tries="range(1, most + 2)", last="attempt > most"), "Too many tries"),
        ("sleeps at the end", insisting(last="False"), "no try follows"),
        ("does not wait", insisting().replace("sleep(", "float("), "without waiting"),
        ("half a second", insisting(wait="0.5"), "less than Retry-After"),
        ("a minute", insisting(wait="60.0"), "longer than Retry-After"),
        ("the header is always there", insisting(wait="float(headers['Retry-After'])"), "may be missing"),
        ("zero without a header", insisting(wait="float(headers.get('Retry-After', 0))"), "1 where there is no such"),
        ("a truth", insisting(result="status == 200"), "the status of the last answer"),
        ("one try", insisting(last="True"), "gives up too soon"),
    ],
)

# ---- question 6 ------------------------------------------------------------------------------------------------------


def tested(
    begin: str = "max(free, due)",
    latency: str = "free - due",
    result: str = "sorted(latencies)[math.ceil(0.99 * len(latencies)) - 1]",
) -> str:
    return f"""
def load_test(arrivals, service):
    latencies, free = [], 0.0
    for due, seconds in zip(arrivals, service, strict=True):
        begin = {begin}
        free = begin + seconds
        latencies.append({latency})
    return {result}
"""


MAXIMUM = "sorted(latencies)[min(len(latencies) - 1, int(0.99 * len(latencies)))]"

LOAD_TEST = Answers(
    right=[
        ("as given, repaired", tested()),
        (
            "ends first",
            """
            def load_test(arrivals, service):
                ends = []
                for due, seconds in zip(arrivals, service):
                    ends.append((due if not ends or ends[-1] < due else ends[-1]) + seconds)
                waits = sorted((end - due for end, due in zip(ends, arrivals)), reverse=True)
                return waits[len(waits) - -(-99 * len(waits) // 100)]
            """,
        ),
    ],
    wrong=[
        ("only the rank repaired", tested(latency="free - begin"), "the wait in the queue is missing"),
        ("only the clock repaired", tested(result=MAXIMUM), "With 100 requests that is the slowest"),
        ("nothing repaired", tested(latency="free - begin", result=MAXIMUM), "and the rank is one too high"),
        ("the wait alone", tested(latency="begin - due"), "ends with the answer"),
        ("the mean", tested(result="sum(latencies) / len(latencies)"), "That is the mean"),
        ("no idle server", tested(begin="free"), "idle until the next arrival"),
        ("the median", tested(result="sorted(latencies)[len(latencies) // 2]"), "That is the median"),
        ("the longest service", "def load_test(arrivals, service):\n    return max(service)", "not the latency"),
    ],
)

BANK: dict[str, Answers] = {
    "ch12.q1": STREAM,
    "ch12.q2": BY_LAYER,
    "ch12.q3": TIMES,
    "ch12.q4": LOAD_REPORT,
    "ch12.q5": INSIST,
    "ch12.q6": LOAD_TEST,
}
