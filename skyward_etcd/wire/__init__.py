"""etcd's gRPC API: messages, connections, and what a failed call means. Only this package knows how bytes travel."""
