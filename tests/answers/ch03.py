"""Answers to the questions of chapter 03."""

from answers import Answers
from answers.editing import changed


def llama(**entries: str) -> str:
    right = {
        "token_bytes": "524288",
        "thousand_mib": "500",
        "ten_requests_gib": "2500 / 1024",
        "requests_on_card": "40",
        "requests_with_8_kv_heads": "160",
    }
    return "llama = {" + ", ".join(f'"{key}": {value}' for key, value in {**right, **entries}.items()) + "}"


LLAMA = Answers(
    right=[
        ("plain numbers", llama()),
        (
            "bytes of a tensor",
            """
            def kv(tokens, heads=32):
                return torch.empty(2, 32, tokens, heads, 128, dtype=torch.float16, device="meta").nbytes

            free = 24e9 - 13.48e9
            llama = dict(token_bytes=kv(1), thousand_mib=kv(1000) / 1024 / 1024, ten_requests_gib=kv(5000) / 1024**3)
            llama["requests_on_card"] = math.floor(free / kv(500))
            llama["requests_with_8_kv_heads"] = np.floor(free / kv(500, heads=8))
            """,
        ),
    ],
    wrong=[
        ("keys only", llama(token_bytes="32 * 32 * 128 * 2"), "a key and a value"),
        ("one layer", llama(token_bytes="2 * 32 * 128 * 2"), "one layer"),
        ("queries too", llama(token_bytes="3 * 32 * 32 * 128 * 2"), "Queries are not cached"),
        ("four bytes", llama(token_bytes="2 * 32 * 32 * 128 * 4"), "2 bytes, not 4"),
        ("KiB", llama(token_bytes="512"), "bytes are asked"),
        ("MB for MiB", llama(thousand_mib="524.288"), "Those are MB"),
        ("1,024 tokens", llama(thousand_mib="512"), "1,000 tokens are asked"),
        ("GB for GiB", llama(ten_requests_gib="2.62144"), "Those are GB"),
        ("one request", llama(ten_requests_gib="0.244140625"), "ten are asked"),
        ("1,000 MiB a GiB", llama(ten_requests_gib="2.5"), "1,024 MiB"),
        ("weights forgotten", llama(requests_on_card="24e9 // (500 * 524288)"), "weights lie in the same memory"),
        ("half a MB a token", llama(requests_on_card="int((24e9 - 13.48e9) / (500 * 0.5e6))"), "not half a million"),
        ("GiB", llama(requests_on_card="int((24 * 2**30 - 13.48e9) / (500 * 524288))"), "not 24 GiB"),
        ("a part of a request", llama(requests_on_card="(24e9 - 13.48e9) / (500 * 524288)"), "round down"),
        ("rounded up", llama(requests_on_card="41"), "does not fit whole"),
        ("KV heads change nothing", llama(requests_with_8_kv_heads="40"), "a quarter of the bytes"),
        ("an eighth", llama(requests_with_8_kv_heads="321"), "not an eighth"),
    ],
)

BYTES = """
def bytes_per_token(config, bytes_per_element):
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    if "kv_lora_rank" in config:
        return layers * (config["kv_lora_rank"] + config["qk_rope_head_dim"]) * bytes_per_element
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    return 2 * layers * kv_heads * head_dim * bytes_per_element
"""


def size(*changes: str) -> str:
    return changed(BYTES, *changes)


SIZES = Answers(
    right=[
        ("two formulas", BYTES),
        (
            "added up",
            """
            def bytes_per_token(config, bytes_per_element):
                total = 0
                for _ in range(config["num_hidden_layers"]):
                    if config.get("kv_lora_rank"):
                        total += config["kv_lora_rank"]
                        total += config["qk_rope_head_dim"]
                        continue
                    heads = config["num_attention_heads"]
                    width = config["head_dim"] if "head_dim" in config else config["hidden_size"] / heads
                    for kind in ("key", "value"):
                        total += config.get("num_key_value_heads", heads) * width
                return total * bytes_per_element
            """,
        ),
    ],
    wrong=[
        ("query heads", size("* kv_heads *", "* heads *"), "count KV heads"),
        ("keys only", size("2 * layers", "layers"), "Half is missing"),
        ("queries too", size("2 * layers", "3 * layers"), "Queries are not cached"),
        ("one layer", size("layers * (", "(", "2 * layers * ", "2 * "), "every layer has a cache"),
        ("head_dim ignored", size('config.get("head_dim") or ', ""), "only the default"),
        (
            "width from KV heads",
            size('"hidden_size"] // heads', '"hidden_size"] // kv_heads'),
            "divide hidden_size by the query heads",
        ),
        ("latent ignored", size('if "kv_lora_rank" in config', "if False"), "no key or value of a head"),
        ("rotated key forgotten", size(' + config["qk_rope_head_dim"]', ""), "rotated key"),
        ("two latents", size("layers * (config", "2 * layers * (config"), "no factor 2"),
        ("a latent for each head", size("layers * (config", "heads * layers * (config"), "does not enter"),
        (
            "one KV head by default",
            size('.get("num_key_value_heads") or heads', '.get("num_key_value_heads", 1)'),
            "as many KV heads as query heads",
        ),
        ("heads in a group", size("* kv_heads *", "* (heads // kv_heads) *"), "heads in a group"),
        (
            "divided by 8",
            size(
                "head_dim * bytes_per_element",
                "head_dim * bytes_per_element // 8",
                "* bytes_per_element\n",
                "* bytes_per_element // 8\n",
            ),
            "in bytes already",
        ),
    ],
)

CACHE = """
class FixedCache:
    def __init__(self, layers, capacity, kv_heads, head_dim):
        self.memory = torch.zeros(2, layers, capacity, kv_heads, head_dim)
        self.lengths = [0 for _ in range(layers)]
        self.capacity = capacity

    def append(self, layer, key, value):
        start = self.lengths[layer]
        end = start + key.shape[0]
        if end > self.capacity:
            raise ValueError("full")
        self.memory[0, layer, start:end] = key
        self.memory[1, layer, start:end] = value
        self.lengths[layer] = end
        return self.memory[0, layer, :end], self.memory[1, layer, :end]

    def crop(self, length):
        for layer in range(len(self.lengths)):
            self.lengths[layer] = min(length, self.lengths[layer])

    def __len__(self):
        return self.lengths[0]
"""


def cache(*changes: str) -> str:
    return changed(CACHE, *changes)


CACHES = Answers(
    right=[
        ("one tensor for both", CACHE),
        (
            "a small object for each layer",
            """
            class Layer:
                def __init__(self, *shape):
                    self.k, self.v, self.n = torch.full(shape, math.nan), torch.full(shape, math.nan), 0


            class FixedCache:
                def __init__(self, layers, capacity, kv_heads, head_dim):
                    self.layers = [Layer(capacity, kv_heads, head_dim) for _ in range(layers)]

                def append(self, layer, key, value):
                    one, new = self.layers[layer], len(key)
                    if one.n + new > len(one.k):
                        raise ValueError
                    for memory, rows in ((one.k, key), (one.v, value)):
                        memory[one.n : one.n + new].copy_(rows)
                    one.n += new
                    return one.k.narrow(0, 0, one.n), one.v.narrow(0, 0, one.n)

                def crop(self, length):
                    for one in self.layers:
                        one.n = min(one.n, length)

                def __len__(self):
                    return self.layers[0].n
            """,
        ),
    ],
    wrong=[
        (
            "only the new rows",
            cache("layer, :end], self", "layer, start:end], self", "layer, :end]\n", "layer, start:end]\n"),
            "Only the new rows",
        ),
        (
            "everything comes back",
            cache("layer, :end], self", "layer], self", "layer, :end]\n", "layer]\n"),
            "empty places",
        ),
        (
            "written over from the start",
            cache(
                "layer, start:end] = key",
                "layer, : end - start] = key",
                "layer, start:end] = value",
                "layer, : end - start] = value",
            ),
            "written over",
        ),
        (
            "grows by one",
            cache("end = start + key.shape[0]", "end = start + 1; key, value = key[:1], value[:1]"),
            "as many rows as are appended",
        ),
        (
            "one length for all layers",
            cache("= end\n", "= end; self.lengths = [end] * len(self.lengths)\n"),
            "its own length",
        ),
        (
            "values where keys are",
            cache("self.memory[1, layer, start:end] = value", "self.memory[1, layer, start:end] = key"),
            "values are not those",
        ),
        (
            "copied each time",
            cache(
                "return self.memory[0, layer, :end], self.memory[1, layer, :end]",
                "return self.memory[0, layer, :end].clone(), self.memory[1, layer, :end].clone()",
            ),
            "was copied",
        ),
        (
            "torch.cat as in the chapter",
            """
            class FixedCache:
                def __init__(self, layers, capacity, kv_heads, head_dim):
                    self.parts = [torch.empty(2, 0, kv_heads, head_dim) for _ in range(layers)]
                    self.capacity = capacity

                def append(self, layer, key, value):
                    if self.parts[layer].shape[1] + len(key) > self.capacity:
                        raise ValueError("full")
                    self.parts[layer] = torch.cat([self.parts[layer], torch.stack([key, value])], dim=1)
                    return tuple(self.parts[layer])

                def crop(self, length):
                    self.parts = [part[:, :length] for part in self.parts]

                def __len__(self):
                    return self.parts[0].shape[1]
            """,
            "was copied",
        ),
        ("nothing returned", cache("return self.memory[0", "self.memory[0"), "must return two tensors"),
        ("keys alone returned", cache(", self.memory[1, layer, :end]", ""), "must return two tensors"),
        (
            "only the rows of the first token written",
            cache("layer, start:end] = key", "layer, start : start + 1] = key[:1]"),
            "not those that were appended",
        ),
        (
            "torch's own error when full",
            cache('        if end > self.capacity:\n            raise ValueError("full")\n', ""),
            "must raise ValueError",
        ),
        (
            "no error when full",
            cache(
                '            raise ValueError("full")',
                "            return self.memory[0, layer, :start], self.memory[1, layer, :start]",
            ),
            "must raise ValueError",
        ),
        ("full one too early", cache("end > self.capacity", "end >= self.capacity"), "there is room here"),
        (
            "written in part before the error",
            cache('raise ValueError("full")', 'self.lengths[layer] = self.capacity; raise ValueError("full")'),
            "there is room here",
        ),
        (
            "crop forgets nothing",
            cache("min(length, self.lengths[layer])", "self.lengths[layer]"),
            "that crop has made it forget",
        ),
        (
            "crop of layer 0 alone",
            cache("for layer in range(len(self.lengths))", "for layer in [0]"),
            "crop must make every layer",
        ),
        ("length in layers", cache("return self.lengths[0]", "return sum(self.lengths)"), "tokens of layer 0"),
        (
            "heads in front",
            cache(
                "return self.memory[0, layer, :end], self.memory[1, layer, :end]",
                "return self.memory[0, layer, :end].transpose(0, 1), self.memory[1, layer, :end].transpose(0, 1)",
            ),
            "[kv_heads, head_dim]",
        ),
    ],
)

GROUPED = """
def decode_attention(q, k, v):
    heads, kv_heads = q.shape[0], k.shape[1]
    index = torch.arange(heads) // (heads // kv_heads)
    k, v = k[:, index], v[:, index]
    scores = (q[None] * k).sum(-1) * q.shape[1] ** -0.5
    weights = scores.softmax(dim=0)
    return (weights[..., None] * v).sum(0)
"""


def grouped(*changes: str) -> str:
    return changed(GROUPED, *changes)


INDEX = "torch.arange(heads) // (heads // kv_heads)"
GROUPS = Answers(
    right=[
        ("by an index", GROUPED),
        (
            "head by head in NumPy",
            """
            def decode_attention(q, k, v):
                q, k, v = q.numpy(), k.numpy(), v.numpy()
                output = []
                for head, query in enumerate(q):
                    source = head * k.shape[1] // len(q)
                    scores = k[:, source] @ query / math.sqrt(len(query))
                    weights = np.exp(scores - scores.max())
                    output.append(weights @ v[:, source] / weights.sum())
                return np.stack(output)
            """,
        ),
        (
            "groups as a dimension",
            """
            def decode_attention(q, k, v):
                by_group = q.view(k.shape[1], -1, q.shape[1])
                weights = (by_group @ k.permute(1, 2, 0) / q.shape[1] ** 0.5).softmax(-1)
                return (weights @ v.transpose(0, 1)).reshape(q.shape)
            """,
        ),
    ],
    wrong=[
        ("tiled", grouped(INDEX, "torch.arange(heads) % kv_heads"), "dealt out in turn"),
        ("always KV head 0", grouped(INDEX, "torch.zeros(heads, dtype=torch.long)"), "KV head 0"),
        (
            "remainder by the group",
            grouped(INDEX, "torch.arange(heads) % (heads // kv_heads) % kv_heads"),
            "do not take the remainder",
        ),
        (
            "the last KV head for the rest",
            grouped(INDEX, "torch.arange(heads).clamp_max(kv_heads - 1)"),
            "serves all later query heads",
        ),
        ("values tiled", grouped("v[:, index]", "v[:, torch.arange(heads) % kv_heads]"), "values are not"),
        (
            "averaged",
            grouped("k, v = k[:, index], v[:, index]", "k, v = k.mean(1, keepdim=True), v.mean(1, keepdim=True)"),
            "not averaged",
        ),
        (
            "group shares weights",
            grouped(
                "weights = scores",
                "scores = scores.view(len(k), kv_heads, -1).mean(2)[:, index]; weights = scores",
            ),
            "weights of its own",
        ),
        ("not scaled", grouped(" * q.shape[1] ** -0.5", ""), "not scaled"),
        ("softmax over heads", grouped("dim=0", "dim=1"), "runs over the keys"),
        ("without itself", grouped("weights = scores", "scores[-1] = -math.inf; weights = scores"), "sees itself too"),
        (
            "row 0 of a causal mask",
            grouped("weights = scores", "scores[1:] = -math.inf; weights = scores"),
            "nothing is masked",
        ),
        ("one head", grouped(".sum(0)", ".sum(0)[:1]"), "one row for each query head"),
    ],
)

CHAT = """
def chat_work(turns):
    def scores(first, last):  # of the rows at positions first, first + 1, ..., last - 1
        return sum(p + 1 for p in range(first, last))

    rows = {"naive": 0, "per_answer": 0, "kept": 0}
    pairs = dict(rows)
    text = cached = 0
    for said, made in turns:
        text += said
        end = text + made - 1
        for n in range(text, end + 1):
            rows["naive"] += n
            pairs["naive"] += scores(0, n)
        for name, start in (("per_answer", 0), ("kept", cached)):
            rows[name] += end - start
            pairs[name] += scores(start, end)
        text, cached = text + made, end
    return {name: (rows[name], pairs[name]) for name in rows}
"""


def chat(*changes: str) -> str:
    return changed(CHAT, *changes)


CHATS = Answers(
    right=[
        ("from first to last position", CHAT),
        (
            "closed forms",
            """
            def chat_work(turns):
                def triangle(n):
                    return n * (n + 1) // 2

                def pyramid(n):
                    return n * (n + 1) * (n + 2) // 6

                naive, per_answer, text = np.zeros(2, dtype=int), np.zeros(2, dtype=int), 0
                for said, made in turns:
                    before, text = text + said - 1, text + said + made
                    last = text - 1
                    naive += [triangle(last) - triangle(before), pyramid(last) - pyramid(before)]
                    per_answer += [last, triangle(last)]
                return {"naive": naive, "per_answer": per_answer, "kept": [text - 1, triangle(text - 1)]}
            """,
        ),
    ],
    wrong=[
        (
            "the last token fed too",
            chat("end = text + made - 1", "end = text + made", "text + made, end", "text + made, end"),
            "no pass of that answer is fed it",
        ),
        (
            "the pending token forgotten",
            chat("text, cached = text + made, end", "text, cached = text + made, end + 1"),
            "never fed",
        ),
        (
            "whole squares",
            chat(
                "return sum(p + 1 for p in range(first, last))",
                "return (last - first) ** 2 if first == 0 else sum(p + 1 for p in range(first, last))",
                "pairs[name] += scores(start, end)",
                "pairs[name] += (text - start) * text + scores(text, end)",
            ),
            "Whole squares",
        ),
        (
            "each pass as the last",
            chat(
                "text = cached = 0",
                "text = cached = 0; all_tokens = sum(s + m for s, m in turns)",
                'rows["naive"] += n',
                'rows["naive"] += all_tokens - 1',
                "scores(0, n)",
                "scores(0, all_tokens - 1)",
            ),
            "as if it were the last",
        ),
        (
            "a free prefill",
            chat(
                "rows[name] += end - start",
                "rows[name] += end - (text if name == 'per_answer' else start)",
                "pairs[name] += scores(start, end)",
                "pairs[name] += scores(text if name == 'per_answer' else start, end)",
            ),
            "does not speed up a prefill",
        ),
        (
            "constant decode",
            chat("pairs[name] += scores(start, end)", "pairs[name] += scores(start, text) + made - 1"),
            "not O(1)",
        ),
        ("every turn alone", chat("text += said", "text = said; cached = 0"), "conversation goes on"),
        (
            "the wrong way round",
            chat('(("per_answer", 0), ("kept", cached))', '(("kept", 0), ("per_answer", cached))'),
            "wrong way round",
        ),
        (
            "squares of everything",
            chat(
                "return sum(p + 1 for p in range(first, last))",
                "return sum((p + 1) ** 2 for p in range(first, last))",
                'pairs["naive"] += scores(0, n)',
                'pairs["naive"] += n * n',
                "pairs[name] += scores(start, end)",
                "pairs[name] += text * text + scores(text, end)",
            ),
            "a new row meets each key once",
        ),
        (
            "a tuple",
            chat(
                "return {name: (rows[name], pairs[name]) for name in rows}",
                "return [(rows[name], pairs[name]) for name in rows]",
            ),
            "Return a dictionary",
        ),
        (
            "kept counts the answers alone",
            chat("rows[name] += end - start", "rows[name] += end - start if start == 0 else made"),
            "kept is not right",
        ),
    ],
)

GENERATE = """
def generate(project, choose, prompt, new_tokens):
    keys = values = torch.empty(0, 8)
    output, lengths, fed = [], [], prompt
    for _ in range(new_tokens):
        past = len(keys)
        q, k, v = project(fed, torch.arange(past, past + len(fed)))
        keys, values = torch.cat([keys, k]), torch.cat([values, v])
        may_see = torch.ones(len(q), len(keys), dtype=torch.bool).tril(past)
        scores = (q @ keys.T / math.sqrt(8)).masked_fill(~may_see, -math.inf)
        lengths.append(len(keys))
        output.append(choose((scores.softmax(dim=-1) @ values)[-1]))
        fed = output[-1:]
    return output, lengths
"""
POSITIONS = ("torch.arange(past, past + len(fed))", "torch.arange(len(fed))")
MASK = ("tril(past)", "tril()")
REFED = ("fed = output[-1:]", "fed = prompt + output")
COUNT = ("range(new_tokens)", "range(new_tokens + 1)", "return output, lengths", "return output[1:], lengths")


def generate(*changes: str) -> str:
    return changed(GENERATE, *changes)


GENERATIONS = Answers(
    right=[
        ("the broken lines repaired", GENERATE),
        (
            "prefill and decode apart, keys in a list, no mask",
            """
            def generate(project, choose, prompt, new_tokens):
                keys, values = [], []

                def step(token, position):
                    q, k, v = project([token], [position])
                    keys.append(k[0])
                    values.append(v[0])
                    weights = (torch.stack(keys) @ q[0] / 8**0.5).softmax(0)
                    return weights @ torch.stack(values)

                for position, token in enumerate(prompt):
                    row = step(token, position)
                tokens, lengths = [choose(row)], [len(keys)]
                while len(tokens) < new_tokens:
                    tokens.append(choose(step(tokens[-1], len(keys))))
                    lengths.append(len(keys))
                return tokens, lengths
            """,
        ),
    ],
    wrong=[
        ("nothing repaired", generate(*POSITIONS, *MASK, *REFED, *COUNT), "Still in it"),
        ("positions left", generate(*POSITIONS), "positions restart at 0"),
        ("mask left", generate(*MASK), "mask is that of a prompt"),
        ("the whole text fed", generate(*REFED), "whole text is fed again"),
        ("one pass too many", generate(*COUNT), "the prefill yields a token"),
        ("positions and mask left", generate(*POSITIONS, *MASK), "mask is that of a prompt"),
        ("mask and count left", generate(*MASK, *COUNT), "the prefill yields a token"),
        ("all but the count left", generate(*POSITIONS, *MASK, *REFED), "positions restart at 0"),
        (
            "cache thrown away",
            generate("torch.cat([keys, k]), torch.cat([values, v])", "k, v", *POSITIONS, *MASK),
            "thrown away",
        ),
        (
            "positions one too large",
            generate("torch.arange(past, past + len(fed))", "torch.arange(past, past + len(fed)) + (past > 0)"),
            "one too large",
        ),
        ("queries cached", generate("torch.cat([keys, k])", "torch.cat([keys, q])"), "Queries were cached"),
        ("no diagonal", generate("tril(past)", "tril(past - 1)"), "does not see itself"),
        ("the first row", generate("@ values)[-1]", "@ values)[0]"), "not from the first"),
        (
            "lengths of the text",
            generate("lengths.append(len(keys))", "lengths.append(len(prompt) + len(output) + 1)"),
            "lengths are not",
        ),
        ("one token too few", generate("range(new_tokens)", "range(new_tokens - 1)"), "New tokens that are asked"),
        ("the tokens alone", generate("return output, lengths", "return output"), "two lists"),
    ],
)

BANK = {
    "ch03.q1": LLAMA,
    "ch03.q2": SIZES,
    "ch03.q3": CACHES,
    "ch03.q4": GROUPS,
    "ch03.q5": CHATS,
    "ch03.q6": GENERATIONS,
}
