"""Other systems that processes share state through, each with what it takes to measure it beside ours.

Each runs in an environment of its own, as `make bench-peers` makes them, so these modules import nothing of ours and
import their system only inside functions.
"""
