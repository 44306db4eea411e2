"""Train large multimodal models to search on demand: Megatron-Core GRPO, SGLang multi-turn rollout, real search."""

__version__ = "0.1.0"
