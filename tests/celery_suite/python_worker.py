"""The app of the Python worker that shares the queue with ours (`run.py --mixed`)."""

import os

from celery import Celery

app = Celery("suite", broker=os.environ["TEST_BROKER"], backend=os.environ["TEST_BACKEND"])
app.conf.update(
    result_extended=True,
    task_create_missing_queues=False,
    include=["t.integration.tasks", "celery.contrib.testing.tasks"],
)


@app.on_after_finalize.connect
def class_tasks(sender, **kwargs):
    from t.integration.tasks import ClassBasedAutoRetryTask

    sender.register_task(ClassBasedAutoRetryTask)
