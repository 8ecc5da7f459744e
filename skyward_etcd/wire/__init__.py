"""etcd's gRPC API: messages, channels, and what a failed call means. Only this package imports grpc."""
