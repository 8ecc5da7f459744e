"""What operators ask of the collections and do to them, as operations that do no I/O, like the collections' own."""
