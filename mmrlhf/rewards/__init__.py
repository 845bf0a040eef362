"""Rewards: what a policy is trained on, and how to tell whether it games it.

types            what a reward function takes and returns
functions        built-in reward functions of an answer; their table
claim_rewards    built-in reward functions of an answer's claims; their table
ledger           the weighted list of a run, and what each function gave to each answer
credit           which token is paid for a span of an answer
monitors         signs of reward hacking, measured but never paid for
reward_model     the learned reward model: prompt, head, scores
checkpoint       the reward model on disk
probes           false claims that a reward model must punish
best_of_n        the best of n samples by a reward model, the baseline of any RL
"""
