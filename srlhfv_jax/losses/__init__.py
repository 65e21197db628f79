"""The mathematics of Safe RLHF-V as pure functions: arrays and keyword numbers in, (sum, count) out. No models, no tokenizer.

One convention for time, stated here and used by every function of this package. Response arrays are [B, R], right-padded:

    tokens   y_0      y_1      ...  y_{n-1} = EOS   pad  pad
    mask     true     true     ...  true            false
    logp     log pi(y_t | x, y_<t)                                   `logp_BR[:, t]` belongs to token t
    value    V(x, y_<t)                                              `value_BR[:, t]` is predicted BEFORE token t is seen
    reward   r_t, paid for token t; the end score sits at the last true position, t = n-1

`mask_BR[:, t]` is true for real tokens including the first end-of-sequence token; it is made where padding is made and carried,
never rebuilt from values. Nothing here slices `[:, start:]`, and whatever an array holds off the mask (pads, -inf, NaN) reaches
neither a result nor a gradient.

Every loss and every metric is a pair (sum, count), added over microbatches and hosts and divided once: padding, accumulation and
sharding cannot change a mean. Terms that count different things (reward and cost, severity and categories) are pairs of their own.
Everything is float32; `dual` alone is NumPy in float64, on the host.

    logprob      log-probabilities at the rollout temperature, chunked over positions
    sft          supervised loss, also the PTX term
    reward, cost the two heads: Bradley-Terry; Bradley-Terry plus sign
    preference   pairs of answers without a reward model: DPO and what differs from it by an offset, a flip or a target; KTO, unlearning
    dual         the multiplier of a constraint from samples alone
    shaping      token rewards and token costs with -+ beta KL
    gae          advantages and returns
    groups       advantages without a critic
    ppo          clipped policy and value losses
    calibration  P(unsafe | cost), a map that was fitted on labels
    lagrangian   the multiplier: its controllers, and A = (A_r - lambda A_c) / (1 + lambda)
    severity     the guard: severity and categories, each a binary loss with class weights
    masked       sums, counts and scales under a mask
    products     precision of matrix products
"""
