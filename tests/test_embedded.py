"""The embedded model as it is shipped: files, prompts, replies."""

from __future__ import annotations

import numpy as np
import pytest

from spark.engine import Engine
from spark.modality import Modality
from spark.models import available, load
from spark.models.base import PromptError, SpokenLM
from spark.models.embedded import FOLDER, MOST_WORDS, unavailable
from spark.sampling import SamplingSettings
from spark.schedule import FixedExit, FullDepth, Spark
from spark.trace import Trace


@pytest.fixture(scope="module")
def lm() -> SpokenLM:
    return load("embedded")


def reply(lm: SpokenLM, prompt: str, policy: FullDepth | Spark | FixedExit, seed: int = 1) -> Trace:
    engine = Engine(lm)
    prefill = engine.prefill(lm.encode_prompt(prompt))
    generation = engine.generate(prefill, policy, SamplingSettings(seed=seed))
    for _ in generation:
        pass
    return generation.trace


def test_it_is_on_offer_and_small_enough_for_plain_git() -> None:
    assert [info.name for info in available() if info.runnable] == ["embedded"]
    sizes = [path.stat().st_size for path in FOLDER.iterdir()]
    assert max(sizes) < 10_000_000
    assert sum(sizes) < 40_000_000


def test_a_missing_file_is_named(tmp_path) -> None:
    assert "codec.safetensors" in unavailable(tmp_path)


def test_shape(lm: SpokenLM) -> None:
    config = lm.transformer.config
    assert config.num_hidden_layers == 14
    weights = sum(t.numel() for t in lm.transformer.state_dict().values())
    assert 8e6 < weights < 12e6
    assert set(lm.exit_heads) == set(lm.candidate_exits)
    assert len(lm.candidate_exits) >= 4
    assert all(head.covers(lm.vocabulary.control_ids) for head in lm.exit_heads.values())


@pytest.mark.parametrize(
    "typed", ["seven plus five", "Seven PLUS five!", "7 plus 5", "7+5", "7 + 5?"]
)
def test_case_marks_and_digits_do_not_matter(lm: SpokenLM, typed: str) -> None:
    assert lm.encode_prompt(f"What is {typed}") == lm.encode_prompt("what is seven plus five")


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("", "Type a question"),
        ("  \n", "Type a question"),
        ("?!…", "no words"),
        ("Какая столица Перу?", "English only"),
        ("秘鲁的首都是哪里", "English only"),
        ("Say: 你好 hello my world", "does not know 你 好"),
        ("word " * (MOST_WORDS + 1), f"{MOST_WORDS + 1} words"),
        ("a" * 60, "too long for a word"),
    ],
)
def test_a_prompt_it_cannot_take_is_refused_with_a_remedy(
    lm: SpokenLM, typed: str, says: str
) -> None:
    with pytest.raises(PromptError, match=says):
        lm.encode_prompt(typed)


@pytest.mark.parametrize("policy", [FullDepth(), Spark(11), FixedExit(7)])
def test_a_reply_speaks_and_is_the_same_twice(
    lm: SpokenLM, policy: FullDepth | Spark | FixedExit
) -> None:
    first, second = (reply(lm, "What is the capital of Peru?", policy) for _ in range(2))
    assert first.ids() == second.ids()
    assert len(first.codes()) >= 10
    assert lm.vocoder is not None
    sound = lm.vocoder.decode(first.codes())
    assert sound.dtype == np.int16
    assert len(sound) == 640 * len(first.codes())
    assert np.abs(sound.astype(int)).max() > 1000


def test_full_depth_ends_by_itself_and_keeps_to_the_layout(lm: SpokenLM) -> None:
    trace = reply(lm, "Hello, who are you?", FullDepth())
    assert trace.finish == "stop"
    ids = np.array(trace.ids())
    end = int(np.flatnonzero(ids == lm.vocabulary.tts_end)[0])
    kinds = [step.modality for step in trace.steps[:end]]
    assert end % 5 == 0
    assert Modality.SPEECH not in kinds[::5]
    assert trace.mean_depth(Modality.SPEECH) == 14


def test_triple_cuts_what_the_paper_cuts(lm: SpokenLM) -> None:
    trace = reply(lm, "Hello, who are you?", Spark(11))
    depths = [s.depth for s in trace.steps if s.slot == "speech"][:8]
    assert depths == [14, 11, 11, 14] * 2
