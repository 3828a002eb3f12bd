"""SamplingParams has vLLM's defaults and refuses, by name, what cannot be served."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from pagedlab.errors import InvalidRequestError
from pagedlab.runtime.batch import SamplingRow
from pagedlab.runtime.sampler import Sampler
from pagedlab.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams

# From vLLM's documentation of SamplingParams.
VLLM_DEFAULTS = {
    "n": 1,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "seed": None,
    "ignore_eos": False,
    "max_tokens": 16,
    "min_tokens": 0,
    "logprobs": None,
    "prompt_logprobs": None,
    "skip_special_tokens": True,
    "include_stop_str_in_output": False,
    "output_kind": RequestOutputKind.CUMULATIVE,
    "logit_bias": None,
    "allowed_token_ids": None,
    "detokenize": True,
}

OUT_OF_RANGE = {
    "n": [0, -1, 1.0, True, "2", None],
    "max_tokens": [0, -5, 2.5, True, "16"],
    "min_tokens": [-1, 0.5, None, 17],  # 17 is above max_tokens' default
    "top_k": [-2, 1.5, True, None],
    "temperature": [-0.1, math.nan, math.inf, "1", None, True],
    "top_p": [0, -0.1, 1.01, math.nan, None],
    "min_p": [-0.01, 1.01, math.nan, None],
    "presence_penalty": [-2.01, 2.01, math.nan, "0"],
    "frequency_penalty": [-2.01, 2.01, math.inf],
    "repetition_penalty": [0, -1.0, math.inf, math.nan],
    "logprobs": [-1, 21, 1.5, True],
    "prompt_logprobs": [-1, 21, 1.5, True],
    "seed": [2**63, -(2**63), 0.5, "7", True],
    "stop": ["", ["a", ""], [1], 5],
    "stop_token_ids": [[-1], [1.5], ["1"], [True], 5],
    "logit_bias": [{-1: 1.0}, {1: 101}, {1: math.nan}, {1: "much"}, {"x": 1}, [5], 5, {math.inf: 1}],
    "allowed_token_ids": [[], [-1], [1.5], ["1"], [True], 5, "5"],
    "bad_words": ["word", [""], [" "], [1], 5, b"word"],
    "ignore_eos": [None, 1, "yes"],
    "detokenize": [None, 1],
    "skip_special_tokens": [None, 0],
    "include_stop_str_in_output": [None, "no"],
    "output_kind": [None, 1, "delta"],
}

IN_RANGE = {
    "n": [1, 16],
    "max_tokens": [1, 10**6, None],
    "min_tokens": [0, 16],
    "top_k": [-1, 0, 1, 10**6],
    "temperature": [0, 0.0, 1e-9, 2, 2.0],
    "top_p": [1e-9, 1, 1.0],
    "min_p": [0, 1, 0.5],
    "presence_penalty": [-2, 2.0],
    "frequency_penalty": [-2.0, 2],
    "repetition_penalty": [0.01, 1, 10.0],
    "logprobs": [None, 0, 20],
    "prompt_logprobs": [None, 0, 20],
    "seed": [None, 0, -7, 2**63 - 1],
    "logit_bias": [None, {}, {0: -100.0, 5: 100.0}],
}


def cases(table):
    return [pytest.param(name, value, id=f"{name}={value!r}") for name, values in table.items() for value in values]


def test_defaults_are_vllms():
    params = SamplingParams()
    assert {name: getattr(params, name) for name in VLLM_DEFAULTS} == VLLM_DEFAULTS
    assert not params.stop and not params.stop_token_ids and not params.bad_words
    fields = {field.name for field in dataclasses.fields(SamplingParams)}
    # A field added later must be looked up in vLLM and put into the table.
    assert fields == set(VLLM_DEFAULTS) | {"stop", "stop_token_ids", "bad_words"}


@pytest.mark.parametrize(("name", "value"), cases(OUT_OF_RANGE))
def test_a_value_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(InvalidRequestError, match=rf"\b{name}\b.*\.$"):
        SamplingParams(**{name: value})


@pytest.mark.parametrize(("name", "value"), cases(IN_RANGE))
def test_the_limits_themselves_are_accepted(name, value):
    assert getattr(SamplingParams(**{name: value}), name) == value


def test_every_field_has_a_case_that_is_refused():
    assert {field.name for field in dataclasses.fields(SamplingParams)} == set(OUT_OF_RANGE)


def test_refusals_are_value_errors_too():
    with pytest.raises(ValueError):
        SamplingParams(top_p=2)


@pytest.mark.parametrize("temperature", [0, 0.0, 1e-9, 9e-6])
def test_temperatures_near_zero_are_greedy_and_allow_one_completion_only(temperature):
    assert SamplingParams(temperature=temperature, top_k=7).is_greedy
    with pytest.raises(InvalidRequestError, match=r"\bn\b"):
        SamplingParams(temperature=temperature, n=2)


def test_the_lowest_temperature_that_samples_still_has_a_distribution():
    params = SamplingParams(temperature=1e-5)
    assert not params.is_greedy
    result = Sampler()(torch.tensor([[1000.0, -1000.0, 999.0]]), [SamplingRow(0, params, 3, [], [])])
    assert result.token_ids == [0] and not result.errors


@pytest.mark.parametrize(
    ("given", "kept"),
    [(None, ()), ("end", ("end",)), (["a", "b"], ("a", "b")), (("a",), ("a",)), ([], ())],
)
def test_stop_may_be_a_string_a_list_or_nothing(given, kept):
    assert SamplingParams(stop=given).stop == kept


def test_logit_bias_keys_may_be_strings_as_json_has_them():
    assert SamplingParams(logit_bias={"17": 3, 4: -1}).logit_bias == {17: 3.0, 4: -1.0}


def test_seed_minus_one_means_no_seed_as_in_vllm():
    assert SamplingParams(seed=-1).seed is None


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({}, False),
        ({"temperature": 0.3, "top_k": 5, "top_p": 0.5, "min_p": 0.1, "logprobs": 3, "seed": 1}, False),
        ({"logit_bias": {}}, False),
        ({"logit_bias": {3: 1.0}}, True),
        ({"min_tokens": 1}, True),
        ({"presence_penalty": -0.5}, True),
        ({"frequency_penalty": 0.5}, True),
        ({"repetition_penalty": 0.9}, True),
    ],
)
def test_changes_logits_tells_whether_greedy_is_more_than_argmax(options, changes):
    assert SamplingParams(**options).changes_logits is changes


def test_a_clone_is_equal_and_its_changes_are_checked():
    params = SamplingParams(temperature=0.5, stop=["a"], logit_bias={1: 2.0}, seed=4, n=3)
    assert params.clone() == params
    changed = params.clone(max_tokens=99)
    assert changed.max_tokens == 99 and params.max_tokens == 16
    assert changed.clone(max_tokens=16) == params
    with pytest.raises(InvalidRequestError, match="top_p"):
        params.clone(top_p=0)


def test_fields_may_be_set_as_in_vllm_and_a_copy_checks_them():
    params = SamplingParams()
    params.temperature, params.max_tokens = 0, 5
    assert params.is_greedy and params.clone().max_tokens == 5
    params.top_p = 1.5
    with pytest.raises(InvalidRequestError, match="top_p"):
        params.clone()


def test_stop_strings_need_the_text():
    with pytest.raises(InvalidRequestError, match=r"\bstop\b.*detokenize"):
        SamplingParams(stop=["a"], detokenize=False)


BEAM_OUT_OF_RANGE = {
    "beam_width": [0, 65, 1.5, True, None],
    "max_tokens": [0, 1.5, True, None],
    "ignore_eos": [None, 1, "no"],
    "temperature": [0.7, -1, math.nan],
    "length_penalty": [math.nan, math.inf, "1"],
}


@pytest.mark.parametrize(("name", "value"), cases(BEAM_OUT_OF_RANGE))
def test_a_beam_search_value_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(InvalidRequestError, match=rf"\b{name}\b.*\.$"):
        BeamSearchParams(**({"beam_width": 4, "max_tokens": 16} | {name: value}))


def test_beam_search_defaults_are_vllms():
    params = BeamSearchParams(beam_width=4, max_tokens=16)
    assert (params.ignore_eos, params.temperature, params.length_penalty) == (False, 0.0, 1.0)
