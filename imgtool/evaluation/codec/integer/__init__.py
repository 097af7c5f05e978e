"""The codec's entropy path in integers: the same everywhere, whatever the order of sums."""
