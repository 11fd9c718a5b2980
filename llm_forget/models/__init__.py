"""Models: load them from any source, attach LoRA adapters, save and merge; one copy in memory."""
