"""What travels between an answer and the grader: plain values, by exact type; and what an answer may not name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from exercise_tools import ASKED
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pagedlab.course import exercises
from pagedlab.course.grading import codec, screen

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
KEYS = st.integers() | st.text(max_size=4) | st.booleans() | st.tuples(st.integers(), st.text(max_size=2))
SHAPES = hnp.array_shapes(min_dims=1, min_side=0, max_side=3)
ARRAYS = hnp.arrays(st.sampled_from(["bool", "i1", "u2", "i8", "f2", "f4", "f8"]), SHAPES)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    numbers = torch.randint(0, 256, (*shape, 8), generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    dtype = codec.DTYPES[draw(st.sampled_from(sorted(codec.DTYPES)))]
    if dtype == torch.bool:
        return numbers[..., 0] > 99
    return numbers.to(torch.uint8).view(dtype)[..., 0]  # any bits: NaN, infinities, denormals


PLAIN = st.recursive(
    SCALARS | ARRAYS | tensors(),
    lambda part: (
        st.lists(part, max_size=3)
        | st.tuples(part, part)
        | st.dictionaries(KEYS, part, max_size=3)
        | st.sets(KEYS, max_size=3)
        | st.frozensets(KEYS, max_size=3)
    ),
    max_leaves=8,
)


def same(a: Any, b: Any) -> bool:
    """Equal in value and in every type, NaN included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a.items(), b.items(), strict=True))
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


@given(PLAIN)
@settings(deadline=None)
def test_plain_values_come_back_with_value_and_type(value: Any) -> None:
    assert same(codec.through(value), value)


@given(PLAIN.map(codec.dumps), st.data())
@settings(deadline=None)
def test_damaged_text_is_refused_or_another_value(text: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(text)))
    for damaged in (text[:cut] + text[cut + 1 :], text[:cut], data.draw(st.text(max_size=9))):
        try:
            codec.loads(damaged)
        except codec.CodecError as error:
            assert str(error)


class Claims(int):
    pass


@pytest.mark.parametrize(
    "value",
    [
        *(object(), Claims(1), print, int, 1j, b"x", np.str_("x"), [[object()]], {"a": object()}, {object(): 1}),
        *(np.array([object()]), np.array(["x"]), np.zeros(1, dtype=[("a", "i4")])),
        *(torch.ones(2).to_sparse(), torch.ones(1, dtype=torch.complex64), torch.ones(1, device="meta")),
    ],
)
def test_other_objects_are_refused_by_their_type(value: Any) -> None:
    with pytest.raises(codec.CodecError, match=r"^returned a"):
        codec.dumps(value)


@pytest.mark.parametrize(
    "text",
    [
        *("NaN", '{"float":"x"}', '{"a":1,"b":2}', "{}", '{"dict":[[[],1]]}', '{"dict":5}', '{"set":[[1]]}'),
        *('{"tensor":["int64",[9],""]}', '{"tensor":["float32",[-1,-1],"AAAAAA=="]}', '{"tensor":["eval",[],""]}'),
        *('{"array":["O",[1],""]}', '{"array":["V8",[1],"AAAAAAAAAAA="]}', "[" * 9999, "9" * 9999, ""),
    ],
)
def test_text_that_is_never_written_is_refused(text: str) -> None:
    with pytest.raises(codec.CodecError):
        codec.loads(text)


ONE_OF_EACH = {question.kind: question for question in ASKED if question.chapter not in ("ch08", "ch11")}


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_no_plain_result_makes_the_comparison_fail(data: st.DataObject) -> None:
    question = data.draw(st.sampled_from(list(ONE_OF_EACH.values())))
    case = next(iter(question.cases()))
    result = exercises.judge(question, case, data.draw(PLAIN))
    assert isinstance(result.got, str) and isinstance(result.note, str)


# ---- what an answer may name -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "import sys\nsys.maxsize",
        "from pagedlab.course import check, hint",
        "from pagedlab.basics.masks import causal",
        "import pagedlab.basics.masks",
        "solutions = 3\nx = 'two solutions'",
        "def f():\n    '''See __globals__.'''",
    ],
)
def test_honest_names_pass(source: str) -> None:
    assert list(screen.objections(source, ["pagedlab.basics.masks"])) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pagedlab",
        "from pagedlab import basics",
        "import pagedlab.basics.masksx",
        "from pagedlab.course import check, questions",
        "from sys import modules",
        "import sys\nsys.modules",
        "import gc",
        "f.__globals__",
        "__import__('os')",
        "open('../solutions/03_kv_cache.ipynb')",
        "open('pagedlab/course/questions/ch03.py')",
    ],
)
def test_ways_around_the_question_do_not(source: str) -> None:
    assert list(screen.objections(source, ["pagedlab.basics.masks"]))
