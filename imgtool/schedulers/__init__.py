"""Schedulers of a cluster, and what they have given this process."""
