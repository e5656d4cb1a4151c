"""Which operators run in integers: which can, what each costs, and the cheapest choice for the whole graph."""
