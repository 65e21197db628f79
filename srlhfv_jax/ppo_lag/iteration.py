"""One iteration: generate -> (functions) -> score -> multiplier -> update. `Iteration.calls` is the one place with this order: the
stage runs its calls, the benchmark times them, and `srlhfv plan` compiles them from shapes. Functions run on the host.

The multiplier moves once, before the policy does. In the first iteration the critics are fitted to its rollout; while they learn
alone, the policy and the multiplier stand still.
"""

import dataclasses
import functools
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from srlhfv_jax.batches import Experience, Images, PromptBatch, Rollout, SupervisedBatch
from srlhfv_jax.config import OptimizerConfig, PPOLagConfig
from srlhfv_jax.config.constraints import FIRST, metric
from srlhfv_jax.losses import lagrangian
from srlhfv_jax.models.trees import complete, with_backbone
from srlhfv_jax.parallel import hosts, microbatches, offload, rules
from srlhfv_jax.ppo_lag import advantages, critics, experience, leash, selftest
from srlhfv_jax.ppo_lag.load import Models, idle_trees
from srlhfv_jax.ppo_lag.roles import critic_trees
from srlhfv_jax.ppo_lag.static import Static, is_single_step
from srlhfv_jax.ppo_lag.update import Multipliers, Training, update
from srlhfv_jax.rollout import layout
from srlhfv_jax.rollout.generate import Vocabulary, generate
from srlhfv_jax.rollout.refill import refill
from srlhfv_jax.rollout.sampling import Sampling
from srlhfv_jax.training import loop, optimizer as optimizers, state as states, units

RESAMPLED = 1 << 20  # what the keys of answers that replace others are counted from: no token of the first has that number


class Extra(NamedTuple):
    """State of a run beside its trees."""

    controller: lagrangian.ControllerState  # of the first constraint
    warm_up: critics.WarmUp
    kl_coef: jax.Array | None = None  # beta, where it is adapted
    reference: dict | None = None  # the tree of a reference that moves
    further: Mapping[str, lagrangian.ControllerState] | None = None  # of other constraints, where there are any

    @property
    def controllers(self) -> dict[str, lagrangian.ControllerState]:
        """The state of every constraint, by its key."""
        return {FIRST: self.controller, **(self.further or {})}

    @property
    def moving(self) -> dict[str, dict]:
        """The tree of a reference that moves, for scoring."""
        return {} if self.reference is None else {"reference": self.reference}

    def with_controllers(self, controllers: Mapping[str, lagrangian.ControllerState]) -> "Extra":
        further = {key: state for key, state in controllers.items() if key != FIRST}
        return self._replace(controller=controllers[FIRST], further=further or None)


class Keys(NamedTuple):
    """The random keys of one iteration."""

    rollout: jax.Array
    minibatches: jax.Array


class Call(NamedTuple):
    """One step of an iteration: `function(*arguments)`."""

    name: str
    function: Callable
    arguments: tuple


def initial_extra(settings: PPOLagConfig) -> Extra:
    """The state of a run that begins."""
    controllers = {key: lagrangian.init(constraint.settings) for key, constraint in settings.costs.items()}
    return Extra(controllers[FIRST], critics.init(), leash.start(settings.ppo)).with_controllers(controllers)


# (rollout, rows) -> (the functions' part of the scores, their numbers): on the host, by every process (functions/score.py)
Functions = Callable[[Rollout, jax.Array], tuple[experience.Given, dict[str, float]]]
Calls = Generator[Call, Any, tuple[states.TrainState, dict]]  # each is sent the result of the one before; gives state and metrics


def drive(calls: Calls, run: Callable[[Call], Any]) -> tuple[states.TrainState, dict]:
    """Run an iteration's calls in their order."""
    result = None
    while True:
        try:
            call = calls.send(result)
        except StopIteration as end:
            return end.value
        result = run(call)
        del call  # the copies that it read may leave the devices


class Iteration:
    """One PPO-Lagrangian iteration as a loop step: (state, batch) -> (state, metrics). Holds frozen trees and jitted calls."""

    def __init__(
        self,
        settings: PPOLagConfig,
        models: Models,
        mesh: Mesh,
        vocabulary: Vocabulary,
        *,
        functions: Functions | None = None,
        early_exit: bool = True,
    ) -> None:
        self.functions, self.by_functions = functions, settings.by_functions
        self.settings, self.models, self.mesh = settings, models, mesh
        model, places = models.policy.config, models.places
        self.static = Static(settings, model, places, models.own_towers, vocabulary, models.calibration)
        rates = {name: settings.critic_optimizer for name in models.trained} | {"policy": settings.policy_optimizer}
        trainable = {name: optimizers.trainable(rates[name], tree) for name, tree in models.trained.items()}
        schedules = {name: optimizers.learning_rate(rate, self.updates()) for name, rate in rates.items()}
        still = units.still(settings.policy_optimizer, models.trained["policy"])
        own = {name: self._optimizer(name, rate) for name, rate in rates.items()}
        training = Training(own, trainable, rates=schedules, still=still)
        constant = dict(learning_rate=settings.critic_warmup_rate, schedule="constant", warmup_fraction=0.0)
        warm_up_rate = dataclasses.replace(settings.critic_optimizer, **constant)
        alone = {name: self._optimizer(name, warm_up_rate) for name in critic_trees(places)}
        self.optimizers = training.optimizers
        self.rollout_layout = layout.target(models.backbone(models.trained["policy"]), mesh, model.dtype, settings.rollout.layout)
        rows, everywhere = hosts.row_sharding(mesh), rules.replicated(mesh)
        slots = settings.rollout.slots
        sampler = functools.partial(refill, slots=slots) if slots else functools.partial(generate, early_exit=early_exit)
        sample = functools.partial(
            sampler,
            model,
            response_length=settings.data.response_length,
            vocabulary=vocabulary,
            sampling=Sampling(settings.rollout.temperature),
            microbatches=settings.rollout.microbatches,
        )
        answers = settings.ppo.group_size
        self.answer = jax.jit(sample, out_shardings=rows)  # one answer to each prompt
        self.generate = jax.jit(functools.partial(sample, answers=answers), out_shardings=rows) if answers > 1 else self.answer
        self.for_each_answer = jax.jit(functools.partial(microbatches.repeat, times=answers), out_shardings=rows)
        out = (rows, everywhere, everywhere, everywhere, everywhere)
        self.score = jax.jit(functools.partial(score_and_constrain, self.static), out_shardings=out)
        follow = functools.partial(leash.followed, settings.moving_reference.decay)
        self.follow = jax.jit(follow, donate_argnums=0, out_shardings=rules.shardings(models.trained["policy"], mesh))
        self.fit_critics = jax.jit(functools.partial(critics.start, self.static), out_shardings=everywhere)
        self.update, self.warm_up = (
            jax.jit(
                functools.partial(update, self.static, training),
                donate_argnums=(0, 1),
                out_shardings=(rules.shardings(models.trained, mesh), self._optimizer_places(), everywhere),
            )
            for training in (training, training._replace(optimizers=alone, train_policy=False, rates={}))
        )
        self.equal_groups = jax.jit(functools.partial(advantages.count_equal_groups, size=answers), out_shardings=everywhere)
        self.replace_groups = jax.jit(
            functools.partial(advantages.replace_groups, size=answers), donate_argnums=(0, 1), out_shardings=rows
        )
        self.row_numbers = jax.jit(experience.row_numbers, out_shardings=rows)
        self.shows_rows = settings.log.tensorboard or bool(settings.log.trackers)
        self.idle_trees = idle_trees(settings, models)
        self._done: int | None = None  # iterations so far, counted here: reading state.step would wait for the update before

    def calls(
        self,
        state: states.TrainState,
        prompts: PromptBatch,
        ptx: SupervisedBatch | None,
        keys: Keys,
        *,
        warming: bool = False,
        fit_critics: bool = False,
        check: bool = False,
    ) -> Calls:
        """The calls of an iteration in order.

        Args:
            warming: the critics learn alone.
            fit_critics: fit them first: the run begins.
            check: test the rollout before anything is updated from it.
        """
        params, images = state.params, prompts.images
        weights = yield Call("reshard", self.rollout_weights, (params["policy"],))
        rollout = yield Call("generate", self.generate, (weights, prompts, keys.rollout))
        del weights
        given, numbers = {}, {}
        if self.by_functions:
            given, numbers = yield Call("functions", self.functions, (rollout, self.for_each_answer(prompts.row_B)))
        extra = state.extra
        scored = rollout, images, given, extra.controllers, np.bool_(warming), extra.kl_coef
        trees = self.scoring_trees(params, rollout) | extra.moving
        experience, controllers, weights, kl_coef, metrics = yield Call("score", self.score, (trees, *scored))
        del trees
        if fit_critics:
            heads = yield Call("fit_critics", self.fit_critics, (self.critics(params, experience), experience, images))
            params = params | {name: params[name] | {"heads": fitted} for name, fitted in heads.items()}
            if experience.streams is not None:  # they are of the values before
                experience, *_ = yield Call("score", self.score, (self.scoring_trees(params, heads) | extra.moving, *scored))
        if check:
            yield Call("self_test", self.self_test, (params["policy"], rollout, experience, images))
        resampled: dict = {}
        if self.settings.ppo.resample:
            again = params, prompts, keys.rollout, extra, experience
            experience, resampled = yield Call("resample", self.resample, again)
        learn = self.warm_up if warming else self.update
        trees = self.on_devices((params, state.opt_state), experience)
        arguments = (*trees, experience, images, weights, keys.minibatches, ptx, self.models.base)
        del trees
        params, opt_state, learned = yield Call("update", learn, arguments)
        extra = extra.with_controllers(controllers)._replace(kl_coef=kl_coef)
        state = states.TrainState(params, opt_state, state.step + 1, extra)
        return state, metrics | numbers | resampled | learned

    def __call__(self, state: states.TrainState, batch: tuple[PromptBatch, Any]) -> tuple[states.TrainState, dict]:
        prompts, ptx = hosts.global_batch(batch, self.mesh)
        first = self._done is None
        done = int(state.step) if first else self._done
        self._done = done + 1
        has_critics = self.settings.ppo.has_critics
        warming = has_critics and done < self.settings.critic_warmup and not bool(state.extra.warm_up.ended)
        keys = self.keys(done)
        calls = self.calls(state, prompts, ptx, keys, warming=warming, fit_critics=has_critics and done == 0, check=first)
        warm_up, reference = state.extra.warm_up, state.extra.reference
        del state  # an update gives its own, and takes these buffers
        rows: dict[str, jax.Array] = {}

        def run(call: Call) -> Any:
            result = call.function(*call.arguments)
            if call.name == "score" and self.shows_rows:
                rows.update(self.row_numbers(result[0]))
            return result

        state, metrics = drive(calls, run)
        if warming:
            names = advantages.explained_variances(self.settings.scores)
            explained = sum(float(hosts.to_host(metrics[name])) for name in names) / len(names)
            warm_up = rules.replicate(critics.after(warm_up, explained), self.mesh)
        if reference is not None and leash.is_due(self.settings.moving_reference, self._done):
            reference = self.follow(reference, state.params["policy"])
        metrics |= {loop.ROWS: rows} if rows else {}
        extra = state.extra._replace(warm_up=warm_up, reference=reference)
        return self.offload_idle(state._replace(extra=extra)), metrics

    def keys(self, number: int) -> Keys:
        """Those of iteration `number`, counted from 0."""
        return Keys(*(states.key(self.settings.seed, number, purpose) for purpose in Keys._fields))

    def updates(self) -> int:
        """Gradient steps of the whole run: what the learning-rate schedules count."""
        return self.settings.iterations * self.settings.ppo.epochs * self.settings.ppo.minibatches

    def _optimizer(self, tree: str, rates: OptimizerConfig) -> optax.GradientTransformation:
        return optimizers.make(rates, self.models.trained[tree], self.updates())

    def _optimizer_places(self) -> dict[str, Any]:
        trees = self.models.trained
        return {name: states.optimizer_places(one, trees[name], self.mesh) for name, one in self.optimizers.items()}

    def initial_state(self) -> states.TrainState:
        trees = self.models.trained
        opt_state = {
            name: states.init_optimizer(self.optimizers[name], self.on_devices(tree), self.mesh) for name, tree in trees.items()
        }
        extra = initial_extra(self.settings)
        step, extra = rules.replicate((jnp.int32(0), extra), self.mesh)
        if self.settings.moving_reference.moves:
            extra = extra._replace(reference=jax.tree.map(jnp.copy, self.on_devices(trees["policy"])))
        return self.offload_idle(states.TrainState(trees, opt_state, step, extra))

    def rollout_weights(self, policy: dict) -> dict:
        """The backbone that `generate` reads: copies of what lies otherwise than `config.rollout.layout` says."""
        return layout.gather(self.models.backbone(policy), self.rollout_layout)

    def scoring_trees(self, params: dict[str, dict], after: Any = ()) -> dict[str, dict]:
        """The trees that scoring reads; `after` as in `on_devices`."""
        read = {"policy": params["policy"]} if is_single_step(self.settings.ppo) else params
        return self.on_devices(self.models.frozen | read, after)

    def critics(self, params: dict[str, dict], after: Any = ()) -> dict[str, dict]:
        """The trees that hold the critics, with their backbones."""
        trees = self.on_devices({name: params[name] for name in critic_trees(self.models.places)}, after)
        return {name: with_backbone(self.models.base, tree) for name, tree in trees.items()}

    def on_devices(self, trees: Any, after: Any = ()) -> Any:
        """Trees for a function to read, on the devices; where some rest in between, only when `after`, what the function before
        gives, is there: until then that function's own trees fill the memory."""
        if self.settings.rollout.offload == "none":
            return trees
        jax.block_until_ready(after)
        return offload.to_device(trees)

    def offload_idle(self, state: states.TrainState) -> states.TrainState:
        opt_state = state.opt_state if self.settings.rollout.offload == "none" else offload.to_host(state.opt_state)
        return state._replace(params=offload.rest(state.params, self.idle_trees), opt_state=opt_state)

    def resample(
        self, params: dict, prompts: PromptBatch, key: jax.Array, extra: Extra, experience: Experience
    ) -> tuple[Experience, dict[str, float]]:
        """Groups that teach nothing, answered anew while there are any, at most `ppo.resample` times. The multiplier has seen the first
        answers alone: those that replace them are no fair sample of the policy's."""
        replaced = 0
        for attempt in range(1, self.settings.ppo.resample + 1):
            equal = int(hosts.to_host(self.equal_groups(experience)))
            if equal == 0:
                break
            replaced += equal
            other = self.answered_again(params, prompts, jax.random.fold_in(key, RESAMPLED + attempt), extra)
            experience = self.replace_groups(experience, other)
        return experience, {"resampled": replaced / self.settings.prompts}

    def answered_again(self, params: dict, prompts: PromptBatch, key: jax.Array, extra: Extra) -> Experience:
        """Other scored answers to the same prompts, which no multiplier sees."""
        weights = self.rollout_weights(params["policy"])
        rollout = self.generate(weights, prompts, key)
        del weights
        given = self.functions(rollout, self.for_each_answer(prompts.row_B))[0] if self.by_functions else {}
        trees = self.scoring_trees(params, rollout) | extra.moving
        return self.score(trees, rollout, prompts.images, given, extra.controllers, np.bool_(True), extra.kl_coef)[0]

    def self_test(self, policy: dict, rollout: Rollout, scored: Experience, images: Images | None) -> None:
        """Checks on the first rollout of a process (selftest.py)."""
        static, settings = self.static, self.settings
        if images is not None:
            bare = rollout._replace(features=None), self.for_each_answer(images._replace(patches_BNC=None))
            selftest.placeholders(static.model, *hosts.to_host(bare))
        gap = selftest.ratio(
            static.model,
            with_backbone(self.models.base, policy),
            rollout,
            temperature=settings.rollout.temperature,
            vocabulary=static.vocabulary,
            recompute=static.recomputes_logp,
        )
        if self._done == 1 and not settings.reference:  # in the run's first iteration the policy is still the reference
            exact = static.model.dtype == "float32"
            selftest.self_kl(scored.rollout.logp_BR, scored.ref_logp_BR, rollout.response_mask_BR, exact=exact)
        hosts.say(
            f"ppo_lag: self-test passed: |log ratio| of sampler and training graph {gap:.1e}; answers end at the ids "
            f"{', '.join(map(str, static.vocabulary.eos))}"
        )


def score_and_constrain(
    static: Static,
    trees: dict[str, dict],
    rollout: Rollout,
    images: Images | None,
    given: experience.Given,
    controllers: dict[str, lagrangian.ControllerState],
    hold,
    kl_coef: jax.Array | None = None,
) -> tuple[Experience, dict[str, lagrangian.ControllerState], Multipliers, jax.Array | None, dict]:
    """The scored rollout, each multiplier's one step on its costs (only its window, where `hold`), what weighs the update's losses, the
    next beta where it is adapted, and the numbers of all."""
    ppo = static.settings.ppo
    scored = experience.score(static, complete(trees), rollout, images, given, kl_coef, streams=not is_single_step(ppo))
    moved, lams, excess, metrics = {}, {}, {}, {}
    for key, one in static.settings.costs.items():
        constraint, about_B = one.settings, scored.applies_B.get(key)
        moved[key] = lagrangian.update_multiplier(
            constraint, controllers[key], scored.costs_B[key], hold, static.calibration_of(key), about_B
        )
        numbers = lagrangian.numbers(constraint, controllers[key], moved[key])
        lams[key] = numbers["lambda"]
        excess |= {key: numbers["excess"]} if "excess" in numbers else {}
        metrics |= {metric(key, name): number for name, number in numbers.items()}
    weights = Multipliers(lams, kl_coef, excess)
    metrics |= experience.metrics(static, scored, rollout, given)
    if kl_coef is not None:
        metrics["kl_coef"] = kl_coef
        kl_coef = jnp.where(hold, kl_coef, leash.adapted(ppo, kl_coef, metrics["kl"], len(scored.reward_B)))
    return scored, moved, weights, kl_coef, metrics
