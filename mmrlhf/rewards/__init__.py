"""Rewards for training a policy, and checks for policies that game them.

types            the input and output types of reward functions
functions        built-in reward functions of answers
claim_rewards    built-in reward functions of the claims in answers
false_rates      how often claims of a kind are false, which is what unknown ones cost
ledger           a run's weighted reward functions, and the value each gave to each answer
credit           the token that is credited with the reward of a span
monitors         signs of reward hacking, logged but never rewarded
reward_model     the learned reward model: prompt, head and scores
checkpoint       save and load a reward model
probes           false claims that a reward model must penalise
best_of_n        the best of n samples by a reward model, a baseline for RL
"""
