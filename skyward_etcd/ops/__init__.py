"""Algorithms without I/O: generators that yield effects and are sent their results."""
