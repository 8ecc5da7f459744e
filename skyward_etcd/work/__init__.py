"""The process of a pod, a task or a rank that somebody else has started: who it is, and how it comes and goes."""
