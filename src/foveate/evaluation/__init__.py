"""Accuracy under pruning: suites of questions, the runner that asks them, metrics and reports."""
