"""The local pool: functions, the nodes that run them, and what they ask while they run."""
