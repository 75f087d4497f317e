"""Controls inside of other people's engines: what they hook into a model, and the plugin of vLLM. No engine is imported until it imports this."""
