"""The whole way: this client, Redis, the real worker, and a model server with scripted answers.

See ``conftest.py`` for which programs these are.
"""

import asyncio
import json
import time

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError

import orchestra.exceptions
from conftest import wait_until
from orchestra import Client

PROMPT = "one two three four five"


pytestmark = pytest.mark.usefixtures("worker")


def test_generate_returns_the_answer(client):
    answer = client.generate("echo", PROMPT).get(timeout=20)
    assert answer["text"].split() == PROMPT.split()
    assert answer["model"] == "echo"
    assert answer["done_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] > 0
    assert answer["json"] is None


def test_chat_returns_a_message(client):
    answer = client.chat("echo", [{"role": "user", "content": PROMPT}]).get(timeout=20)
    assert answer["message"]["role"] == "assistant"
    assert answer["message"]["content"] == answer["text"] != ""


def test_the_tokens_of_the_stream_are_the_text_of_the_result(client):
    result = client.generate("echo", PROMPT)
    tokens = list(result.stream(timeout=20))
    answer = result.get(timeout=20)
    assert "".join(tokens) == answer["text"]
    assert {(token.kind, token.step, token.attempt) for token in tokens} == {("token", "answer", 0)}
    # It can be read again, and by others.
    assert list(Client(client.app.orchestra_broker).result(result.id).stream(timeout=20)) == tokens


def test_tokens_come_before_the_task_is_over(client):
    result = client.generate("slow", PROMPT, options={"num_predict": 10})
    stream = result.stream(timeout=20)
    assert next(stream)
    assert not result.ready()
    rest = list(stream)
    assert len(rest) > 1
    assert result.get(timeout=20)["text"].endswith("".join(rest))


def test_a_schema_gives_parsed_json(client):
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    answer = client.generate("json", PROMPT, format=schema).get(timeout=20)
    assert isinstance(answer["json"]["name"], str)
    assert json.loads(answer["text"]) == answer["json"]


def test_without_a_stream_there_is_only_the_result(client):
    result = client.generate("echo", PROMPT, stream=False)
    assert list(result.stream(timeout=20)) == []
    assert result.get(timeout=20)["text"].split() == PROMPT.split()


def test_a_template_is_run_with_its_parameters(client):
    result = client.run("ollama-inference", model="echo", prompt=PROMPT)
    events = list(result.events(timeout=20))
    steps = [(event.kind, event.step, event.status or event.state) for event in events if event.kind != "token"]
    assert steps == [
        ("step", "answer", "started"),
        ("call", "answer", None),
        ("step", "answer", "finished"),
        ("end", None, "SUCCESS"),
    ]
    text = "".join(event.text for event in events if event.kind == "token")
    assert text.split() == PROMPT.split()
    assert text in json.dumps(result.get(timeout=20))


def test_an_unknown_model_is_model_not_found(client):
    result = client.generate("no-such-model", PROMPT)
    with pytest.raises(orchestra.exceptions.ModelNotFound, match="no-such-model"):
        result.get(timeout=20)
    with pytest.raises(orchestra.exceptions.ModelNotFound, match="no-such-model"):
        list(result.stream(timeout=20))


def test_an_unknown_template_is_template_not_found(client):
    with pytest.raises(orchestra.exceptions.TemplateNotFound, match="no-such-template"):
        client.run("no-such-template").get(timeout=20)


def test_a_missing_parameter_is_a_value_error(client):
    with pytest.raises(ValueError, match="prompt"):
        client.run("ollama-inference", model="echo").get(timeout=20)


def test_a_parameter_that_a_template_does_not_have_is_a_value_error(client):
    with pytest.raises(ValueError, match="colour"):
        client.run("ollama-inference", model="echo", prompt=PROMPT, colour="red").get(timeout=20)


def test_arguments_that_do_not_fit_are_a_type_error(client):
    with pytest.raises(TypeError, match="temperatur"):
        client.call("orchestra.generate", "echo", PROMPT, temperatur=1).get(timeout=20)
    with pytest.raises(TypeError, match="prompt"):
        client.call("orchestra.generate", "echo").get(timeout=20)


def test_an_answer_that_breaks_off_is_a_model_error(client):
    result = client.generate("error-midstream", PROMPT)
    with pytest.raises(orchestra.exceptions.ModelError):
        result.get(timeout=60)  # The worker tries again before it gives up.


def test_a_retry_starts_the_stream_again(client):
    result = client.generate("flaky", PROMPT)
    events = list(result.events(timeout=60))
    ends = [(event.kind, event.state or event.attempt) for event in events if event.kind in ("end", "restart")]
    assert ends == [("end", "RETRY"), ("restart", 1), ("end", "SUCCESS")]
    tokens = list(result.stream(timeout=20))
    assert {token.attempt for token in tokens} == {1}
    assert "".join(tokens) == result.get(timeout=20)["text"]


def test_thoughts_are_apart_from_the_answer(client):
    result = client.generate("thinking", PROMPT, think=True)
    tokens = list(result.stream(timeout=20, thinking=True))
    answer = result.get(timeout=20)
    for kind, text in (("thinking", answer["thinking"]), ("token", answer["text"])):
        assert text
        assert "".join(token for token in tokens if token.kind == kind) == text


def test_stock_celery_is_enough(redis_url):
    app = Celery(broker=redis_url, backend=redis_url, set_as_current=False)
    result = app.send_task("orchestra.generate", kwargs={"model": "echo", "prompt": PROMPT})
    assert result.get(timeout=20)["text"].split() == PROMPT.split()


def test_an_application_of_the_user_can_send_and_stream(redis_url):
    app = Celery("mine", broker=redis_url, backend=redis_url, set_as_current=False)
    assert "".join(Client(app=app).generate("echo", PROMPT).stream(timeout=20)).split() == PROMPT.split()


def test_revoke_stops_the_model_within_a_second(client, models):
    models.reset()
    result = client.generate("slow", PROMPT)
    stream = result.stream(timeout=20)
    next(stream)
    assert models.stats()["client_left_early"] == 0
    revoked = time.monotonic()
    result.revoke()
    wait_until(lambda: models.stats()["client_left_early"] == 1, "the model's connection is closed", 1)
    assert time.monotonic() - revoked < 1
    with pytest.raises(TaskRevokedError):
        list(stream)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=5)
    assert result.state == "REVOKED"


def test_the_async_twins_do_the_same(client, models):
    async def main():
        result = await client.agenerate("echo", PROMPT)
        tokens = [token async for token in result.astream(timeout=20)]
        assert "".join(tokens) == (await result.aget(timeout=20))["text"]

        chat = await client.achat("echo", [{"role": "user", "content": PROMPT}])
        assert (await chat.aget(timeout=20))["message"]["role"] == "assistant"

        run = await client.arun("ollama-inference", model="echo", prompt=PROMPT)
        assert [event.kind async for event in run.aevents(timeout=20)][-1] == "end"

        with pytest.raises(orchestra.exceptions.TemplateNotFound):
            await (await client.arun("no-such-template")).aget(timeout=20)
        with pytest.raises(TypeError):
            await (await client.acall("orchestra.chat", "echo", [], colour=1)).aget(timeout=20)

    asyncio.run(main())


def test_twenty_tasks_at_once_from_a_loop(client):
    async def main():
        results = [await client.agenerate("echo", f"number {number}") for number in range(20)]
        return await asyncio.gather(*[result.aget(timeout=30) for result in results])

    assert [answer["text"].split() for answer in asyncio.run(main())] == [["number", str(n)] for n in range(20)]


def test_arevoke_stops_the_model(client, models):
    models.reset()

    async def main():
        result = await client.agenerate("slow", PROMPT)
        stream = result.astream(timeout=20)
        await stream.__anext__()
        await result.arevoke()
        with pytest.raises(TaskRevokedError):
            async for _ in stream:
                pass
        with pytest.raises(TaskRevokedError):
            await result.aget(timeout=5)

    asyncio.run(main())
    wait_until(lambda: models.stats()["client_left_early"] == 1, "the model's connection is closed", 1)
