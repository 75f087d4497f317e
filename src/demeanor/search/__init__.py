"""Search: the best trade-offs between what is removed, what is kept and how far the model drifts."""
