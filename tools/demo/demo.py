"""What a Python team does with an orchestra worker: stock Celery first, then our client where it adds something."""

import argparse
import json
import sys
import time
import urllib.request

from celery import Celery
from orchestra import Client
from orchestra.exceptions import ModelNotFound
from tqdm import tqdm

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 30},
        "country": {"type": "string", "maxLength": 30},
        "population": {"type": "integer", "minimum": 0, "maximum": 100000000},
    },
    "required": ["city", "country", "population"],
    "additionalProperties": False,
}


def heading(text: str) -> None:
    print(f"\n== {text}", flush=True)


def expect(condition: bool, what: str) -> None:
    if not condition:
        sys.exit(f"demo: this is not as it should be: {what}")


def short_answer(app: Celery, model: str) -> str:
    heading("a short answer, with nothing but Celery")
    options = {"num_predict": 32, "temperature": 0}
    kwargs = {"model": model, "prompt": "Name three colors.", "options": options}
    result = app.send_task("orchestra.generate", kwargs=kwargs)
    answer = result.get(timeout=300)
    print(answer["text"].strip())
    usage, timing = answer["usage"], answer["timing"]
    speed = answer["tokens_per_second"]
    print(
        f"[{answer['model']}: {usage['prompt_tokens']} tokens in, {usage['completion_tokens']} out,"
        f" {timing['total_s']:.2f} s, {speed or 0:.0f} tokens/s]"
    )
    expect(bool(answer["text"].strip()), "an answer has a text")
    expect(0 < usage["completion_tokens"] <= 32, "the answer says what it took")
    return result.id


def streamed_answer(client: Client, model: str) -> str:
    heading("a streamed answer, token by token")
    messages = [{"role": "user", "content": "Tell me about the sea in three sentences."}]
    result = client.chat(model, messages, options={"num_predict": 64, "temperature": 0})
    began, first, tokens = time.monotonic(), None, []
    for token in result.stream(timeout=300):
        first = first or time.monotonic() - began
        tokens.append(token)
        print(token, end="", flush=True)
    answer = result.get(timeout=30)
    print(f"\n[{len(tokens)} pieces; the first after {first or 0:.2f} s of {time.monotonic() - began:.2f} s]")
    expect(len(tokens) > 3, "tokens come one by one")
    expect("".join(tokens) == answer["text"], "the tokens are the answer")
    return result.id


def structured_answer(client: Client, model: str) -> str:
    heading("a structured answer: JSON that fits a schema")
    text = "Lisbon is the capital of Portugal. About 550000 people live there."
    result = client.run("extract", text=text, schema=SCHEMA, model=model, max_tokens=120)
    facts = result.get(timeout=300)
    print(json.dumps(facts))
    expect(set(facts) == {"city", "country", "population"}, "the answer has the schema's fields")
    expect(isinstance(facts["population"], int), "and their types")
    return result.id


def batch(client: Client, model: str) -> list:
    heading("a batch of 20")
    animals = "ant bee cat dog elk fox gnu hen ibis jay kiwi lynx mole newt owl pig ram seal toad wolf".split()
    prompts = [f"In a few words, what does a {animal} eat?" for animal in animals]
    results = [client.run("ollama-inference", prompt=prompt, model=model, max_tokens=16) for prompt in prompts]
    waiting = dict(enumerate(results))
    with tqdm(total=len(results), ncols=70, file=sys.stdout, disable=None) as bar:
        while waiting:
            done = [number for number, result in waiting.items() if result.ready()]
            for number in done:
                del waiting[number]
            bar.update(len(done))
            time.sleep(0.05)
    answers = [result.get(timeout=30) for result in results]
    print(f"{animals[4]}: {answers[4]['text'].strip()!r}")
    expect(all(answer["text"] for answer in answers), "all 20 have an answer")
    return [result.id for result in results]


def failing_task(client: Client) -> str:
    heading("a task that fails")
    result = client.generate("no-such-model", "hello")
    try:
        result.get(timeout=60)
    except ModelNotFound as error:
        print(f"orchestra.exceptions.ModelNotFound: {error}")
    else:
        sys.exit("demo: a model that is not there answered")
    return result.id


def flower_has(flower: str, succeeded: list, failed: str) -> None:
    heading("what Flower knows")

    def get(path: str):
        # No proxy: Flower is on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{flower}/api/{path}", timeout=10) as answer:
            return json.load(answer)

    end = time.monotonic() + 30
    while True:
        tasks = get("tasks?limit=1000")
        states = [tasks.get(task, {}).get("state") for task in succeeded]
        if all(state == "SUCCESS" for state in states) and tasks.get(failed, {}).get("state") == "FAILURE":
            break
        expect(time.monotonic() < end, f"Flower has every task with its state: {states}")
        time.sleep(0.2)
    workers = get("workers?refresh=true")
    expect(len(workers) == 1, "Flower lists one worker")
    worker, details = next(iter(workers.items()))
    registered = [name.split(" ")[0] for name in details.get("registered") or []]
    expect("orchestra.generate" in registered and "texts.summarize" in registered, "and what it can run")
    task = get(f"task/info/{failed}")
    expect("ModelNotFound" in (task.get("exception") or ""), "the failed task has its exception")
    expect("ModelNotFound" in (task.get("traceback") or ""), "and its traceback")
    print(f"worker {worker}: {len(registered)} kinds of tasks; {len(tasks)} tasks, {len(succeeded)} of ours succeeded, 1 failed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--broker", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--flower", required=True)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    app = Celery(broker=arguments.broker, backend=arguments.broker)
    client = Client(arguments.broker)
    succeeded = [
        short_answer(app, arguments.model),
        streamed_answer(client, arguments.model),
        structured_answer(client, arguments.model),
        *batch(client, arguments.model),
    ]
    failed = failing_task(client)
    if arguments.check:
        flower_has(arguments.flower, succeeded, failed)
        print("\ndemo-check: 6 of 6 parts are as they should be")


if __name__ == "__main__":
    main()
