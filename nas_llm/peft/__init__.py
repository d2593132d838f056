"""Low-rank adapters in a super-network: peft's own LoRA, elastic in rank (mode A) and in channels too (mode B), its
sparse and quantised relatives, merging, and export in peft's format."""
