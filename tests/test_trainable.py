"""A step that leaves nothing to train on ends the run, and says why; failures of others are never trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoint
from rollout_fixtures import ScriptedEngine, ScriptedSearch, context, prompt

from megatron_mmsr1.errors import RunError
from megatron_mmsr1.reward import mmsearch, score_trajectory
from megatron_mmsr1.rollout.agent import Seeds, open_group, run_trajectory
from megatron_mmsr1.run.trainable import require_rewards, require_something, scored
from megatron_mmsr1.trajectory import Status, ToolStatus, Trajectory

TOKENIZER = tiny_checkpoint.tokenizer()
ANSWER = "<reason>r</reason><answer>x</answer><|im_end|>"
SEARCH = "<reason>r</reason><text_search>q</text_search><|im_end|>"
OUT = Path("runs/x")


async def rolled_out(*said: str, n: int = 3, search: ScriptedSearch | None = None, **limits: Any) -> list[Trajectory]:
    """`n` rollouts by the real agent and the real reward; an engine that is asked says `said`, a turn each."""
    ctx = context(search, tokenizer=TOKENIZER, **limits)
    made = []
    for sample in range(n):
        seeds = Seeds(run=0, step=5, index=0, sample=sample)
        t = await run_trajectory(ctx, ScriptedEngine(TOKENIZER, said), await open_group(ctx, prompt()), seeds=seeds)
        score_trajectory(t, mmsearch.Settings())
        made.append(t)
    return made


async def test_a_step_in_which_nothing_was_sampled_ends_the_run() -> None:
    """Prompts that do not fit `protocol.max_prompt_tokens` are scored 0 without a token: a run of them once trained a hundred
    steps on nothing. Where preflight did not look (`data.check=none`) the first step says so."""
    made = await rolled_out(max_prompt_tokens=4)
    good = scored(made)
    assert len(good) == 3 and {t.status for t in good} == {Status.OUT_OF_TOKENS} and all(t.reward == 0 for t in good)
    with pytest.raises(RunError) as e:
        require_something(good, [t.outline() for t in made], 5, OUT)
    said = str(e.value)
    assert said.startswith("step 5: not one token was sampled in 3 trajectories (3 out_of_tokens)")
    assert "protocol.max_prompt_tokens" in said and "model.max_pixels" in said


async def test_one_sampled_token_is_enough() -> None:
    made = [*await rolled_out(max_prompt_tokens=4), *await rolled_out(ANSWER, n=1)]
    require_something(scored(made), made, 5, OUT)


async def test_a_step_that_only_met_an_outage_names_the_logs() -> None:
    made = await rolled_out(SEARCH, ANSWER, search=ScriptedSearch(status=ToolStatus.UPSTREAM_ERROR))
    assert scored(made) == []
    with pytest.raises(RunError, match=r"all 3 trajectories of step 5 failed .* runs/x/logs"):
        require_something([], made, 5, OUT)


async def test_a_judge_that_fails_too_often_ends_the_run_and_one_that_fails_once_does_not() -> None:
    """Of twenty trajectories one without a verdict leaves 95 %; what an outage of the tools ended was never asked about."""
    made = await rolled_out(ANSWER, n=20)
    lost = await rolled_out(SEARCH, ANSWER, search=ScriptedSearch(status=ToolStatus.UPSTREAM_ERROR))
    made[0].reward, made[0].extra["reward_error"] = None, "rate_limited: HTTP 429"
    require_rewards([t.outline() for t in [*made, *lost]], 5, 0.95)
    made[7].reward, made[7].extra["reward_error"] = None, "timeout: no answer"
    require_rewards(made, 5, 0.0)
    with pytest.raises(RunError) as e:
        require_rewards([t.outline() for t in [*made, *lost]], 5, 0.95)
    assert str(e.value) == (
        "step 5: the reward answered for 18 of 20 trajectories, fewer than its min_success of 0.95; "
        "the first failure: rate_limited: HTTP 429"
    )


async def test_a_reward_that_fails_everywhere_is_told_in_its_own_words() -> None:
    made = await rolled_out(ANSWER)
    for t in made:
        t.reward, t.extra["reward_error"] = None, "ValueError: no judge"
    with pytest.raises(RunError, match=r"no trajectory of step 5 has a reward; 3 times .*ValueError: no judge"):
        require_something(scored(made), made, 5, OUT)
