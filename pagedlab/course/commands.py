"""The course's own commands: notebooks, exercises, grade. Each imports what it needs when it runs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable


def add_course_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add them with `command(name, summary, handler, examples)`, which makes a parser for the options."""
    notebooks = command(
        "notebooks",
        "execute the course's notebooks from a clean kernel, or check them against the course's rules",
        run_notebooks,
        "  pagedlab notebooks run chapters/03_kv_cache.ipynb\n"
        "  pagedlab notebooks check                     # every chapter; nothing is executed",
    )
    notebooks.add_argument("action", choices=("run", "check"))
    notebooks.add_argument("files", nargs="*", metavar="FILE", help="notebooks; left out: chapters/*.ipynb")

    exercises = command(
        "exercises",
        "make the exercise notebooks from their masters in solutions/",
        run_exercises,
        "  pagedlab exercises build\n  pagedlab exercises build --check           # write nothing, say which differ",
    )
    exercises.add_argument("action", choices=("build",))
    exercises.add_argument("--check", action="store_true", help="write nothing; status 1 if a file differs")
    exercises.add_argument("--force", action="store_true", help="overwrite files that hold answers, too")

    grade = command(
        "grade",
        "grade a folder of exercise notebooks: a table of points, and what was wrong",
        run_grade,
        "  pagedlab grade submissions -o grades.csv\n  pagedlab grade submissions --chapter 03 --jobs 4",
    )
    grade.add_argument("submissions", help="folder of NAME.ipynb, or of NAME/ with notebooks of several chapters")
    grade.add_argument("-o", "--output", default="grades.csv", help="the table (default grades.csv); .json beside it")
    grade.add_argument("--chapter", type=int, metavar="NN", help="only this one; left out: all that were handed in")
    grade.add_argument("--jobs", type=int, metavar="N", help="answers at a time; left out: the number of cores")
    grade.add_argument(
        "--seed", type=int, metavar="N", help="draws the cases that check does not show; left out: random"
    )
    grade.add_argument("--solutions", default="solutions", metavar="DIR", help="folder of the masters (solutions)")


def run_notebooks(arguments: argparse.Namespace) -> int:
    from pagedlab.course.notebooks import COMMANDS

    return COMMANDS[arguments.action](arguments.files)


def run_exercises(arguments: argparse.Namespace) -> int:
    from pagedlab.course.exercise_notebooks import build_command

    return build_command(check=arguments.check, force=arguments.force)


def run_grade(arguments: argparse.Namespace) -> int:
    from pagedlab.course.grading.grade import grade_command

    jobs = (os.cpu_count() or 1) if arguments.jobs is None else arguments.jobs
    chapter = None if arguments.chapter is None else f"ch{arguments.chapter:02d}"
    return grade_command(arguments.submissions, arguments.output, chapter, jobs, arguments.solutions, arguments.seed)
