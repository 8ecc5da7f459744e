"""For tests of programs that use this library: a simulated etcd, a scheduler with faults, and checkers."""
