"""Edits judged: did the attribute come, and what else changed."""
