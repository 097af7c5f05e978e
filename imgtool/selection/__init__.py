"""Choosing among finished experiments: their metrics, rules, and a report."""
