"""A page that shows a cluster and one namespace of it, live: looks now and then, and changes nothing."""
