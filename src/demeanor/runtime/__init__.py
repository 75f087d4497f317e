"""What acts during a forward pass: reading the stream, edits, adapters, states of prompts, batches."""
