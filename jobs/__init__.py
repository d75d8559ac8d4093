"""Which tasks exist, in what order they run, where, and what happened to them."""
