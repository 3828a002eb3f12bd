"""The sampler does what each option says, and no row's token depends on another row."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pagedlab.runtime import sampler as sampler_module
from pagedlab.runtime.batch import SamplingRow
from pagedlab.runtime.sampler import Sampler, score_prompt, uniform
from pagedlab.sampling_params import SamplingParams

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
GRID = 1000
QUICK = settings(derandomize=True, deadline=None, max_examples=60)


def row(params: SamplingParams, seed=0, prompt=(), output=(), stop=(), num_logprobs=None, bad_words=()) -> SamplingRow:
    return SamplingRow(0, params, seed, list(prompt), list(output), tuple(stop), num_logprobs, bad_word_ids=bad_words)


def draw_shares(monkeypatch, logits: np.ndarray, device="cpu", **options) -> np.ndarray:
    """How much of the interval [0, 1) each token owns: GRID draws whose random numbers are the grid's midpoints."""
    like = row(**options)
    rows = [dataclasses.replace(like, seed=i) for i in range(GRID)]
    with monkeypatch.context() as patch:
        patch.setattr(sampler_module, "uniform", lambda seed, index: (seed + 0.5) / GRID)
        result = Sampler()(torch.tensor(logits, dtype=torch.float32, device=device).expand(GRID, -1), rows)
    assert not result.errors
    return np.bincount(result.token_ids, minlength=len(logits)) / GRID


def oracle(logits: np.ndarray, params: SamplingParams) -> tuple[np.ndarray, float]:
    """Probabilities left by temperature, min_p, top_k and top_p, token by token; and how close top_p's cut was."""
    x = (logits.astype(np.float64) - logits.max()) / params.temperature
    weights = np.exp(x)
    weights[weights < params.min_p] = 0.0
    order = sorted(range(len(x)), key=lambda i: (-logits[i], i))
    if params.top_k > 0:
        weights[order[params.top_k :]] = 0.0
    total, before, margin = weights.sum(), 0.0, 1.0
    for i in order:
        margin = min(margin, abs(before / total - params.top_p))
        before += weights[i]
        if before - weights[i] >= params.top_p * total:
            weights[i] = 0.0
    return weights / weights.sum(), margin


@pytest.fixture
def small_reach(monkeypatch):
    """Makes small vocabularies take the ways of large ones: several chunks, a probe of the best tokens, then a sort."""
    monkeypatch.setattr(sampler_module, "NARROW", 4)
    monkeypatch.setattr(sampler_module, "CHUNK", 8000)


LOGITS = st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=24).map(np.array)
TIED_LOGITS = st.lists(st.sampled_from([-1.0, -0.0, 0.0, 1.0, 2.0]), min_size=1, max_size=24).map(np.array)
TRUNCATION = st.builds(
    SamplingParams,
    temperature=st.floats(0.3, 3),
    top_k=st.sampled_from([-1, 0, 1, 2, 3, 7, 23, 1000]),
    top_p=st.sampled_from([0.01, 0.37, 0.5, 0.71, 0.93, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reach", [4, 1024])
@QUICK
@given(logits=st.one_of(LOGITS, TIED_LOGITS), params=TRUNCATION)
def test_a_draw_follows_the_probabilities_that_the_options_leave(device, reach, logits, params):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler_module, "NARROW", reach)
        patch.setattr(sampler_module, "CHUNK", 1000 if reach == 4 else 2**18)
        shares = draw_shares(patch, logits, device=device, params=params)
    expected, margin = oracle(logits, params)
    min_p_margin = np.abs(np.exp((logits - logits.max()) / params.temperature) - params.min_p).min()
    assume(margin == 0 or margin > 1e-6)  # float32 may decide such a near miss the other way
    assume(min_p_margin == 0 or min_p_margin > 1e-6)
    # A token that owns an interval of length p holds p * GRID midpoints, give or take one.
    assert np.abs(shares - expected).max() <= 1.01 / GRID
    assert not shares[expected == 0].any()
    assert (shares[expected > 1.01 / GRID] > 0).all()


@pytest.mark.parametrize("device", DEVICES)
def test_top_p_of_a_wide_distribution_is_exact_beyond_the_probe(monkeypatch, device):
    flat = np.zeros(5000, dtype=np.float32)
    flat[3] = 5.0
    shares = draw_shares(monkeypatch, flat, device=device, params=SamplingParams(top_p=0.5))
    kept = math.ceil(0.5 * (math.exp(5) + 4999) - math.exp(5))  # token 3, then the lowest ids
    assert shares[3] == pytest.approx(math.exp(5) / (math.exp(5) + kept), abs=2 / GRID)
    assert shares[kept + 1 :].sum() == 0 and shares[kept - 9 : kept + 1].sum() > 0


WARPERS = {
    "temperature": (SamplingParams(temperature=0.7), [TemperatureLogitsWarper(0.7)]),
    "top_k": (SamplingParams(top_k=5), [TopKLogitsWarper(5)]),
    "top_p": (SamplingParams(top_p=0.8), [TopPLogitsWarper(0.8)]),
    "min_p": (SamplingParams(min_p=0.15), [MinPLogitsWarper(0.15)]),
    "all": (
        SamplingParams(temperature=1.7, min_p=0.02, top_k=12, top_p=0.9),
        [TemperatureLogitsWarper(1.7), MinPLogitsWarper(0.02), TopKLogitsWarper(12), TopPLogitsWarper(0.9)],
    ),
}


@pytest.mark.parametrize("name", WARPERS)
@pytest.mark.parametrize("seed", range(8))
def test_truncation_agrees_with_transformers(monkeypatch, small_reach, name, seed):
    params, warpers = WARPERS[name]
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(seed)) * 1.5
    scores = logits
    for warper in warpers:
        scores = warper(torch.zeros(1, 0, dtype=torch.long), scores)
    expected = scores.double().softmax(-1)[0].numpy()
    shares = draw_shares(monkeypatch, logits[0].numpy(), params=params)
    assert np.abs(shares - expected).max() <= 1.01 / GRID
    assert not shares[expected == 0].any()


PENALTIES = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1.0]),
    repetition_penalty=st.sampled_from([0.5, 1.0, 1.3, 5.0]),
    presence_penalty=st.sampled_from([-2.0, 0.0, 0.7]),
    frequency_penalty=st.sampled_from([-0.5, 0.0, 1.1]),
    logit_bias=st.one_of(st.none(), st.dictionaries(st.integers(0, 9), st.floats(-5, 5), max_size=3)),
    min_tokens=st.sampled_from([0, 3]),
    allowed_token_ids=st.one_of(st.none(), st.lists(st.integers(0, 12), min_size=1, max_size=4)),
)
BAD_WORDS = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=3), max_size=3)
TOKENS = st.lists(st.integers(0, 9), max_size=8)


def changed_logits(logits: np.ndarray, params: SamplingParams, prompt, output, stop, bad_words) -> np.ndarray:
    x = logits.astype(np.float64).copy()
    for token in range(len(x)):
        is_allowed = params.allowed_token_ids is None or token in params.allowed_token_ids
        if not is_allowed or any([*output, token][-len(word) :] == word for word in bad_words):
            x[token] = -np.inf
    for token, bias in (params.logit_bias or {}).items():
        x[token] += bias
    if len(output) < params.min_tokens:
        x[list(stop)] = -np.inf
    for token in set(prompt) | set(output):
        x[token] = x[token] / params.repetition_penalty if x[token] > 0 else x[token] * params.repetition_penalty
    for token in set(output):
        x[token] -= params.frequency_penalty * output.count(token) + params.presence_penalty
    return x


@pytest.mark.parametrize("device", DEVICES)
@QUICK
@given(
    logits=st.lists(st.floats(-4, 4, width=32), min_size=10, max_size=10).map(np.array),
    params=PENALTIES,
    prompt=TOKENS,
    output=TOKENS,
    stop=st.sets(st.integers(0, 9), max_size=3),
    bad_words=BAD_WORDS,
)
def test_what_changes_logits_changes_them_as_defined(device, logits, params, prompt, output, stop, bad_words):
    x = changed_logits(logits, params, prompt, output, stop, bad_words)
    assume(np.isfinite(x).any())
    options = {"params": params, "prompt": prompt, "output": output, "stop": stop, "bad_words": bad_words}
    if params.is_greedy:
        result = Sampler()(torch.tensor(logits[None], dtype=torch.float32, device=device), [row(**options)])
        assert x[result.token_ids[0]] >= x.max() - 1e-5
        return
    with pytest.MonkeyPatch.context() as patch:
        shares = draw_shares(patch, logits, device=device, **options)
    expected = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
    assert np.abs(shares - expected).max() <= 1.01 / GRID


@pytest.mark.parametrize("penalty", [0.6, 1.4])
def test_repetition_penalty_agrees_with_transformers(monkeypatch, penalty):
    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(3)) * 2
    prompt, output = [1, 5, 5, 9], [9, 2, 29]
    scores = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + output]), logits)
    params = SamplingParams(repetition_penalty=penalty)
    shares = draw_shares(monkeypatch, logits[0].numpy(), params=params, prompt=prompt, output=output)
    assert np.abs(shares - scores.double().softmax(-1)[0].numpy()).max() <= 1.01 / GRID


def p_value(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Chance that counts from these probabilities lie at least this far off (Pearson's chi-square test)."""
    expected = probabilities * counts.sum()
    assert expected.min() > 5 and len(counts) > 1
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2.0), torch.tensor(statistic / 2.0)))


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0}, {"top_k": 6}, {"top_p": 0.7}, {"min_p": 0.2}])
@pytest.mark.parametrize("vary", ["seed", "number of tokens"])
def test_frequencies_over_seeds_and_over_steps_match_the_probabilities(options, vary):
    params = SamplingParams(**options)
    logits = np.linspace(-1.5, 1.5, 12).astype(np.float32)
    history = list(range(20_000))
    if vary == "seed":
        rows = [row(params, seed=i) for i in history]
    else:
        rows = [SamplingRow(0, params, 7, [], range(i)) for i in history]
    result = Sampler()(torch.tensor(logits).expand(len(rows), -1), rows)
    counts = np.bincount(result.token_ids, minlength=12)
    probabilities, _ = oracle(logits, params)
    kept = probabilities > 0
    assert counts[~kept].sum() == 0
    assert 1e-4 < p_value(counts[kept], probabilities[kept]) < 1 - 1e-4


def test_uniform_numbers_stay_below_one_and_differ_between_neighbouring_seeds_and_steps():
    numbers = [uniform(seed, index) for seed in (-5, 0, 1, 2**63 - 1, 2**64) for index in range(200)]
    assert all(0 <= number < 1 for number in numbers)
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("options", [{}, {"top_k": 20_000}, {"top_p": 0.999999}])
def test_the_ends_of_the_interval_never_draw_an_impossible_token(monkeypatch, u, options):
    monkeypatch.setattr(sampler_module, "uniform", lambda seed, index: u)
    logits = torch.full((1, 30_000), -math.inf)  # many: their weights sum to more than float64 counts exactly
    logits[0, 10:-10] = 0.1
    logits[0, 10:-10:7] = -60.0  # so improbable that its weight is zero
    logits[0, -20:] = -60.0
    token = Sampler()(logits, [row(SamplingParams(**options))]).token_ids[0]
    assert logits[0, token] == pytest.approx(0.1)


def test_top_p_keeps_the_shortest_prefix_that_reaches_it(monkeypatch):
    shares = draw_shares(monkeypatch, np.zeros(4), params=SamplingParams(top_p=0.5))
    assert shares.tolist() == [0.5, 0.5, 0.0, 0.0]


@st.composite
def batches(draw):
    """Rows with options of every kind, and logits for them; now and then a row that has no valid distribution."""
    vocab = draw(st.sampled_from([5, 17, 64]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    count = draw(st.integers(2, 9))
    logits = (torch.randn(count, vocab, generator=generator) * 2).bfloat16().float()  # 16 bits: ties do occur
    rows = []
    for i in range(count):
        params = SamplingParams(
            temperature=draw(st.sampled_from([0.0, 0.5, 1.0, 1.9])),
            top_k=draw(st.sampled_from([0, 1, 3, 10, 40])),
            top_p=draw(st.sampled_from([1.0, 0.9, 0.4])),
            min_p=draw(st.sampled_from([0.0, 0.1])),
            repetition_penalty=draw(st.sampled_from([1.0, 1.5])),
            frequency_penalty=draw(st.sampled_from([0.0, 0.5])),
            logit_bias=draw(st.sampled_from([None, {1: 3.0}, {2: -100.0}])),
            min_tokens=draw(st.sampled_from([0, 4])),
        )
        prompt, output = draw(TOKENS), draw(TOKENS)
        rows.append(
            row(params, draw(st.integers(-9, 2**63)), prompt, output, (0,), draw(st.sampled_from([None, 0, 2, 6])))
        )
        if draw(st.integers(0, 9)) == 0:
            logits[i, draw(st.integers(0, vocab - 1))] = draw(st.sampled_from([math.nan, math.inf]))
    return logits, rows


@pytest.mark.parametrize("device", DEVICES)
@QUICK
@given(batch=batches(), order=st.randoms(use_true_random=False))
def test_a_row_gets_the_same_token_alone_and_anywhere_in_any_batch(device, batch, order):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler_module, "NARROW", 4)
        patch.setattr(sampler_module, "CHUNK", 100)
        logits, rows = batch[0].to(device), batch[1]
        before = logits.clone()
        shuffled = list(range(len(rows)))
        order.shuffle(shuffled)
        together = Sampler()(logits[shuffled], [rows[i] for i in shuffled])
        for place, i in enumerate(shuffled):
            alone = Sampler()(logits[i : i + 1], [rows[i]])
            assert (0 in alone.errors) == (place in together.errors)
            if place in together.errors:
                assert alone.errors[0] == together.errors[place]
                continue
            assert alone.token_ids[0] == together.token_ids[place]
            assert (alone.logprobs or [None])[0] == (together.logprobs or [None] * len(rows))[place]
        assert torch.equal(logits.nan_to_num(), before.nan_to_num())  # and the caller's logits are left alone


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 1.5, "top_k": 1}, {"top_p": 1e-9}])
def test_greedy_takes_the_lowest_id_of_the_best_logit(device, options):
    logits = torch.zeros(4, 3000)
    logits[0, [7, 2900]] = 1.0
    logits[1, 12] = logits[1, 11] = 3.5
    logits[2] = -0.0
    logits[2, 5] = 0.0
    logits[3] = -5.0
    logits[3, 2999] = float(np.nextafter(np.float32(-5.0), np.float32(0)))  # the smallest lead there is
    result = Sampler()(logits.to(device), [row(SamplingParams(**options), seed=i) for i in range(4)])
    assert result.token_ids == [7, 11, 0, 2999]


@pytest.mark.parametrize("device", DEVICES)
def test_plain_greedy_is_argmax(device):
    logits = torch.randn(33, 1000, generator=torch.Generator().manual_seed(0)).to(device)
    result = Sampler()(logits, [row(SamplingParams(temperature=0)) for _ in range(33)])
    assert result.token_ids == logits.argmax(-1).tolist()
    assert result.logprobs is None and not result.errors


def test_a_greedy_token_has_rank_one_even_if_it_ties():
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0]])
    result = Sampler()(logits, [row(SamplingParams(temperature=0), num_logprobs=3)])
    assert result.logprobs is not None and result.logprobs[0] is not None
    assert result.logprobs[0].token_ids == [1, 1, 3, 2] and result.logprobs[0].ranks == [1, 1, 2, 3]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_host_waits_for_the_gpu_once(recwarn):
    every = SamplingParams(top_p=0.9, min_p=0.01, logit_bias={3: 1.0}, min_tokens=3, frequency_penalty=0.5)
    kinds = [SamplingParams(temperature=0), SamplingParams(), SamplingParams(top_k=9), every]
    rows = [row(params, prompt=[1], output=[2], stop=[4], num_logprobs=3) for params in kinds]
    logits = torch.randn(4, 5000, device="cuda")
    Sampler()(logits, rows)
    recwarn.clear()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        Sampler()(logits, rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([warning for warning in recwarn if "called a synchronizing" in str(warning.message)]) == 1


@pytest.mark.parametrize("device", DEVICES)
def test_logprobs_are_of_the_raw_distribution_with_the_sampled_token_first(device):
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1)).to(device)
    changed = SamplingParams(temperature=0.3, top_k=4, logit_bias={8: 90.0}, repetition_penalty=2.0)
    rows = [row(changed, num_logprobs=5), row(changed), row(SamplingParams(temperature=0), num_logprobs=0)]
    result = Sampler()(logits, rows)
    raw = logits.log_softmax(-1).cpu()
    assert result.logprobs is not None and result.logprobs[1] is None
    first, greedy = result.logprobs[0], result.logprobs[2]
    assert first is not None and greedy is not None
    assert first.token_ids[0] == result.token_ids[0] == 8  # the bias decides the token, not its log-probability
    assert first.logprobs == pytest.approx(raw[0, first.token_ids].tolist(), abs=1e-6)
    assert first.token_ids[1:] == raw[0].topk(5).indices.tolist()
    assert first.ranks == [1 + int((raw[0] > raw[0, 8]).sum()), 1, 2, 3, 4, 5]
    assert greedy.token_ids == result.token_ids[2:] and greedy.ranks == [1]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_logprobs", [0, 3, 20])
def test_prompt_scores_are_log_softmax_at_the_targets(monkeypatch, small_reach, device, num_logprobs):
    logits = torch.randn(7, 11, generator=torch.Generator().manual_seed(2)).to(device)
    targets = [0, 10, 3, 3, 4, 9, 1]
    scores = score_prompt(logits, targets, num_logprobs)
    raw = logits.log_softmax(-1).cpu()
    for score, target, expected in zip(scores, targets, raw, strict=True):
        best = expected.sort(descending=True).indices.tolist()
        assert score.token_ids == [target, *best[:num_logprobs]]
        assert score.logprobs == pytest.approx(expected[score.token_ids].tolist(), abs=1e-6)
        assert score.ranks[0] == best.index(target) + 1
        assert score.ranks[1:] == list(range(1, 1 + min(num_logprobs, 11)))
    assert score_prompt(logits[:0], [], num_logprobs) == []


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("options", [{"temperature": 0}, {}, {"top_p": 0.9}, {"top_k": 2, "frequency_penalty": 1.0}])
def test_a_broken_row_is_reported_and_its_neighbours_are_served(device, poison, options):
    logits = torch.randn(5, 2000, generator=torch.Generator().manual_seed(4)).to(device)
    params = SamplingParams(**options)
    rows = [row(params, seed=i, output=[1, 2], num_logprobs=2) for i in range(5)]
    healthy = Sampler()(logits, rows)
    assert not healthy.errors
    logits[2, :] = poison if poison == -math.inf else logits[2]
    logits[2, 77] = poison
    result = Sampler()(logits, rows)
    assert list(result.errors) == [2] and result.errors[2].endswith(".")
    for i in (0, 1, 3, 4):
        assert result.token_ids[i] == healthy.token_ids[i]
        assert result.logprobs is not None and healthy.logprobs is not None
        assert result.logprobs[i] == healthy.logprobs[i]


def test_a_mask_that_leaves_no_token_is_an_error_and_a_mask_does_not_hide_a_broken_logit():
    params = SamplingParams(min_tokens=2)
    logits = torch.zeros(3, 3)
    logits[1, 0], logits[2, 0] = math.nan, math.inf
    result = Sampler()(logits, [row(params, stop=(0, 1, 2)), row(params, stop=(0,)), row(params, stop=(0,))])
    assert "min_tokens" in result.errors[0] and "NaN" in result.errors[1] and "infinite" in result.errors[2]


def test_overflow_by_a_tiny_repetition_penalty_is_an_error_of_that_row_alone():
    logits = torch.tensor([[3.0, 1.0], [3.0, 1.0]])
    rows = [row(SamplingParams(repetition_penalty=1e-45), output=[0]), row(SamplingParams(temperature=0))]
    result = Sampler()(logits, rows)
    assert list(result.errors) == [0] and result.token_ids[1] == 0


@pytest.mark.parametrize("device", DEVICES)
def test_token_ids_outside_the_vocabulary_do_nothing(device):
    params = SamplingParams(
        temperature=0, logit_bias={10: 50.0, 3: 1.0}, min_tokens=5, repetition_penalty=1.2, presence_penalty=1.0
    )
    stray = row(params, prompt=[10, 99, -1], output=[11], stop=(2, 10, -3, 10**6))
    logits = torch.zeros(2, 10, device=device)
    logits[:, 2] = 9.0
    result = Sampler()(logits, [stray, row(SamplingParams(temperature=0))])
    assert result.token_ids == [3, 2] and not result.errors


def test_min_tokens_bans_stop_tokens_until_enough_tokens_are_out():
    logits = torch.zeros(2, 6)
    logits[:, 4] = 8.0
    params = SamplingParams(temperature=0, min_tokens=2)
    rows = [row(params, output=[1], stop=(4,)), row(params, output=[1, 1], stop=(4,))]
    assert Sampler()(logits, rows).token_ids == [0, 4]


def test_an_empty_batch_gives_an_empty_result():
    assert Sampler()(torch.zeros(0, 5), []).token_ids == []


class Counted(dict):
    """Counts how often somebody goes through its entries."""

    walks = 0

    def __iter__(self):
        self.walks += 1
        return super().__iter__()

    def items(self):
        self.walks += 1
        return super().items()

    def values(self):
        self.walks += 1
        return super().values()


def test_biases_are_gone_through_once_however_many_steps_there_are():
    """1,024 of them in each of 32 rows, made into a tensor anew each step, took 3 % of a step on a CPU."""
    params = SamplingParams(temperature=0)
    params.logit_bias = Counted({5: 9.0, 11: 50.0, 7: 8.0})  # the model has no token 11
    one = row(params)
    for step in range(10):
        logits = torch.zeros(1, 10)
        assert Sampler()(logits, [one]).token_ids == [5] and not logits.any()
        one.output_token_ids.append(step)
    assert 1 <= params.logit_bias.walks <= 2
    other = dataclasses.replace(one, params=SamplingParams(temperature=0, logit_bias={3: 1.0}))
    assert Sampler()(torch.zeros(2, 10), [one, other]).token_ids == [5, 3]
