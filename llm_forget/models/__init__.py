"""Models: loaded from anywhere, adapted by LoRA, saved, merged; never two copies in memory."""
