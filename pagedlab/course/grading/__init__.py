"""Grading: answers of many readers, each tried in an isolated process, compared where nothing of theirs runs.

Three kinds of process. The grader (grade.py, server.py) knows the questions and what is expected. The server
(zygote.py) has torch and the drivers loaded, but no question; it shuts itself off (isolation.py) and forks. A trial
(trial.py) is such a fork: it runs one answer and sends back what came out, as plain values (codec.py).
"""
