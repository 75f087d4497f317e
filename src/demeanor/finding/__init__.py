"""Finding where a model carries a behaviour: filter, read, estimate, test against chance, try, select."""
