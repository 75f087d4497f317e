"""How much of a control: the dial, and the smallest dose that does."""
