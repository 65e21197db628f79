"""PPO-Lagrangian: more reward while the cost stays under its budget. One room, read from the top of this list down.

    max_theta E[R] - beta KL(pi || pi_ref)     subject to  E[f(C)] <= d          arXiv 2503.17682

One iteration:

    1  answers are sampled, with log-probabilities            rollout/generate.py
    2  all roles score them: R, C, pi_ref, values             experience.py
    3  token rewards -beta kl + R, costs +beta kl + f(C)      experience.py, losses/shaping.py
    4  lambda moves once                                      losses/lagrangian.py
    5  advantages of both streams, mixed                      advantages.py, losses/gae.py
    6  critics and policy take their gradient steps           update.py, losses/ppo.py

`run` starts, validates and finishes; `iteration` has the order above, written once. A file imports those to its right alone; `stage` is what the command has to know, `curves` are those of the report, `warm_start` is where lambda begins:

    stage -> run, curves -> alarms, check, rows, watch -> validate, warm_start -> iteration -> load, critics, leash, selftest -> {experience, update} -> advantages, minibatches -> static -> roles

    paper                       here
    R, C                        reward_B, cost_B (raw end scores; C > 0 is unsafe)
    f                           config.constraint.kind: "mean", "rectified" or "probability"
    d                           config.constraint.budget
    J_C                         window_cost: mean f(C) of the last config.constraint.window answers
    lambda                      lam, the metric `lambda`
    beta                        config.ppo.kl_coef
    pi_theta, pi_ref            logp_BR, ref_logp_BR
    V_phi, V_psi                value_BR of the roles reward_critic and cost_critic
    A_r, A_c                    adv_BR of the same roles' streams
    (A_r - lambda A_c) / (1 + lambda)       advantages.combine, lagrangian.combine
    gamma, lambda of GAE        config.ppo.gamma, config.ppo.gae_lambda
    epsilon                     config.ppo.clip_ratio
"""
