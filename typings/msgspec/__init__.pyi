from msgspec import structs as structs
