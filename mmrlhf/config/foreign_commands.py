"""Commands of TRL, LLaMA-Factory, ms-swift, verl and lmms-eval: what to use instead."""

from mmrlhf.config.foreign_settings import NO_SUCH_LOSS

WEB_PAGES = "`mmrlhf report RUN...` writes a page about runs; `label serve` and `arena serve` are pages for people"
OTHER_COMMANDS = {
    "orpo": NO_SUCH_LOSS,
    "kto": "rows need two answers to compare: `mmrlhf dpo` learns from pairs",
    "cpo": NO_SUCH_LOSS,
    "simpo": NO_SUCH_LOSS,
    "ddpo": "use `mmrlhf dpo --changed_token_weight 5`",
    "mdpo": "use `mmrlhf dpo --image_pairs crop --anchor_coefficient 1`",
    "mpo": "use `mmrlhf dpo --loss_type sigmoid,bco_pair,sft --loss_weights 0.8,0.2,1`",
    "grpo": "use `mmrlhf ppo --advantage_estimator grpo`",
    "rloo": "use `mmrlhf ppo --advantage_estimator rloo`",
    "rlhf": "use `mmrlhf reward` and then `mmrlhf ppo`",
    "rm": "use `mmrlhf reward`",
    "reward_model": "use `mmrlhf reward`",
    "train": "the stages are `mmrlhf sft`, `mmrlhf reward`, `mmrlhf dpo` and `mmrlhf ppo`",
    "pt": "there is no pre-training: the stages are sft, reward, dpo and ppo",
    "merge": "use `mmrlhf export --merge`",
    "merge_lora": "use `mmrlhf export --merge`",
    "infer": "use `mmrlhf generate`",
    "predict": "use `mmrlhf generate`",
    "chat": "use `mmrlhf serve` with a client of OpenAI's API, or `mmrlhf generate` for the rows of a file",
    "annotate": "use `mmrlhf label serve`",
    "webui": WEB_PAGES,
    "web-ui": WEB_PAGES,
    "api": "use `mmrlhf serve`",
    "deploy": "use `mmrlhf serve`",
    "vllm-serve": "start vLLM's own server, and give its address as rollout_engine of `mmrlhf ppo`",
    "evaluate": "use `mmrlhf eval`",
    "bench": "use `mmrlhf eval`",
    "benchmark": "use `mmrlhf eval`",
    "convert": "use `mmrlhf data convert`",
    "check": "use `mmrlhf data check`",
    "stats": "use `mmrlhf data stats`",
    "version": "use `mmrlhf --version`",
    "help": "use `mmrlhf --help`",
}
"""Another tool's command -> one sentence on what to use instead."""
