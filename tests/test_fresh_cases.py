"""Fresh cases: right answers pass them whatever the seed, remembered results do not, and honest ones lose nothing."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from itertools import pairwise

import pytest
from exercise_tools import IDS, bank, master_cells, tried, with_cases

from pagedlab.course import questions
from pagedlab.course.comparison import matches
from pagedlab.course.display import plain_value
from pagedlab.course.exercises import Result, earned
from pagedlab.course.grading import codec
from pagedlab.course.grading.grade import fresh_cases, points_of, share
from pagedlab.course.masters import cell_id
from pagedlab.course.questions import Case, Kind, Question

SEEDS = range(4)
SLOW = 20.0
"""Seconds: of questions that are given more, whose cases are slow, every third wrong answer is tried."""
A_VALUE_IS_ASKED = {
    "ch01.q1": "numbers",
    "ch02.q1": "numbers",
    "ch03.q1": "numbers",
    "ch04.q1": "numbers",
    "ch04.q4": "three histories; the driver runs the allocators on them",
    "ch05.q1": "numbers",
    "ch05.q4": "three histories; the driver runs the policies on them",
    "ch06.q1": "numbers",
    "ch10.q3": "lengths of a batch; the driver runs the given code on them",
    "ch11.q1": "choices",
}
"""Questions with no fresh cases, and what they ask for: a value has no other cases."""
DRAWN = [identifier for identifier in IDS if identifier not in A_VALUE_IS_ASKED]


def test_every_question_that_asks_for_code_has_fresh_cases() -> None:
    without = {question.id for question in questions.QUESTIONS if question.fresh is None}
    assert without == set(A_VALUE_IS_ASKED)


@pytest.mark.parametrize("identifier", DRAWN)
def test_fresh_cases_follow_their_seed_and_are_none_of_those_that_check_shows(identifier: str) -> None:
    question = questions.find(identifier)
    drawn = [[codec.dumps(case.arguments) for case in fresh_cases(question, seed)] for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1] and len(drawn[0]) >= 4
    shown = {codec.dumps(case.arguments) for case in with_cases(identifier).cases()}
    for arguments in drawn[1:]:
        assert sum(text in shown for text in arguments) <= len(arguments) // 4
    for one, other in pairwise(drawn[1:]):
        assert len({*one} & {*other}) <= len(one) // 4


@pytest.mark.parametrize("identifier", DRAWN)
def test_right_answers_pass_fresh_cases(identifier: str) -> None:
    question = questions.find(identifier)
    sources = {"the solution": master_cells(question.chapter)[cell_id(question, "answer")]}
    sources |= dict(bank(question).right)
    failed = {}
    for number, (name, source) in enumerate(sources.items()):
        # The solution in the cases of every seed, the others in one each.
        cases = [case for seed in (SEEDS if number == 0 else [number + 10]) for case in fresh_cases(question, seed)]
        points, told = tried(identifier, textwrap.dedent(source), cases=cases)
        if points < question.points:
            failed[name] = told
    assert failed == {}


@pytest.mark.parametrize("identifier", DRAWN)
def test_no_remembered_result_is_right_in_many_fresh_cases(identifier: str) -> None:
    """Whatever somebody wrote down for a case that check shows: in half of the fresh ones and more it is wrong."""
    question = with_cases(identifier)
    for seed in SEEDS:
        fresh = fresh_cases(question, seed)
        for shown in question.cases():
            hits = sum(same(question, shown, case) for case in fresh)
            assert 2 * hits < len(fresh), (shown.name, [case.name for case in fresh if same(question, shown, case)])


def same(question: Question, shown: Case, fresh: Case) -> bool:
    return matches(plain_value(shown.expected), plain_value(fresh.expected), question.tolerance, question.absolute)


@pytest.mark.parametrize("identifier", DRAWN)
def test_an_honest_mistake_keeps_the_points_that_check_gives(identifier: str) -> None:
    question, answers = with_cases(identifier), bank(questions.find(identifier))
    lost = {}
    for number, (name, source, _) in enumerate(answers.wrong):
        if name in answers.remembers or (question.seconds > SLOW and number % 3):
            continue
        fresh = results_in(question, source, fresh_cases(question, number))
        if not fresh or 2 * share(fresh) >= 1:  # the cell itself fails; whatever check says, no point can be lost
            continue
        shown = results_in(question, source, list(question.cases()))
        given, _ = points_of(question, shown, fresh)
        if given < (checked := earned(question, shown)):
            lost[name] = (given, checked, [r.case.name for r in (*shown, *fresh) if not r.passed])
    assert lost == {}


def results_in(question: Question, source: str, cases: list[Case]) -> list[Result]:
    results: list[Result] = []
    tried(question.id, textwrap.dedent(source), cases=cases, results=results)
    return results


def test_points_follow_the_cases_that_check_shows_unless_fresh_ones_go_far_worse() -> None:
    question = replace(questions.find("ch00.q1"), kind=Kind.IMPLEMENT, points=6)

    def results(right: int, of: int) -> list[Result]:
        return [Result(Case("", (), None), number < right, "") for number in range(of)]

    for shown, fresh, points in (
        ((6, 6), (4, 4), 6),
        ((6, 6), (3, 4), 6),
        ((6, 6), (2, 4), 3),
        ((5, 6), (2, 4), 5),
        ((6, 6), (1, 4), 1),
        ((6, 6), (0, 4), 0),
        ((3, 6), (1, 4), 3),
        ((3, 6), (0, 4), 0),
        ((0, 6), (4, 4), 0),
        ((6, 6), (0, 0), 6),
    ):
        given, reason = points_of(question, results(*shown), results(*fresh))
        assert given == points, (shown, fresh)
        assert bool(reason) == (given < shown[0] * 6 // shown[1])
