"""Answers to the questions of chapter 11; those of the capstone are in ch11_capstone."""

from answers import Answers
from answers.ch11_capstone import CAPSTONE
from answers.editing import changed

JOURNEY = """
journey = {
    "order": ["client", "API layer (keys, limits)", "OpenAI server (parses)", "LLMEngine", "Scheduler",
              "ModelExecutor", "Worker", "back to the client"],
    "again for every token": ["Scheduler", "ModelExecutor", "Worker"],
    "owner": {
        "the queue of waiting requests": "Scheduler",
        "the token budget of a step": "Scheduler",
        "the block tables": "BlockManager",
        "the hashes of cached prefixes": "BlockManager",
        "the keys and values": "CacheEngine",
        "packing the ragged batch": "ModelExecutor",
        "the model's weights": "Worker",
        "the text of an answer so far": "LLMEngine",
    },
}
"""


def owned(thing: str, owner: str) -> str:
    """The right dictionary but for one owner."""
    return f'{JOURNEY}\njourney["owner"]["{thing}"] = "{owner}"'


def ordered(*names: str) -> str:
    """The right dictionary but for the order of steps 4 to 7."""
    return f'{JOURNEY}\njourney["order"][3:7] = {list(names)}'


WHO = Answers(
    right=[
        ("built from pairs, tuples for lists", JOURNEY + 'journey["order"] = tuple(journey["order"])'),
        (
            "cut out of a table",
            """
            names = ["client", "API layer (keys, limits)", "OpenAI server (parses)", "LLMEngine", "Scheduler"]
            names += ["ModelExecutor", "Worker", "back to the client"]
            owners = "Scheduler Scheduler BlockManager BlockManager CacheEngine ModelExecutor Worker LLMEngine".split()
            journey = dict(order=names, owner=dict(zip(THINGS, owners)))
            journey["again for every token"] = names[4:7]
            """,
        ),
    ],
    wrong=[
        ("block tables in the CacheEngine", owned("the block tables", "CacheEngine"), "knows no request"),
        ("hashes in the CacheEngine", owned("the hashes of cached prefixes", "CacheEngine"), "before any tensor"),
        ("KV in the BlockManager", owned("the keys and values", "BlockManager"), "touches no tensor"),
        ("KV in the Worker", owned("the keys and values", "Worker"), "only to hold them"),
        ("weights in the ModelExecutor", owned("the model's weights", "ModelExecutor"), "loaded once"),
        ("the Worker packs", owned("packing the ragged batch", "Worker"), "ready made"),
        ("the Worker makes text", owned("the text of an answer so far", "Worker"), "token ids only"),
        ("the budget counts memory", owned("the token budget of a step", "BlockManager"), "work, not memory"),
        ("the engine queues", owned("the queue of waiting requests", "LLMEngine"), "hands a new request on"),
        ("parsed first", JOURNEY + 'journey["order"][1:3] = reversed(journey["order"][1:3])', "at the door"),
        ("scheduled first", ordered("Scheduler", "LLMEngine", "ModelExecutor", "Worker"), "not a request yet"),
        ("packed first", ordered("LLMEngine", "ModelExecutor", "Scheduler", "Worker"), "the schedule comes first"),
        ("worker first", ordered("LLMEngine", "Scheduler", "Worker", "ModelExecutor"), "pack it first"),
        ("all eight again", JOURNEY + 'journey["again for every token"] = journey["order"]', "enters once"),
        ("scheduled once", JOURNEY + 'journey["again for every token"] = ["Worker"]', "scheduled anew"),
        (
            "streams to a client that does not",
            JOURNEY + 'journey["again for every token"] += ["back to the client"]',
            "does not stream",
        ),
        ("a list", "journey = list(STEPS)", "Make it a dictionary"),
        ("an entry forgotten", 'journey = {"order": []}', "has no entry"),
    ],
)

WAITS = """
def waiting_times(jobs, policy):
    keys = {
        "fcfs": lambda i: (jobs[i][0], i),
        "sjf": lambda i: (jobs[i][1], jobs[i][0], i),
        "priority": lambda i: (jobs[i][2], jobs[i][0], i),
    }
    waits, clock, left = [0] * len(jobs), 0, list(range(len(jobs)))
    while left:
        here = [i for i in left if jobs[i][0] <= clock]
        if not here:
            clock = min(jobs[i][0] for i in left)
            continue
        chosen = min(here, key=keys[policy])
        waits[chosen] = clock - jobs[chosen][0]
        clock += jobs[chosen][1]
        left.remove(chosen)
    return waits
"""

WAITING = Answers(
    right=[
        ("lists and lambdas", WAITS),
        (
            "a heap and a clock that ticks",
            """
            import heapq

            def waiting_times(jobs, policy):
                column = {"fcfs": 0, "sjf": 1, "priority": 2}[policy]
                heap, waits, busy_until, number = [], {}, 0, 0
                second = 0
                while len(waits) < len(jobs):
                    while number < len(jobs) and jobs[number][0] == second:
                        heapq.heappush(heap, (jobs[number][column], number))
                        number += 1
                    if second >= busy_until and heap:
                        _, job = heapq.heappop(heap)
                        waits[job] = second - jobs[job][0]
                        busy_until = second + jobs[job][1]
                    second += 1
                return [waits[job] for job in range(len(jobs))]
            """,
        ),
        (
            "NumPy, and a generator",
            """
            def waiting_times(jobs, policy):
                table = np.array(jobs)
                rank = table[:, {"fcfs": 0, "sjf": 1, "priority": 2}[policy]] * 1000 + np.arange(len(jobs))
                start, clock = np.full(len(jobs), -1), 0
                for _ in jobs:
                    open_ = start < 0
                    clock = max(clock, table[open_, 0].min())
                    can = open_ & (table[:, 0] <= clock)
                    chosen = np.where(can, rank, 10**9).argmin()
                    start[chosen] = clock
                    clock += table[chosen, 1]
                yield from (start - table[:, 0]).tolist()
            """,
        ),
    ],
    wrong=[
        (
            "waits until the end",
            changed(
                WAITS,
                "waits[chosen] = clock - jobs[chosen][0]\n        clock += jobs[chosen][1]",
                "clock += jobs[chosen][1]\n        waits[chosen] = clock - jobs[chosen][0]",
            ),
            "waiting ends when service begins",
        ),
        ("from second 0", changed(WAITS, "clock - jobs[chosen][0]", "clock"), "from its own arrival"),
        (
            "in the order of service",
            changed(
                changed(WAITS, "[0] * len(jobs)", "[]"),
                "waits[chosen] = clock - jobs[chosen][0]",
                "waits.append(clock - jobs[chosen][0])",
            ),
            "in the order of jobs",
        ),
        (
            "sorted in advance",
            """
            def waiting_times(jobs, policy):
                order = sorted(range(len(jobs)), key=lambda i: jobs[i][{"fcfs": 0, "sjf": 1, "priority": 2}[policy]])
                waits, clock = [0] * len(jobs), 0
                for i in order:
                    clock = max(clock, jobs[i][0])
                    waits[i] = clock - jobs[i][0]
                    clock += jobs[i][1]
                return waits
            """,
            "cannot know the future",
        ),
        (
            "begins before it arrives",
            changed(WAITS, "here = [i for i in left if jobs[i][0] <= clock]", "here = left"),
            "before it has arrived",
        ),
        (
            "interrupts",
            """
            def waiting_times(jobs, policy):
                left, waits, clock = [job[1] for job in jobs], {}, 0
                while any(left):
                    here = [i for i in range(len(jobs)) if left[i] and jobs[i][0] <= clock]
                    if here:
                        rank = {"fcfs": lambda i: i, "sjf": lambda i: left[i], "priority": lambda i: jobs[i][2]}
                        job = min(here, key=rank[policy])
                        waits.setdefault(job, clock - jobs[job][0])
                        left[job] -= 1
                    clock += 1
                return [waits[i] for i in range(len(jobs))]
            """,
            "served to the end",
        ),
        ("always first come first served", changed(WAITS, "keys[policy]", 'keys["fcfs"]'), "makes no difference"),
        ("largest priority first", changed(WAITS, "(jobs[i][2]", "(-jobs[i][2]"), "smaller priority number"),
        ("longest first", changed(WAITS, "(jobs[i][1]", "(-jobs[i][1]"), "longest job went first"),
        ("a stack", changed(WAITS, '"fcfs": lambda i: (jobs[i][0], i)', '"fcfs": lambda i: -i'), "a stack"),
        (
            "later among equals",
            changed(
                changed(WAITS, "(jobs[i][1], jobs[i][0], i)", "(jobs[i][1], -i)"),
                "(jobs[i][2], jobs[i][0], i)",
                "(jobs[i][2], -i)",
            ),
            "ties go to the earliest",
        ),
        ("returns nothing", changed(WAITS, "return waits", "waits"), "returns nothing"),
    ],
)

ROOM = """
def make_room(running, waiting, free, needed):
    preempted = []
    while free < needed and running:
        request = running.pop(-1)
        free += request["blocks"]
        request["blocks"] = 0
        request["computed"] = 0
        waiting.append(request)
        preempted.append(request["name"])
    waiting.sort(key=lambda request: request["arrival"])
    return free, preempted
"""

MAKE_ROOM = Answers(
    right=[
        ("pop and sort", ROOM),
        (
            "recursion and bisect",
            """
            from bisect import insort

            def make_room(running, waiting, free, needed):
                if free >= needed or not running:
                    return free, []
                last = max(running, key=lambda request: request["arrival"])
                running.remove(last)
                insort(waiting, last, key=lambda request: request["arrival"])
                gained, last["blocks"], last["computed"] = last["blocks"], 0, 0
                free, others = make_room(running, waiting, free + gained, needed)
                return free, [last["name"], *others]
            """,
        ),
        (
            "counts first, then cuts",
            """
            def make_room(running, waiting, free, needed):
                stay = len(running)
                while stay and free < needed:
                    stay -= 1
                    free += running[stay]["blocks"]
                gone = running[stay:][::-1]
                del running[stay:]
                for request in gone:
                    request.update(blocks=0, computed=0)
                waiting[:] = sorted(waiting + gone, key=lambda request: request["arrival"])
                return [free, tuple(request["name"] for request in gone)]
            """,
        ),
    ],
    wrong=[
        (
            "as it was",
            """
            def make_room(running, waiting, free, needed):
                preempted = []
                for request in running:
                    if free >= needed:
                        break
                    free += request["blocks"]
                    request["blocks"] = 0
                    running.remove(request)
                    preempted.append(request["name"])
                return free, preempted
            """,
            "in neither list",
        ),
        ("lost", changed(ROOM, "        waiting.append(request)\n", ""), "in neither list"),
        ("computed kept", changed(ROOM, 'request["computed"] = 0', "pass"), "Nothing of it is computed any more"),
        ("blocks kept", changed(ROOM, 'request["blocks"] = 0', "pass"), "given back a second time"),
        ("the oldest goes", changed(ROOM, "pop(-1)", "pop(0)"), "closest to its end"),
        (
            "at the end of the queue",
            changed(ROOM, '    waiting.sort(key=lambda request: request["arrival"])\n', ""),
            "loses its place",
        ),
        (
            "at the front of the queue",
            changed(
                changed(ROOM, '    waiting.sort(key=lambda request: request["arrival"])\n', ""),
                "waiting.append(request)",
                "waiting.insert(0, request)",
            ),
            "before a request that arrived earlier",
        ),
        ("one too many", changed(ROOM, "free < needed", "free <= needed"), "One too many"),
        (
            "its output is gone",
            changed(ROOM, 'request["computed"] = 0', 'request["computed"] = request["tokens"] = 0'),
            "keeps the tokens",
        ),
        (
            "stays in running too",
            changed(ROOM, "running.pop(-1)", "running[-1]").replace(
                "while free < needed and running:", "for _ in range(1 if free < needed and running else 0):"
            ),
            "twice",
        ),
        (
            "a loop over a list that shrinks",
            """
            def make_room(running, waiting, free, needed):
                preempted = []
                for request in reversed(running):
                    if free >= needed:
                        break
                    free += request["blocks"]
                    request["blocks"] = request["computed"] = 0
                    running.pop(0)
                    waiting.append(request)
                    preempted.append(request["name"])
                waiting.sort(key=lambda request: request["arrival"])
                return free, preempted
            """,
            "nobody will ever run it again",
        ),
        ("returns nothing", changed(ROOM, "    return free, preempted\n", ""), "return"),
    ],
)

BANK: dict[str, Answers] = {"ch11.q1": WHO, "ch11.q2": WAITING, "ch11.q3": MAKE_ROOM, **CAPSTONE}
