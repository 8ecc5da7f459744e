"""How fast the collections are, beside etcd's bare RPCs and its textbook recipes: ``make bench``."""
