"""Sampler: logits in, one token a row out. Options, their order and their meaning are vLLM's.

For one row: log-probabilities of the untouched logits; then allowed_token_ids, bad_words, logit_bias, min_tokens,
repetition, frequency and presence penalties; greedy rows take the best token here; the others go on with temperature,
min_p, top_k, top_p and the draw.

**No row can see another.** What a request gets must not depend on its neighbours, its place in the batch, on
preemption or on the way a sum was split over threads. Three choices make that exact rather than likely:

- The random number is `uniform(seed, number of output tokens)`, a hash. A generator would carry state, which a
  preempted or swapped request would have to save and a batch would have to advance once for each row.
- Probabilities become integer weights (the best token has 2**40). Integer sums are associative, so any scan order,
  batch shape or device gives the same cumulative sums from the same weights, and the inverse CDF cannot run past the
  last token or stop on a token of weight zero. Tokens 2**40 times less probable than the best one are never drawn.
- Tokens are ordered by (logit, lowest id first), which has no ties: top_k keeps exactly k tokens, top_p the shortest
  prefix, and top_k=1 is greedy, even though 16-bit models tie often.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from pagedlab.runtime.batch import SamplingRow, StepResult, TokenLogprobs

WEIGHT_OF_BEST = 2.0**40
"""Weight of the most probable token; leaves room for 2**22 tokens in an int64 sum."""

NARROW = 1024
"""Candidates that are looked for before a row is sorted: top-k costs a quarter of a sort of a 49,152-token row."""

CHUNK = 2**18
"""Logits that a CPU works on at a time, so that temporaries stay in its cache and need no fresh memory."""


class SampledRows:
    """Tokens on the device, and on their way to the host.

    Attributes:
        token_ids: [rows] int64, on the device: the next step may start from them before the host knows them
    """

    def __init__(self, token_ids: Tensor, answer: Tensor, rows: list[SamplingRow], scored: list[int]) -> None:
        self.token_ids = token_ids
        self._num_logprobs = [row.num_logprobs for row in rows]
        self._scored = scored
        self._arrived: torch.cuda.Event | None = None
        self._host = answer
        if answer.is_cuda:
            self._host = torch.empty(answer.shape, dtype=answer.dtype, pin_memory=True)
            self._host.copy_(answer, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def result(self) -> StepResult:
        """Wait for the device, once, and read what came."""
        if self._arrived is not None:
            self._arrived.synchronize()
        count, host = len(self._num_logprobs), self._host.numpy()
        result = StepResult(token_ids=host[:count].astype(np.int64).tolist())
        peaks = host[count : 2 * count]
        if not np.isfinite(peaks).all():
            result.errors = {int(i): _explain(peaks[i]) for i in np.flatnonzero(~np.isfinite(peaks))}
        if self._scored:
            table = host[2 * count :].reshape(len(self._scored), 3, -1)
            result.logprobs = [None] * count
            for i, entry in zip(self._scored, table, strict=True):
                result.logprobs[i] = _token_logprobs(entry, self._num_logprobs[i] or 0)
        return result


class Sampler:
    """Chooses one token a row. Holds no state, so one sampler serves every request and any device."""

    def __call__(self, logits: Tensor, rows: list[SamplingRow]) -> StepResult:
        """`start`, and wait for the result."""
        return self.start(logits, rows).result() if rows else StepResult(token_ids=[])

    def start(self, logits: Tensor, rows: list[SamplingRow]) -> SampledRows:
        """Sample `rows[i]` from `logits[i]`; the host does not wait for the device.

        Args:
            logits: [rows, vocab] float32; left unchanged
            rows: what each row wants, at least one

        Returns:
            Token ids, log-probabilities where asked for, and an error for each row without a valid distribution.
        """
        peaks, token_ids = _best(logits)
        special = [i for i, row in enumerate(rows) if not row.params.is_greedy or row.params.changes_logits]
        if special:
            index = _send(special, logits)
            new_peaks, token_ids[index] = _choose(logits, special, [rows[i] for i in special])
            # A row that came in broken stays broken, even if a mask hid its NaN.
            peaks[index] = torch.where(peaks[index].isfinite(), new_peaks, peaks[index])
        scored = [i for i, row in enumerate(rows) if row.num_logprobs is not None]
        answer = [token_ids.double(), peaks.double()]  # float64 holds ids, float32 and ranks exactly: one transfer
        if scored:
            index = _send(scored, logits)
            most = max(rows[i].num_logprobs or 0 for i in scored)
            answer.append(_logprob_table(_rows(logits, index), token_ids[index], most).flatten())
        return SampledRows(token_ids, torch.cat(answer), rows, scored)


def score_prompt(logits: Tensor, target_ids: Sequence[int], num_logprobs: int) -> list[TokenLogprobs]:
    """Log-probabilities of known tokens: `logits[i]` [vocab] is the distribution that `target_ids[i]` came from."""
    if not len(target_ids):
        return []
    targets = _send(np.asarray(target_ids, dtype=np.int64), logits)
    table = _logprob_table(logits, targets, num_logprobs).cpu().numpy()
    return [_token_logprobs(entry, num_logprobs) for entry in table]


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments; 53 random bits."""
    digest = blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _send(values: Sequence[float] | np.ndarray, like: Tensor) -> Tensor:
    """`values` (int64 or float64) on the device of `like`. The host does not wait for what the device is doing."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.device, non_blocking=True)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (ascending) of `x`: `x` itself, not a copy, if that is all of them."""
    return x if len(index) == len(x) else x.index_select(0, index)


def _spans(num_rows: int, x: Tensor) -> Iterator[slice]:
    """Slices of `num_rows` rows like those of `x`, each as many as are handled at a time. Rows are independent."""
    at_once = max(1, CHUNK // x.shape[1]) if x.device.type == "cpu" else max(1, num_rows)
    for start in range(0, num_rows, at_once):
        yield slice(start, start + at_once)


def _best(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Largest value [rows] and its lowest index [rows]. NaN counts as the largest, so the value alone tells of it."""
    on_cpu = logits.device.type == "cpu"  # NumPy gives torch.argmax's answer there, ten times faster
    index = torch.from_numpy(logits.numpy().argmax(-1)) if on_cpu else logits.argmax(-1)
    return logits.gather(1, index[:, None])[:, 0], index


def _choose(logits: Tensor, special: list[int], rows: list[SamplingRow]) -> tuple[Tensor, Tensor]:
    """Rows `special` of `logits`, which are not plain greedy -> (largest logit once changed, token id)."""
    x = _rows(logits, _send(special, logits))
    if any(row.params.changes_logits for row in rows):
        x = x.clone() if x is logits else x  # the caller's logits stay as they are
        _change_logits(x, rows)
    peaks, token_ids = _best(x)
    drawn = [i for i, row in enumerate(rows) if not row.params.is_greedy]
    for span in _spans(len(drawn), x):
        part = drawn[span]
        index = _send(part, x)
        token_ids[index] = _draw(_rows(x, index), peaks[index], [rows[i] for i in part])
    return peaks, token_ids


def _change_logits(x: Tensor, rows: list[SamplingRow]) -> None:
    """Apply what changes logits to `x` [rows, vocab], in place. Unknown token ids do nothing."""
    vocab = x.shape[1]
    flat = x.view(-1)
    biased: list[np.ndarray] = []  # flat indices, and what their logits get
    bias: list[np.ndarray] = []
    banned: list[int] = []
    seen: list[np.ndarray] = []  # flat indices; then, for each of them, how its logit changes
    scale: list[np.ndarray] = []
    subtract: list[np.ndarray] = []
    for i, row in enumerate(rows):
        params, output = row.params, row.output_token_ids
        if params.allowed_token_ids is not None:
            allowed = _send([t for t in params.allowed_token_ids if t < vocab], x)
            kept = x[i, allowed]
            x[i].fill_(-math.inf)
            x[i, allowed] = kept
        if row.bad_word_ids:
            banned += [i * vocab + t for t in _last_tokens(row.bad_word_ids, list(output)) if t < vocab]
        if params.logit_bias:
            tokens, values = row.bias
            known = (tokens >= 0) & (tokens < vocab)
            biased.append(i * vocab + tokens[known])
            bias.append(values[known])
        if len(output) < params.min_tokens:
            banned += [i * vocab + t for t in row.stop_token_ids if 0 <= t < vocab]
        if params.repetition_penalty == 1.0 and not params.frequency_penalty and not params.presence_penalty:
            continue
        # The prompt counts for the repetition penalty only.
        prompt = row.prompt_token_ids if params.repetition_penalty != 1.0 else ()
        context = np.concatenate([np.asarray(prompt, np.int64), np.asarray(output, np.int64)])
        tokens, where = np.unique(context, return_inverse=True)
        counts = np.bincount(where[len(prompt) :], minlength=len(tokens))
        known = (tokens >= 0) & (tokens < vocab)
        tokens, counts = tokens[known], counts[known]
        seen.append(i * vocab + tokens)
        scale.append(np.full(len(tokens), params.repetition_penalty))
        subtract.append(params.frequency_penalty * counts + params.presence_penalty * (counts > 0))
    if biased:
        flat.index_add_(0, _send(np.concatenate(biased), x), _send(np.concatenate(bias), x).to(x.dtype))
    if banned:
        flat.index_fill_(0, _send(banned, x), -math.inf)
    if seen:
        index = _send(np.concatenate(seen), x)
        penalty, minus = _send(np.stack((np.concatenate(scale), np.concatenate(subtract))), x).to(x.dtype)
        old = flat[index]
        flat[index] = torch.where(old > 0, old / penalty, old * penalty) - minus


def _last_tokens(words: Sequence[Sequence[int]], output: list[int]) -> list[int]:
    """Tokens that would complete one of `words` behind `output`."""
    return [last for *start, last in words if not start or output[-len(start) :] == start]


def _draw(x: Tensor, peaks: Tensor, rows: list[SamplingRow]) -> Tensor:
    """Draw one token id a row from logits `x` [rows, vocab], whose largest are `peaks` [rows]."""
    vocab = x.shape[1]
    options = [
        (
            uniform(row.seed, len(row.output_token_ids) + row.num_in_flight),
            row.params.temperature,
            row.params.min_p,
            row.params.top_p,
        )
        for row in rows
    ]
    u, temperature, min_p, top_p = _send(np.array(options, dtype=np.float64).T, x)
    limits = [row.params.top_k if 0 < row.params.top_k < vocab else vocab for row in rows]
    weights = x.sub(peaks[:, None]).div_(temperature.float()[:, None]).exp_()
    if any(row.params.min_p > 0 for row in rows):
        weights.masked_fill_(weights < min_p.float()[:, None], 0.0)
    weights = weights.mul_(WEIGHT_OF_BEST).long()

    token_ids = torch.empty(len(rows), dtype=torch.int64, device=x.device)
    top_k = _send(limits, x)

    def draw_best(members: list[int], reach: int) -> list[int]:
        """Draw for `members` among their best `reach` tokens; return those whose top_k or top_p asks for more."""
        index = _send(members, x)
        ranked = _ranked_ids(_rows(x, index), reach)
        token_ids[index], covered = _draw_ranked(ranked, _rows(weights, index), top_k[index], top_p[index], u[index])
        if reach >= max(limits[i] for i in members):
            return []
        return [i for i, done in zip(members, covered.tolist(), strict=True) if not done]

    whole: list[int] = []
    narrow: list[int] = []
    wide: list[int] = []
    for i, row in enumerate(rows):
        untruncated = limits[i] == vocab and row.params.top_p >= 1.0
        (whole if untruncated else narrow if limits[i] <= NARROW else wide).append(i)
    if whole:
        index = _send(whole, x)
        token_ids[index] = _invert(_rows(weights, index), u[index])
    if narrow:
        draw_best(narrow, max(limits[i] for i in narrow))
    if wide and x.device.type == "cpu":  # looking costs nothing here, but on a GPU the host would have to wait
        wide = draw_best(wide, NARROW)
    if wide:
        draw_best(wide, vocab)
    return token_ids


def _draw_ranked(ranked: Tensor, weights: Tensor, top_k: Tensor, top_p: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Draw from the best tokens `ranked` [rows, reach], cut to `top_k` tokens and then to a mass of `top_p`.

    Returns the token ids, and for each row whether `ranked` reached far enough for its options.
    """
    reach, vocab = ranked.shape[1], weights.shape[1]
    mass = weights.sum(-1)
    weights = weights.gather(1, ranked)
    weights.masked_fill_(torch.arange(reach, device=ranked.device) >= top_k[:, None], 0)
    through = weights.cumsum(-1)
    # top_p is a share of what top_k left over.
    wanted = top_p * torch.where(top_k < vocab, through[:, -1], mass)
    weights.masked_fill_((through - weights).double() >= wanted[:, None], 0)
    covered = (top_k <= reach) | ((top_k == vocab) & (through[:, -1] >= wanted))
    return ranked.gather(1, _invert(weights, u)[:, None])[:, 0], covered


def _invert(weights: Tensor, u: Tensor) -> Tensor:
    """Inverse CDF: the first position whose cumulative weight is above `u` of the total. `weights` is int64."""
    through = weights.cumsum(-1)
    total = through[:, -1]
    target = (u * total).long()  # u is at most 1 - 2**-53: even rounded, the product is below total
    position = torch.searchsorted(through, target[:, None].contiguous(), right=True)[:, 0]
    return position.clamp_(max=weights.shape[1] - 1)  # only a row of NaN gets there


def _ranked_ids(x: Tensor, reach: int) -> Tensor:
    """Ids of the `reach` largest values of each row [rows, reach], equal values by lowest id.

    Value and id are packed into one int64, so that no tie is left for the sort to break as it likes.
    """
    bits = (x + 0.0).view(torch.int32)  # + 0.0 turns -0.0 into 0.0, its equal
    keys = torch.empty((*x.shape, 2), dtype=torch.int32, device=x.device)
    flip = (bits >> 31).bitwise_and_(0x7FFFFFFF)  # the lower bits of negative numbers
    torch.bitwise_xor(bits, flip, out=keys[..., 1])  # high word: integers in the order of the floats
    keys[..., 0] = ~torch.arange(x.shape[1], dtype=torch.int32, device=x.device)  # low word, unsigned: small ids high
    packed = keys.view(torch.int64)[..., 0]
    if reach < x.shape[1]:
        best = packed.topk(reach).values
    elif x.device.type == "cpu":  # NumPy's integer sort is vectorised: half the time of torch's
        best = torch.from_numpy(np.sort(packed.numpy())[:, ::-1].copy())
    else:
        best = packed.sort(descending=True).values
    return ~best.contiguous().view(torch.int32)[:, ::2].long()


def _logprob_table(logits: Tensor, token_ids: Tensor, num_logprobs: int) -> Tensor:
    """[rows, (ids, log-probabilities, ranks), 1 + num_logprobs] float64: the given token first, then the best.

    The given token's rank is one more than the number of better tokens, so that a greedy token is first even when it
    ties (vLLM counts its equals too); those listed rank by position.
    """
    num_logprobs = min(num_logprobs, logits.shape[1])
    table = torch.empty(len(logits), 3, 1 + num_logprobs, dtype=torch.float64, device=logits.device)
    for span in _spans(len(logits), logits):
        logprobs = logits[span].log_softmax(-1)
        ids = token_ids[span, None]
        rank = 1 + (logits[span] > logits[span].gather(1, ids)).sum(-1)
        if num_logprobs:
            ids = torch.cat((ids, _ranked_ids(logits[span], num_logprobs)), 1)
        table[span, 0] = ids.double()
        table[span, 1] = logprobs.gather(1, ids).double()
        table[span, 2] = torch.arange(1 + num_logprobs, device=logits.device).double()
        table[span, 2, 0] = rank.double()
    return table


def _token_logprobs(entry: np.ndarray, num_logprobs: int) -> TokenLogprobs:
    ids, logprobs, ranks = entry[:, : 1 + num_logprobs]
    return TokenLogprobs(ids.astype(np.int64).tolist(), logprobs.tolist(), ranks.astype(np.int64).tolist())


def _explain(peak: float) -> str:
    if math.isnan(peak):
        return "The model returned NaN logits: check its weights, and try dtype='float32' if it ran in 16 bits."
    if peak > 0:
        return "A logit is infinite: check the model's weights, and raise repetition_penalty if it is close to 0."
    return "No token is left to choose from: every logit is -inf; loosen logit_bias, min_tokens or the stop tokens."
