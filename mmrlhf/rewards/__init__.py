"""Rewards for training a policy, and checks for policies that game them.

types            the input and output types of reward functions
functions        built-in reward functions of answers
claim_rewards    built-in reward functions of the claims in answers
false_rates      how often claims of a kind are false, which is what unknown ones cost
fact_rm          the reward models that the function `fact_rm` uses
reward_terms     the setting that names a run's reward functions and their weights
build            the reward functions of a run, from its settings
ledger           the value that each function gave to each answer
aggregation      one reward per answer from these values, in up to three steps:
normalization    values relative to those of other answers
length_bounds    no positive reward for answers that are too short or too long
reward_clip      limits of an answer's reward
credit           the token that is credited with the reward of a span
monitors         signs of reward hacking, logged but never rewarded
reward_model     the learned reward model: prompt, head and scores
checkpoint       save and load a reward model
probes           false claims that a reward model must penalise
detection        whether a reward rises when a false claim is removed from an answer
first_slopes     how the number of false claims changes when a policy starts to follow a reward
best_of_n        the best of n samples by a reward model, a baseline for RL
"""
