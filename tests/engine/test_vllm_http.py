"""Servers with vLLM's protocol: versions, pictures, retries, and what is refused."""

import base64
import json
import socket
import threading
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from mmrlhf.background import run_in_background
from mmrlhf.engine import vllm_features, vllm_http, vllm_requests, vllm_server
from mmrlhf.engine.rollout import LocalEngine, prompts_from_examples
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.engine.scoring import in_micro_batches, logps
from mmrlhf.engine.vllm_http import PreparedPrompt, VLLMServers
from mmrlhf.engine.vllm_requests import EngineError
from mmrlhf.engine.vllm_server import Server
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.records import InputError
from tests.helpers.fake_vllm import fake_vllm

PARAMS = SamplingParams(8, 0.7, seed=3)


@pytest.fixture
def policy(vlm):
    adapters = Adapters(vlm)
    adapters.add("policy", 4, 64, 0)
    return Role(adapters, "policy")


def change(policy, seed):
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))


def save(policy, folder):
    policy.adapters.save("policy", folder)
    return folder


def engine_of(vlm, *fakes, patience=0.2, **settings):
    return VLLMServers(vlm, [Server(vllm_fake.url, patience) for vllm_fake in fakes], "policy-test", **settings)


# ---- versions ------------------------------------------------------------------------------------


def test_each_version_has_its_name_and_the_old_one_is_unloaded(vllm_fake, policy, examples, tmp_path):
    engine, prompts = engine_of(policy.vlm, vllm_fake), prompts_from_examples(policy.vlm, examples[:3])
    assert engine.policy_version == -1
    for version in (0, 1):
        change(policy, version)
        engine.set_policy(version, save(policy, tmp_path / str(version)))
        engine.set_policy(version, tmp_path / "is not read again")
        sampled = engine.sample(prompts, 2, PARAMS)
        own = in_micro_batches(logps, policy, sampled)
        assert torch.allclose(own, sampled.logps_NT, atol=1e-5), version
        assert {body["model"] for body in vllm_fake.generated[-3:]} == {f"policy-test-v{version}"} == set(vllm_fake.loaded)
        assert engine.sample(prompts, 2, PARAMS).texts == sampled.texts
    greedy = SamplingParams(8, 0.0)
    assert engine.sample(prompts, 1, greedy).texts == LocalEngine(policy).sample(prompts, 1, greedy).texts
    assert sampled.prompt_index_N.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(sampled.entropy_NT, -sampled.logps_NT)
    engine.close()
    assert not vllm_fake.loaded


def test_base_is_asked_for_without_an_adapter(vllm_fake, vlm, examples):
    engine = engine_of(vlm, vllm_fake)
    engine.set_policy(0)
    engine.sample(prompts_from_examples(vlm, examples[:1]), 1, PARAMS)
    assert vllm_fake.generated[0]["model"] == "base"


def test_a_server_that_answers_with_another_version_is_refused(vllm_fake, policy, examples, tmp_path):
    engine = engine_of(policy.vlm, vllm_fake)
    engine.set_policy(4, save(policy, tmp_path / "v4"))
    vllm_fake.answers_as = "policy-test-v3"
    with pytest.raises(EngineError, match=r"was asked for policy-test-v4 and answered as policy-test-v3: it must serve each"):
        engine.sample(prompts_from_examples(policy.vlm, examples[:1]), 1, PARAMS)


def test_a_restarted_server_gets_the_adapter_again(vllm_fake, policy, examples, tmp_path):
    engine, prompts = engine_of(policy.vlm, vllm_fake), prompts_from_examples(policy.vlm, examples[:3])
    engine.set_policy(0, save(policy, tmp_path / "v0"))
    before = engine.sample(prompts, 1, PARAMS)
    vllm_fake.restart()
    assert engine.sample(prompts, 1, PARAMS).texts == before.texts
    vllm_fake.restart()
    engine.set_policy(1, save(policy, tmp_path / "v1"))  # nothing there to unload
    assert set(vllm_fake.loaded) == {"policy-test-v1"}


def test_adapters_that_a_server_does_not_see_or_allow(vllm_fake, policy, tmp_path):
    engine, adapter = engine_of(policy.vlm, vllm_fake), save(policy, tmp_path / "v0")
    vllm_fake.sees_adapters = False
    with pytest.raises(EngineError, match=rf"finds no adapter at {adapter}: give an --output_dir that the server sees"):
        engine.set_policy(0, adapter)
    far_away = save(policy, tmp_path / ("x" * 100) / ("y" * 100) / "v0")  # farther than a message quotes
    with pytest.raises(EngineError, match=r"finds no adapter at .*/v0: give an --output_dir that the server sees"):
        engine.set_policy(0, far_away)
    vllm_fake.allows_adapters = False
    with pytest.raises(EngineError, match=r"HTTP 404: Not Found\): start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
        engine.set_policy(0, adapter)


# ---- several servers and processes ---------------------------------------------------------------


def test_prompts_go_to_the_servers_in_turn(tiny_vlm_path, policy, examples, tmp_path):
    adapter = save(policy, tmp_path / "v0")
    with fake_vllm(tiny_vlm_path, examples) as a, fake_vllm(tiny_vlm_path, examples) as b:
        prompts = prompts_from_examples(policy.vlm, examples[:5])
        engine = engine_of(policy.vlm, a, b)
        engine.set_policy(0, adapter)
        sampled = engine.sample(prompts, 2, PARAMS)
        assert (len(a.generated), len(b.generated)) == (3, 2) and set(a.loaded) == set(b.loaded) == {"policy-test-v0"}
        alone = engine_of(policy.vlm, b)
        alone._model = "policy-test-v0"
        assert alone.sample(prompts, 2, PARAMS).texts == sampled.texts  # which server answers decides nothing
        second = engine_of(policy.vlm, a, b, rank=1, num_processes=2)
        second.set_policy(0, adapter)  # the first process has loaded it
        second.sample(prompts[:1], 1, PARAMS)
        assert (len(a.generated), len(b.generated)) == (3, 8)


# ---- pictures ------------------------------------------------------------------------------------


def test_pictures_go_as_features_under_the_feature_key(vllm_fake, vlm, examples, capsys):
    engine, (prompt,) = engine_of(vlm, vllm_fake), prompts_from_examples(vlm, examples[:1])
    engine.set_policy(0)
    engine.sample([prompt], 1, PARAMS)
    (body,) = vllm_fake.generated
    assert body["token_ids"] == prompt.token_ids.tolist() and "content_parts" not in body
    features = body["features"]
    assert features["mm_hashes"] == {"image": [f"{vlm.encoder.fingerprint}/{prompt.images[0].key}"]}
    places = [i for i, token in enumerate(body["token_ids"]) if token == vlm.model.config.image_token_id]
    assert features["mm_placeholders"] == {"image": [{"offset": places[0], "length": 9}]} and len(places) == 9
    embeds = prompt.image_features[0].levels[0][0]
    # MessagePack: the tensor's bytes are an extension of type 3 with a length of 32 bits.
    content = base64.b64decode(features["kwargs_data"]["image"][0])
    start = content.index(b"\xc9" + (9 * 128 * 4).to_bytes(4) + b"\x03") + 6
    assert torch.equal(
        torch.frombuffer(bytearray(content[start : start + 9 * 128 * 4]), dtype=torch.float32).view(9, 128), embeds
    )
    assert capsys.readouterr().out == "note: pictures go to the servers as features, and their towers do not run\n"


def test_refused_features_become_pixels_with_one_note(vllm_fake, vlm, examples, capsys):
    engine, prompts = engine_of(vlm, vllm_fake), prompts_from_examples(vlm, examples[:3])
    engine.set_policy(0)
    vllm_fake.takes_features = False
    engine.sample(prompts, 1, PARAMS)
    engine.sample(prompts, 1, PARAMS)
    assert capsys.readouterr().out.count("note:") == 1
    bodies = vllm_fake.generated[1:]
    assert len(bodies) == 6 and all("features" not in body for body in bodies)
    part = bodies[0]["content_parts"][0]
    image = examples[0].images[0]
    assert part["uuid"] == image.key and base64.b64decode(part["url"].partition("base64,")[2]) == image.read()


def test_each_server_is_asked_once_whether_it_takes_features(tiny_vlm_path, vlm, examples, capsys):
    with fake_vllm(tiny_vlm_path, examples) as a, fake_vllm(tiny_vlm_path, examples) as b:
        b.takes_features = False
        engine, prompts = engine_of(vlm, a, b), prompts_from_examples(vlm, examples[:6])
        engine.set_policy(0)
        sampled = engine.sample(prompts, 1, PARAMS)
        assert engine.sample(prompts, 1, PARAMS).texts == sampled.texts
        assert ["features" in body for body in a.generated] == [True] * 6
        assert ["features" in body for body in b.generated] == [True] + [False] * 6
        printed = capsys.readouterr().out
        assert (
            printed.count("as features") == 1 and printed.count(f"as pixels, which their towers encode again ({b.url} takes") == 1
        )


def test_a_server_that_answers_at_once_has_its_note(vllm_fake, vlm, examples, monkeypatch, capsys):
    def run_at_once(work, slots):
        future = run_in_background(work, slots)
        futures.wait([future])
        return future

    monkeypatch.setattr(vllm_http, "run_in_background", run_at_once)
    engine = engine_of(vlm, vllm_fake)
    engine.set_policy(0)
    engine.sample(prompts_from_examples(vlm, examples[:1]), 1, PARAMS)
    assert capsys.readouterr().out.count("as features") == 1


def test_the_process_that_finds_a_server_without_features_says_so(tiny_vlm_path, vlm, examples, capsys):
    with fake_vllm(tiny_vlm_path, examples) as a, fake_vllm(tiny_vlm_path, examples) as b:
        prompts = prompts_from_examples(vlm, examples[:2])
        for takes_features, num_notes in ((True, 0), (False, 1)):  # rank 0 says how features go, for all
            b.takes_features = takes_features
            engine = engine_of(vlm, a, b, rank=1, num_processes=2)
            engine.set_policy(0)
            engine.sample(prompts, 1, PARAMS)
            printed = capsys.readouterr().out
            assert printed.count("note:") == printed.count(f"({b.url} takes no features") == num_notes
        assert not a.generated


def test_a_family_whose_features_vllm_does_not_take_sends_pixels(vllm_fake, vlm, examples, monkeypatch, capsys):
    monkeypatch.setattr(vllm_features, "FEATURE_LAYOUTS", {})
    engine = engine_of(vlm, vllm_fake)
    engine.set_policy(0)
    engine.sample(prompts_from_examples(vlm, examples[:1]), 1, PARAMS)
    assert "content_parts" in vllm_fake.generated[0]
    assert "as pixels, which their towers encode again (vLLM takes no features of llava)" in capsys.readouterr().out


def test_features_of_a_wrong_shape_are_not_sent(vllm_fake, vlm, examples):
    engine, (prompt,) = engine_of(vlm, vllm_fake), prompts_from_examples(vlm, examples[:1])
    engine.set_policy(0)
    (features,) = prompt.image_features
    for levels in ([[features.levels[0][0][:8]]], [[features.levels[0][0][:, :64]]], [[features.levels[0][0]]] * 2):
        if len(levels) == 2:
            levels = [levels[0], [levels[1][0][:, :5]]]
        with pytest.raises(InputError, match=f"row {prompt.id}"):
            engine.sample([replace(prompt, image_features=(replace(features, levels=levels),))], 1, PARAMS)
    assert not vllm_fake.generated


# ---- servers that fail ---------------------------------------------------------------------------


@pytest.mark.parametrize("statuses", [[503, 502], [0], [429, 0, 504], [500, 500]])
def test_a_server_that_comes_back_is_asked_again(vllm_fake, vlm, examples, statuses):
    engine, prompts = engine_of(vlm, vllm_fake, patience=5), prompts_from_examples(vlm, examples[:2])
    engine.set_policy(0)
    expected = engine.sample(prompts, 1, PARAMS)
    vllm_fake.statuses = list(statuses)
    assert engine.sample(prompts, 1, PARAMS).texts == expected.texts and not vllm_fake.statuses


def test_answers_that_a_stopping_server_aborts_are_asked_for_again(vllm_fake, vlm, examples):
    engine, prompts = engine_of(vlm, vllm_fake, patience=5), prompts_from_examples(vlm, examples[:2])
    engine.set_policy(0)
    expected = engine.sample(prompts, 2, PARAMS)
    vllm_fake.num_aborted = 3
    assert engine.sample(prompts, 2, PARAMS).texts == expected.texts and not vllm_fake.num_aborted
    vllm_fake.num_aborted = 1 << 20
    engine = engine_of(vlm, vllm_fake)
    engine.set_policy(0)
    with pytest.raises(EngineError, match=rf"{vllm_fake.url} did not answer for 0.2 seconds \(it aborts requests\): start it"):
        engine.sample(prompts, 1, PARAMS)


def test_a_server_that_stays_away_is_named(vllm_fake, vlm, examples):
    engine = engine_of(vlm, vllm_fake)
    engine.set_policy(0)
    vllm_fake.is_gone_after = 0
    with pytest.raises(EngineError, match=rf"{vllm_fake.url} did not answer for 0.2 seconds \(it is gone\): start it again"):
        engine.sample(prompts_from_examples(vlm, examples[:2]), 1, PARAMS)


@pytest.fixture
def mute_url():
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_server_that_hangs_is_named(vlm, examples, mute_url, monkeypatch):
    """Here a request waits for an hour, unless something else finds out."""
    monkeypatch.setattr(vllm_server, "PROBE_TIMEOUT", 0.1)
    monkeypatch.setattr(vllm_server, "PROBE_INTERVAL", 0.05)
    with pytest.raises(EngineError, match=r"cannot be reached \(timed out\): start the server"):
        Server(mute_url, 0).check(1)
    engine = VLLMServers(vlm, [Server(mute_url, 0.2)], "p", _model="base")
    with pytest.raises(EngineError, match=rf"{mute_url} did not answer for 0.2 seconds \(timed out\): start it again"):
        engine.sample(prompts_from_examples(vlm, examples[:1]), 1, PARAMS)


def test_a_server_that_works_for_long_is_waited_for(vllm_fake, vlm, examples, monkeypatch):
    monkeypatch.setattr(vllm_server, "PROBE_INTERVAL", 0.01)
    engine, prompts = engine_of(vlm, vllm_fake, patience=0.0), prompts_from_examples(vlm, examples[:1])
    engine.set_policy(0)
    vllm_fake.gate = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        sampled = pool.submit(engine.sample, prompts, 1, PARAMS)
        while [path for path, _ in vllm_fake.requests].count("/health") < 3:
            pass
        vllm_fake.gate.set()
        assert sampled.result().texts


def test_replies_that_were_not_asked_for_are_refused(vlm, examples):
    (prompt,) = prompts_from_examples(vlm, examples[:1])
    server = Server("http://127.0.0.1:9", 0)
    engine = VLLMServers(vlm, [server], "p", _model="m")
    choice = {
        "index": 0, "token_ids": [7, 3], "finish_reason": "stop",
        "logprobs": {"content": [{"token_id": 7, "logprob": -0.5}, {"token_id": 3, "logprob": -1.0}]},
    }  # fmt: skip
    token_ids = prompt.token_ids.tolist()
    reply = {"model": "m", "prompt_token_ids": token_ids, "choices": [choice]}
    prepared, params = PreparedPrompt(prompt, 0, token_ids, token_ids, None), {"n": 1, "max_tokens": 8}
    (answer,) = engine._read(server, prepared, params, reply)
    assert (answer.token_ids, answer.logps, answer.is_finished) == ([7, 3], [-0.5, -1.0], True)
    for changes, message in (
        ({"prompt_token_ids": [1, 2]}, "reads row .* as 2 tokens"),
        ({"choices": []}, "did not return 1 answer of at most 8 tokens"),
        ({"choices": [choice | {"finish_reason": "error"}]}, "an answer ended by error"),
        ({"choices": [choice | {"token_ids": [7, 4]}]}, "log-probs of other tokens"),
        ({"choices": [choice | {"logprobs": None}]}, "sends no answers"),
        ({"choices": [choice | {"token_ids": [], "logprobs": {"content": []}}]}, "did not return 1 answer of"),
    ):
        with pytest.raises(EngineError, match=message):
            engine._read(server, prepared, params, reply | changes)
    for no_reply in ("Success", None, {"detail": "x"}):
        with pytest.raises(EngineError, match="sends no answers"):
            engine._read(server, prepared, params, no_reply)


def test_a_passing_failure_does_not_turn_features_off(vllm_fake, vlm, examples):
    engine, prompts = engine_of(vlm, vllm_fake, patience=60), prompts_from_examples(vlm, examples[:1])
    engine.set_policy(0)
    vllm_fake.statuses = [500] * 3
    with pytest.raises(EngineError, match="HTTP 500: fault 500"):
        engine.sample(prompts, 1, PARAMS)
    assert not vllm_fake.statuses
    engine.sample(prompts, 1, PARAMS)
    assert "features" in vllm_fake.generated[-1]


# ---- requests ------------------------------------------------------------------------------------


def test_sampling_params_describe_the_trainers_distribution(vlm):
    params = vllm_requests.sampling_params(vlm, SamplingParams(9, 0.7, min_tokens=2), 4)
    assert {name: params[name] for name in ("n", "temperature", "max_tokens", "min_tokens", "logprobs")} == {
        "n": 4, "temperature": 0.7, "max_tokens": 9, "min_tokens": 2, "logprobs": 0,
    }  # fmt: skip
    assert params["stop_token_ids"] == list(vlm.eos) and params["ignore_eos"]
    assert params["logit_bias"] == {str(token): -100.0 for token in vlm.suppressed_tokens.tolist()}
    assert str(vlm.model.config.image_token_id) in params["logit_bias"]
    json.dumps(params)
    for unread in ({"top_p": 0.9}, {"top_k": 5}, {"stop": ("x",)}):
        with pytest.raises(InputError, match="leave top_p, top_k and stop out"):
            vllm_requests.sampling_params(vlm, SamplingParams(9, **unread), 1)


def test_seeds_depend_on_row_and_step_and_not_on_the_batch(vlm, examples):
    prompts = prompts_from_examples(vlm, examples[:3])
    seeds = vllm_requests.prompt_seeds(prompts, 5)
    assert vllm_requests.prompt_seeds(prompts[1:], 5) == seeds[1:] and len(set(seeds)) == 3
    assert not set(vllm_requests.prompt_seeds(prompts, 6)) & set(seeds)
    twice = vllm_requests.prompt_seeds([prompts[0], prompts[0]], 5)
    assert twice[0] == seeds[0] != twice[1]
