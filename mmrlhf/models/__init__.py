"""The vision-language model: loading, adapters, heads, image features, KV caches, micro-batches."""
