"""Commands of TRL, LLaMA-Factory, ms-swift, verl and lmms-eval: what to use instead."""

from mmrlhf.config.other_trainers import NO_SUCH_LOSS

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
    "chat": "there is no chat: `mmrlhf generate` answers the rows of a file",
    "webui": "there is no web interface: `mmrlhf report RUN...` writes a page about runs",
    "web-ui": "there is no web interface: `mmrlhf report RUN...` writes a page about runs",
    "api": "there is no server: `mmrlhf eval` and judges can use an OpenAI-compatible one",
    "deploy": "there is no server: `mmrlhf eval` and judges can use an OpenAI-compatible one",
    "vllm-serve": "there is no server: `mmrlhf eval` and judges can use an OpenAI-compatible one",
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
