"""One iteration: rollout -> score -> multiplier -> update. Three jitted calls; the multiplier moves once, before the policy does. In
the first iteration the critics are fitted to its rollout; while they learn alone, the policy and the multiplier stand still.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from srlhfv_jax.batches import Experience, Images, PromptBatch, Rollout
from srlhfv_jax.config import ConstraintConfig, PPOLagConfig
from srlhfv_jax.losses import lagrangian, masked
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.models.trees import complete, with_backbone
from srlhfv_jax.parallel import hosts, offload, rules
from srlhfv_jax.ppo_lag import critics, experience as scoring, selftest, update as ppo
from srlhfv_jax.ppo_lag.load import Models, resting
from srlhfv_jax.rollout import generate as generation, layout
from srlhfv_jax.rollout.generate import Vocabulary
from srlhfv_jax.rollout.sampling import Sampling
from srlhfv_jax.training import optimizer as optimizers, state as states


class Extra(NamedTuple):
    """What a run carries beside its trees."""

    controller: lagrangian.ControllerState
    warm_up: critics.WarmUp


class Iteration:
    """One PPO-Lagrangian iteration as a loop step: (state, batch) -> (state, metrics). Holds frozen trees and jitted calls."""

    def __init__(self, settings: PPOLagConfig, models: Models, mesh, vocabulary: Vocabulary, early_exit: bool = True) -> None:
        self.settings, self.models, self.mesh = settings, models, mesh
        places, ptx = models.places, settings.ptx.coef > 0
        rates = {name: settings.critic_optimizer for name in models.trained} | {"policy": settings.policy_optimizer}
        self.optimizers = {name: optimizers.make(rates[name], tree, self.updates()) for name, tree in models.trained.items()}
        how = scoring.Scoring(
            places,
            models.own_tower,
            settings.ppo,
            settings.constraint.kind,
            settings.rollout.temperature,
            settings.rollout.old_logp == "recompute",
            vocabulary,
            streams=not ppo.one_step(settings.ppo),
            microbatches=settings.rollout.score_microbatches,
        )
        update = ppo.Update(
            places,
            models.own_tower,
            settings.ppo,
            settings.rollout.temperature,
            settings.ptx.coef if ptx else 0.0,
            vocabulary,
            settings.microbatches,
            self.optimizers,
            {name: optimizers.trainable(rates[name], tree) for name, tree in models.trained.items()},
        )
        self.vocabulary = vocabulary
        backbone = models.backbone(models.trained["policy"])
        self.layout = layout.target(backbone, mesh, models.policy.config.dtype, settings.rollout.layout)
        rows, whole = hosts.row_sharding(mesh), rules.whole(mesh)
        self.generate = jax.jit(
            functools.partial(
                generation.generate,
                models.policy.config,
                response_length=settings.data.response_length,
                vocabulary=vocabulary,
                sampling=Sampling(settings.rollout.temperature),
                early_exit=early_exit,
                microbatches=settings.rollout.microbatches,
            ),
            out_shardings=rows,
        )
        self.score = jax.jit(
            functools.partial(_score, models.policy.config, how, settings.constraint), out_shardings=(rows, whole, whole)
        )
        self.start_critics = jax.jit(functools.partial(critics.start, models.policy.config, how=how), out_shardings=whole)
        constant = dict(learning_rate=settings.critic_warmup_rate, schedule="constant", warmup_fraction=0.0)
        alone = dataclasses.replace(settings.critic_optimizer, **constant)
        warming = {name: optimizers.make(alone, models.trained[name], self.updates()) for name in ppo.critic_trees(places)}
        self.update, self.warm_up = (
            jax.jit(
                functools.partial(_update, models.policy.config, one),
                donate_argnums=(0, 1),
                out_shardings=(rules.shardings(models.trained, mesh), self._optimizer_places(), whole),
            )
            for one in (update, update._replace(optimizers=warming, train_policy=False))
        )
        self.resting = resting(settings, models)
        self._done: int | None = None  # iterations so far, counted here: reading state.step would wait for the update before

    def updates(self) -> int:
        """Gradient steps of the whole run: what the learning-rate schedules count."""
        return self.settings.iterations * self.settings.ppo.epochs * self.settings.ppo.minibatches

    def _optimizer_places(self) -> dict[str, Any]:
        trees = self.models.trained
        return {name: states.optimizer_places(one, trees[name], self.mesh) for name, one in self.optimizers.items()}

    def sampler(self, policy: dict) -> dict:
        """The backbone that `generate` reads: copies of what lies otherwise than `config.rollout.layout` says."""
        return layout.gather(self.models.backbone(policy), self.layout)

    def scorers(self, params: dict[str, dict]) -> dict[str, dict]:
        """The trees that scoring reads."""
        read = {"policy": params["policy"]} if ppo.one_step(self.settings.ppo) else params
        return self.models.frozen | read

    def initial_state(self) -> states.TrainState:
        trees = self.models.trained
        opt_state = {
            name: states.init_optimizer(self.optimizers[name], self.awake(tree), self.mesh) for name, tree in trees.items()
        }
        extra = Extra(lagrangian.init(self.settings.constraint), critics.init())
        step, extra = rules.replicate((jnp.int32(0), extra), self.mesh)
        return self._at_rest(states.TrainState(trees, opt_state, step, extra))

    def awake(self, trees: Any, after: Any = ()) -> Any:
        """Trees for a function to read, on the devices; where some rest in between, only when `after`, what the function before
        gives, is there: until then that function's own trees fill the memory."""
        if self.settings.rollout.offload == "none":
            return trees
        jax.block_until_ready(after)
        return offload.to_device(trees)

    def _at_rest(self, state: states.TrainState) -> states.TrainState:
        opt_state = state.opt_state if self.settings.rollout.offload == "none" else offload.to_host(state.opt_state)
        return state._replace(params=offload.rest(state.params, self.resting), opt_state=opt_state)

    def __call__(self, state: states.TrainState, batch: tuple[PromptBatch, Any]) -> tuple[states.TrainState, dict]:
        prompts, ptx = hosts.global_batch(batch, self.mesh)
        first = self._done is None
        done = int(state.step) if first else self._done
        self._done, seed = done + 1, self.settings.seed
        rollout = self.generate(self.sampler(state.params["policy"]), prompts, states.key(seed, done, "rollout"))
        controller, warm_up = state.extra
        warming = done < self.settings.critic_warmup and not bool(warm_up.ended)
        scorers = self.awake(self.scorers(state.params), rollout)
        scored = rollout, prompts.images, controller, np.bool_(warming)
        experience, moved, metrics = self.score(scorers, *scored)
        del scorers
        if done == 0:
            state = self._start_critics(state, experience, prompts.images)
            if experience.streams is not None:  # they are of the values before
                experience, *_ = self.score(self.awake(self.scorers(state.params), state), *scored)
        if first:
            self._self_test(with_backbone(self.models.base, state.params["policy"]), rollout, experience, prompts.images, done)
        update = self.warm_up if warming else self.update
        params, opt_state, learned = update(
            *self.awake((state.params, state.opt_state), experience),
            experience,
            prompts.images,
            metrics["lambda"],
            states.key(seed, done, "minibatches"),
            ptx,
            self.models.base,
        )
        if warming:
            explained = sum(float(hosts.to_host(learned[f"{name}_explained_variance"])) for name in ("reward", "cost")) / 2
            warm_up = rules.replicate(critics.after(warm_up, explained), self.mesh)
        extra = Extra(moved, warm_up)
        return self._at_rest(states.TrainState(params, opt_state, state.step + 1, extra)), metrics | learned

    def _start_critics(self, state: states.TrainState, experience: Experience, images: Images | None) -> states.TrainState:
        """The critics of a run that begins, fitted to its first rollout."""
        trees = {name: state.params[name] for name in ppo.critic_trees(self.models.places)}
        whole = {name: with_backbone(self.models.base, tree) for name, tree in self.awake(trees, experience).items()}
        fitted = self.start_critics(whole, experience, images)
        return state._replace(params=state.params | {name: tree | {"heads": fitted[name]} for name, tree in trees.items()})

    def _self_test(self, policy, rollout: Rollout, experience: Experience, images: Images | None, done: int) -> None:
        config, settings = self.models.policy.config, self.settings
        recompute = settings.rollout.old_logp == "recompute"
        if images is not None:
            selftest.placeholders(config, *hosts.to_host((rollout._replace(features=None), images._replace(patches_BNC=None))))
        gap = selftest.ratio(
            config,
            policy,
            rollout,
            temperature=settings.rollout.temperature,
            vocabulary=self.vocabulary,
            recompute=recompute,
        )
        if done == 0 and not settings.reference:
            exact = config.dtype == "float32"
            selftest.self_kl(experience.rollout.logp_BR, experience.ref_logp_BR, rollout.response_mask_BR, exact=exact)
        hosts.say(
            f"ppo_lag: self-test passed: |log ratio| of sampler and training graph {gap:.1e}; answers end at the ids "
            f"{', '.join(map(str, self.vocabulary.eos))}"
        )


def _score(
    config: VLMConfig, how: scoring.Scoring, constraint: ConstraintConfig, models, rollout: Rollout, images, controller, hold
):
    """Experience, the moved multiplier (only its window, where `hold`), and the iteration's numbers."""
    experience = scoring.score(config, complete(models), rollout, images, how)
    controller = lagrangian.update(constraint, controller, experience.cost_B, hold)
    mask_BR = rollout.response_mask_BR
    kl_BR = masked.keep(experience.rollout.logp_BR - experience.ref_logp_BR, mask_BR)
    metrics = {
        "reward": jnp.mean(experience.reward_B),
        "cost": jnp.mean(experience.cost_B),
        "constraint": jnp.mean(lagrangian.statistic(constraint.kind, experience.cost_B)),
        "window_cost": lagrangian.window_mean(controller),
        "budget": jnp.float32(constraint.budget),
        "lambda": lagrangian.multiplier(constraint, controller),
        "harm_rate_model": jnp.mean(experience.cost_B > 0),
        "kl": jnp.mean(jnp.sum(kl_BR, axis=1)),
        "length": jnp.mean(jnp.sum(mask_BR, axis=1)),
        "ended": jnp.mean(rollout.ended_B),
    }
    if how.recompute_logp:  # what is corrected for in every iteration; else the update's `mismatch` says it
        metrics["sampler_gap"] = masked.token_mean(jnp.abs(experience.rollout.logp_BR - rollout.logp_BR), mask_BR)
    return experience, controller, metrics


def _update(config: VLMConfig, settings: ppo.Update, params, opt_state, experience, images, lam, key, ptx, base):
    return ppo.update(config, params, opt_state, experience, images, lam, key, ptx, settings, base)
