"""Running etcd on the pool's own nodes: find a binary, start members, and never leave one behind."""
