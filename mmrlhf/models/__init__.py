"""The vision-language model: loading, adapters and heads, image features, KV caches, micro-batches."""
